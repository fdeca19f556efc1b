"""Time and memory of making a corpus ready: `python scripts/benchmark_data.py --megabytes 540`.

Writes a synthetic text (English letters, 2 % longer characters) as one text file and as a parquet data set,
loads each with both tokenizers into empty caches, then again from them, and reads batches. Every measurement
is a process of its own. Memory is the growth of what the process alone owns (anonymous memory); mapped pages,
which the system may take back at any time, are shown apart. Of a data set, `datasets` itself makes a copy
first: that time and memory are in the line "first".
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

CHARACTERS = "etaoinshrdlucmfwypvbgkjqxz ,.\n" + "éüß—“”€日本"
ROW_CHARACTERS = 300
BATCHES = 300


def synthetic_rows(megabytes: float, seed: int = 0) -> list[str]:
    """About one megabyte of random rows, each ending with a newline; the texts repeat it."""
    generator = np.random.default_rng(seed)
    weights = np.array([1.0 if ord(character) < 128 else 0.07 for character in CHARACTERS])
    picks = generator.choice(len(CHARACTERS), size=int(min(megabytes, 1) * 1e6), p=weights / weights.sum())
    text = "".join(CHARACTERS[pick] for pick in picks).replace("\n", " ")
    return [text[start : start + ROW_CHARACTERS] + "\n" for start in range(0, len(text), ROW_CHARACTERS)]


def write_inputs(folder: Path, megabytes: float) -> None:
    """Write the same text as text.txt and as data/*.parquet (the latter with small validation and test)."""
    import pyarrow
    import pyarrow.parquet

    rows = synthetic_rows(megabytes)
    block = "".join(rows).encode()
    repeats = max(round(megabytes * 1e6 / len(block)), 1)
    with (folder / "text.txt").open("wb") as file:
        for _ in range(repeats):
            file.write(block)
    data = folder / "dataset" / "data"
    data.mkdir(parents=True)
    table = pyarrow.table({"text": rows})
    for split, times in (("train", repeats), ("validation", 1), ("test", 1)):
        with pyarrow.parquet.ParquetWriter(data / f"{split}-00000-of-00001.parquet", table.schema) as writer:
            for _ in range(times):
                writer.write_table(table)


def memory(field: str) -> float:
    """Megabytes of RssAnon or RssFile of this process (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return float("nan")


class Peak:
    """The highest anonymous and mapped memory above the start, sampled every 5 ms."""

    def __enter__(self) -> Peak:
        self.anonymous = self.mapped = 0.0
        self._start = memory("RssAnon"), memory("RssFile")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.anonymous = max(self.anonymous, memory("RssAnon") - self._start[0])
            self.mapped = max(self.mapped, memory("RssFile") - self._start[1])

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def measure(name: str, source: str, path: str, tokenizer: str) -> None:
    """Load one corpus in this process and print one line."""
    from rnnsparse.data.batches import Lanes
    from rnnsparse.data.corpus import load_corpus
    from rnnsparse.settings.data import DataConfig

    if source != "text":
        import datasets  # its import, some 100 MB, is not what is measured

        datasets.disable_progress_bars()
    config = DataConfig(source=source, path=path, tokenizer=tokenizer)  # type: ignore[arg-type]
    with Peak() as peak:
        start = time.perf_counter()
        corpus = load_corpus(config)
        seconds = time.perf_counter() - start
    size = sum(split.bytes for split in (corpus.train, corpus.validation, corpus.test)) / 1e6
    lanes = Lanes(corpus.train.tokens, batch_size=32, sequence_length=512)
    start = time.perf_counter()
    for _ in range(BATCHES):
        next(lanes)
    batch = (time.perf_counter() - start) / BATCHES
    print(
        f"{name:22s} {tokenizer} {size:6.1f} MB: {seconds:6.2f} s, memory +{peak.anonymous:.0f} MB, "
        f"mapped +{peak.mapped:.0f} MB; a batch of 32 x 512 {batch * 1e6:.0f} us",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100.0, help="size of the text (WikiText-103: 540)")
    parser.add_argument("--dataset", help="a local folder in the hub's layout, measured too")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)  # how this script calls itself
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, arguments.megabytes)
        places = [("text", folder / "text.txt"), ("wikitext103", folder / "dataset")]
        if arguments.dataset:
            places.append(("wikitext103", Path(arguments.dataset)))
        for source, path in places:
            for tokenizer in ("byte", "char"):
                environment = {
                    **os.environ,
                    "RNNSPARSE_CACHE": str(folder / "cache"),
                    "HF_DATASETS_CACHE": str(folder / f"datasets-{tokenizer}"),
                    "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
                }
                for when in ("first", "cached"):
                    label = f"{path.name}, {when}"
                    command = [sys.executable, __file__, "--measure", label, source, str(path), tokenizer]
                    subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    main()
