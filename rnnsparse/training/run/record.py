"""The record of a run: the files in its folder, and who writes them when."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from operator import methodcaller
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from rnnsparse import __version__, files
from rnnsparse.config import RunConfig
from rnnsparse.data.corpus import Corpus
from rnnsparse.errors import RunFailed, UserError
from rnnsparse.nn.language_model import CharLM
from rnnsparse.storage import atomic, checkpoint
from rnnsparse.training.build import read_config
from rnnsparse.training.run import lock, run_folder, stretches
from rnnsparse.training.run.logging import RunLogger, Silence
from rnnsparse.training.run.stretches import Stretch
from rnnsparse.training.step.distributed import Ranks, torchrun

METRICS, SUMMARY, ENVIRONMENT, SETTINGS = "metrics.jsonl", "summary.json", "environment.json", "config.yaml"


class Record:
    """A run's folder as the loop sees it: the first rank writes it; the others have the same and write nothing.

    Args:
        config: what the folder says that the run is.
        claims: whether a new run is the first to use the folder; the last run of a recipe is not.

    Attributes:
        was: the configuration of the checkpoint that the run goes on from, or its own.
    """

    def __init__(self, config: RunConfig, ranks: Ranks, *, claims: bool = True) -> None:
        self.config, self.folder, self._ranks, self._claims = config, config.folder, ranks, claims
        self.was = config
        self._resumed_at: int | None = None

    def look(self, resume: bool) -> checkpoint.Checkpoint | None:
        """Return what the run goes on from, or None if it is new; nothing is written before `held`.

        Raises:
            UserError: another process trains here, a new run would overwrite something, or there is nothing to go on
                from with these settings.
        """
        if self._ranks.is_first:
            lock.refuse_if_held(self.folder)
        if resume or self._is_restarted():
            saved = run_folder.last_checkpoint(self.config, changing=True)
            self.was, self._resumed_at = read_config(saved), saved.step
            return saved
        if self._claims and self._ranks.is_first:
            run_folder.claim(self.folder)
        return None

    def _is_restarted(self) -> bool:
        """Return whether torchrun has restarted its ranks after they began this run and saved it."""
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            return False
        ours = self._told(ENVIRONMENT, "torchrun") == torchrun() and atomic.existing(self.folder / run_folder.LAST)
        can: bool = self._ranks.first(bool(ours))
        return can

    def _told(self, file: str, key: str) -> Any:
        return told(self.folder / file, key)

    def told_peak(self) -> int:
        """Return the bytes of memory in the summary of the run, if it has ended before, else 0."""
        told = self._told(SUMMARY, "peak_memory_bytes")
        return told if type(told) is int else 0

    @property
    def is_resumed(self) -> bool:
        """Whether the run goes on from a checkpoint of its own."""
        return self._resumed_at is not None

    @property
    def changes(self) -> stretches.Changes:
        """What the run goes on with in another way than it did."""
        return run_folder.differences(self.was, self.config)

    @contextlib.contextmanager
    def held(self) -> Iterator[str]:
        """Hold the folder, made if the run is new, and make sure that no other has trained in it since we looked.

        Yields "", or a warning.

        Raises:
            UserError: another process trains in it, or has done so.
            OSError: the disk is full.
        """
        if not self._ranks.is_first:
            yield ""
            return
        if self._resumed_at is None:
            run_folder.make(self.folder)
        with lock.held(self.folder) as warning:
            if self._resumed_at is None:
                if self._claims:
                    run_folder.claim(self.folder)
            else:
                saved = run_folder.last_checkpoint(self.config, changing=True)
                if saved.step != self._resumed_at:
                    raise UserError(
                        f"{self.folder}: another process has trained in this run.dir meanwhile; start again"
                    )
                run_folder.make_ready(self.folder, saved)
                warning = "; ".join(filter(None, (warning, saved.warning, run_folder.mend_best(self.folder))))
            yield warning

    def is_begun(self) -> bool:
        """Return whether anything is recorded yet."""
        begun: bool = self._ranks.first(self.folder.joinpath(METRICS).exists())
        return begun

    def begin(self, device: torch.device) -> None:
        """Write the resolved configuration of a new run, and what it runs on, in how many processes."""
        if self._ranks.is_first:
            about = {"began": stretches.now(), "ranks": self._ranks.world_size, "torchrun": torchrun()}
            about["others"] = run_folder.others(self.config)
            _write(self.folder / SETTINGS, self.config.to_yaml())
            write_json(self.folder / ENVIRONMENT, _environment(device) | about)

    def go_on(self, step: int, others: Sequence[Stretch], *, begun: bool, ends: bool) -> None:
        """Write what a run tells of itself before it goes on after `step`, with the stretches after its first.

        The summary of a run that had ended tells from now on in its name that it is of an earlier step.

        Args:
            begun: whether the run has described itself before.
            ends: whether nothing is left of it to train.
        """
        if not self._ranks.is_first:
            return
        summary = self.folder / SUMMARY
        if not ends and summary.exists():  # before settings that are not its own
            steps = self._told(SUMMARY, "steps")
            summary.rename(self.folder / f"summary_{steps if isinstance(steps, int) else step}.json")
        if others:
            _write(self.folder / stretches.NAME, stretches.record(self._told(ENVIRONMENT, "began"), others))
        if begun:
            _write(self.folder / SETTINGS, self.config.to_yaml())  # whatever has become of the file

    def logger(self, step: int, synced: Mapping[str, str], config: RunConfig, stream: TextIO | None) -> RunLogger:
        """Open what is recorded after `step`; `synced` is what `RunLogger.sync` returned then."""
        if not self._ranks.is_first:
            return Silence()
        steps, logging = config.training.steps, config.logging
        return RunLogger(
            self.folder, total_steps=steps, config=logging, initial_step=step, synced=synced, stream=stream
        )

    def save(
        self, name: str, *, step: int, model: CharLM, corpus: Corpus, training_state: dict[str, Any] | None
    ) -> None:
        """Write a checkpoint; the one before it is kept as its spare, if such a one has any.

        Raises:
            RunFailed: it cannot be written.
        """
        if self._ranks.is_first:
            spare = run_folder.SPARES.get(name)
            checkpoint.save(
                self.folder / name,
                step=step,
                model=model,
                tokenizer_json=corpus.tokenizer.to_json(),
                config_yaml=self.config.to_yaml(),
                training_state=training_state,
                text=corpus.identity,
                keep=self.folder / spare if spare else None,
            )

    def write_summary(self, summary: dict[str, Any]) -> None:
        if self._ranks.is_first:
            write_json(self.folder / SUMMARY, summary)

    def failure(self, reason: str) -> RunFailed:
        """Return the error for a run that cannot go on; it tells what is left of it."""
        saved = run_folder.has_checkpoint(self.folder)
        left = "the last checkpoint is intact" if saved else "there is no checkpoint yet"
        return RunFailed(f"{self.folder}: {reason}; {left}")


def told(path: Path, key: str) -> Any:
    """Return what a small file of a run says, or None if it cannot be read."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return json.loads(path.read_text(encoding="utf-8")).get(key)
    return None


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a small file so that it is there whole or not at all."""
    _write(path, json.dumps(data, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    files.replace(path, methodcaller("write", text.encode()))


def _environment(device: torch.device) -> dict[str, Any]:
    return {
        "rnnsparse": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
