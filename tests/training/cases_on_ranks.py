"""Runs on two ranks; a program that torchrun starts for test_distributed.py.

`cases_on_ranks.py FOLDER` makes all runs that need no process of their own in FOLDER, and writes what the ranks saw.
`cases_on_ranks.py killed ARGUMENTS` is `rnnsparse train ARGUMENTS`, of which torchrun's first attempt loses rank 0.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rnnsparse.cli import main
from rnnsparse.config import RunConfig, parse_config
from rnnsparse.errors import RunFailed, UserError
from rnnsparse.sparsity.method import METHODS
from rnnsparse.training.run.interrupts import Interrupted
from rnnsparse.training.step.distributed import Ranks, join_ranks
from rnnsparse.training.step.learner import Learner
from rnnsparse.training.step.nonfinite import Diverged
from rnnsparse.training.train import prepare
from rnnsparse.training.trainer import Trainer
from tests.sparsity.test_methods import CONTRACT
from tests.training.test_nonfinite import spoil

TEXT = "pack my box with five dozen liquor jugs. the quick brown fox jumps over the lazy dog, ünd ein ß.\n" * 20
# Methods that update every other step, until the share 0.8 of training, do so 10 times.
STEPS = 26
STOPPED_AFTER = 11  # between two updates
BASE: dict[str, Any] = {
    "data": {"source": "text", "tokenizer": "char"},
    "model": {"embedding_dim": 4, "hidden_size": 6},
    "training": {
        "steps": STEPS,
        "batch_size": 4,
        "sequence_length": 5,
        "reset_probability": 0.1,
        "learning_rate": 1e-2,
        "precision": "fp64",
    },
    "evaluation": {"interval": STEPS, "lanes": 3, "priming": 4, "symbols": 60},
    "logging": {"interval": 1, "tensorboard": False, "pictures": None},
}
# Every method in both executions, with one cell in the first and the other in the second.
SAME = [
    (method, ("gru", "lstm")[(number + (execution == "masked") + 1) % 2], execution)
    for number, method in enumerate(CONTRACT)
    for execution in ("masked", "sparse")
    if (execution == "masked" or METHODS[method]().works_sparse) and not METHODS[method].recipe
]
RESUMED = ["rigl", "snfs", "scout", "blocks", "taught"]  # the last one by the first
# Two layers, so that dropout draws numbers; two batches per step.
WITH_DROPOUT = ["model.num_layers=2", "model.dropout=0.3", "training.accumulate=2", "training.steps=12"]


def config_in(folder: Path, name: str, method: str = "rigl", *overrides: str) -> RunConfig:
    text = folder / "text.txt"
    if not text.exists():
        text.write_text(TEXT, encoding="utf-8")
    data = BASE | {"run": {"dir": str(folder / name)}, "sparsity": {"method": method, "sparsity": 0.6}}
    data["sparsity"] |= CONTRACT[method]
    data["data"] = BASE["data"] | {"path": str(text), "cache": str(folder / "cache")}
    return parse_config(data, "c.yaml", overrides)


def same_configs(folder: Path, ranks: int) -> Iterator[RunConfig]:
    for method, cell, execution in SAME:
        shape = [f"model.cell={cell}", f"model.execution={execution}"]
        shape += ["sparsity.block_rows=2"] if cell == "lstm" else []
        yield config_in(folder, f"same/{method}-{cell}-{execution}/{ranks}", method, *shape)


def resumed_config(folder: Path, place: str, name: str) -> RunConfig:
    if name == "taught":
        teacher = [f"training.teacher={folder / 'undisturbed/rigl'}", "training.teacher_weight=0.5"]
        return config_in(folder, f"{place}/taught", "static", *teacher)
    if name == "blocks":
        return config_in(folder, f"{place}/blocks", "scout", "sparsity.block_rows=2")
    return config_in(folder, f"{place}/{name}", name)


def is_last(trainer: Trainer) -> bool:
    return trainer.ranks.rank == trainer.ranks.world_size - 1


def stopped(trainer: Trainer, after: int = STOPPED_AFTER) -> None:
    """Let its last rank, and no other, be asked to stop during one step."""
    take_step = trainer.learner.take_step

    def step() -> dict[str, Any]:
        if trainer.step + 1 == after and is_last(trainer):
            signal.raise_signal(signal.SIGINT)
        return take_step()

    trainer.learner.take_step = step  # type: ignore[method-assign]


def spoiled(trainer: Trainer) -> None:
    """Let the gradients of its last rank, and no other's, be not finite at two steps, an update one of them."""
    if is_last(trainer):
        spoil(trainer.learner, "gradient", 3, 6)


def undisturbed(trainer: Trainer) -> None:
    pass


def spoiled_config(folder: Path, ranks: int) -> RunConfig:
    settings = ["model.num_layers=2", "training.skip_bad_batches=1", "training.steps=12"]
    return config_in(folder, f"spoiled/{ranks}", "scout", *settings)


def train(
    config: RunConfig,
    ranks: Ranks | None = None,
    disturb: Callable[[Trainer], None] = undisturbed,
    *,
    resume: bool = False,
) -> str | None:
    """Train; return why it stopped early, if so."""
    try:
        trainer = prepare(config, resume=resume, ranks=ranks, stream=io.StringIO())
        disturb(trainer)
        trainer.train()
    except Interrupted as error:
        return str(error)
    return None


def all_cases(folder: Path, ranks: Ranks) -> None:
    torch.set_num_threads(1)
    saw: dict[str, Any] = {}
    for config in same_configs(folder, ranks=2):
        train(config, ranks)

    for name in RESUMED:
        train(resumed_config(folder, "from_one", name), ranks, resume=True)
        saw[f"stopped {name}"] = train(resumed_config(folder, "from_two", name), ranks, stopped)

    for method in ("rigl", "scout"):
        train(config_in(folder, f"through/{method}", method, *WITH_DROPOUT), ranks)
        config = config_in(folder, f"stopped/{method}", method, *WITH_DROPOUT)
        for after in (3, 8):
            saw[f"stopped {method} {after}"] = train(config, ranks, partial(stopped, after=after), resume=after > 3)
        train(config, ranks, resume=True)

    train(spoiled_config(folder, ranks=2), ranks, spoiled)
    learner = prepare(config_in(folder, "lost"), ranks=ranks).learner
    if ranks.rank == 1:
        learner.state[0, 0, 1] = torch.nan
    try:
        learner.take_step()
    except Diverged as error:
        saw["lane lost"] = str(error)

    ranks.seed_dropout(seed=1, step=2)
    saw["random"] = torch.rand(3).tolist()

    trainer = prepare(config_in(folder, "differs"), ranks=ranks)
    weight = trainer.model.sparse_weights()["output"]
    if ranks.rank == 1:
        weight.connect(torch.arange(weight.connections))
    try:
        trainer.save()
    except RunFailed as error:
        saw["topologies differ"] = str(error)

    try:
        prepare(config_in(folder, "divided", "rigl", "training.batch_size=5"), ranks=ranks)
    except UserError as error:
        saw["lanes do not divide"] = str(error)

    everyone = ranks.gather(saw)
    if ranks.is_first:
        (folder / "saw.json").write_text(json.dumps(everyone))


def killed(arguments: list[str]) -> int:
    """Train, but let rank 0 be killed in the middle of step 5 if this is the first attempt."""
    take_step = Learner.take_step

    def step(self: Learner) -> dict[str, float | int]:
        if (self.step, self.ranks.rank) == (4, 0) and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return take_step(self)

    Learner.take_step = step  # type: ignore[method-assign]
    return main(["train", *arguments])


if __name__ == "__main__":
    if sys.argv[1] == "killed":
        raise SystemExit(killed(sys.argv[2:]))
    with join_ranks() as joined:
        all_cases(Path(sys.argv[1]), joined)
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    (Path(sys.argv[1]) / f"threads_of_{joined.rank}.json").write_text(json.dumps(threads))
