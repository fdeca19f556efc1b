"""Lottery tickets (Frankle & Carbin 2019; Frankle et al. 2020) and KD tickets (Ma et al. 2021).

    RUN/rounds/0            the dense run, with the checkpoint step_K that all others go on from
    RUN/rounds/r            an ordinary run that starts from the ticket of round r - 1, rewound to step K
    RUN/rounds/r/ticket     what is left of its model without the smallest weights: a checkpoint to start from
    RUN                     the same for the last ticket, which has exactly the budgets

Every file is written whole or not at all, so an interrupted recipe goes on by looking at what is there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from rnnsparse.config import RunConfig, load_config
from rnnsparse.errors import UserError
from rnnsparse.settings.training import StartConfig
from rnnsparse.sparsity.group import weight_topologies
from rnnsparse.sparsity.methods.dense import Dense
from rnnsparse.sparsity.methods.kd_ticket import KDTicket
from rnnsparse.sparsity.methods.lottery import Lottery
from rnnsparse.sparsity.methods.static import Static
from rnnsparse.sparsity.selection import rewire
from rnnsparse.storage import atomic, checkpoint
from rnnsparse.training.banner import banner
from rnnsparse.training.build import empty_model, restore, vocabulary_size
from rnnsparse.training.device import CPU, training_device
from rnnsparse.training.run import lock, run_folder
from rnnsparse.training.run.record import Record
from rnnsparse.training.step.distributed import Ranks
from rnnsparse.training.train import prepare


@dataclass(frozen=True)
class Rounds:
    """All runs of a recipe: which configuration each has, and how many connections its groups."""

    config: RunConfig
    counts: list[list[int]]
    block_rows: list[int]  # of each group

    @property
    def last(self) -> int:
        return len(self.counts) - 1

    def entries(self, number: int) -> int:
        """Return how many numbers the connections of a round have."""
        return sum(count * rows for count, rows in zip(self.counts[number], self.block_rows, strict=True))

    def folder(self, number: int) -> Path:
        return self.config.folder if number == self.last else self.config.folder / "rounds" / str(number)

    def ticket(self, number: int) -> Path:
        """Return the folder of the ticket that is drawn after a round."""
        return self.folder(number) / "ticket"

    def run(self, number: int) -> RunConfig:
        """Return what to train in a round."""
        config, method = self.config, self.config.method
        assert isinstance(method, Lottery)
        rewind_step = method.rewind_step(config.training.steps)
        if number < self.last:
            where = replace(config.run, name=f"{config.run.name}-{number}", dir=str(self.folder(number)))
            config = replace(config, run=where, written_method=Static() if number else Dense())
        elif isinstance(method, KDTicket):
            training = replace(config.written_training, teacher=str(self.folder(0)))
            config = replace(config, written_training=training)
        if number == 0:
            kept = (*config.checkpoint.keep, rewind_step)
            return replace(config, checkpoint=replace(config.checkpoint, keep=kept))
        rewind = self.folder(0) / f"step_{rewind_step}"
        return replace(config, start=StartConfig(topology=str(self.ticket(number - 1)), rewind=str(rewind)))


def train(
    config: RunConfig, *, resume: bool = False, tell: Callable[[str], None], stream: TextIO | None = None
) -> dict[str, Any]:
    """Train all rounds and return the summary of the last one, whose training FLOPs are those of all.

    Args:
        config: one with the method `lottery` or `kd_ticket`.
        resume: go on with what is in the run's folder.
        tell: takes the lines that say what is trained now.
        stream: where progress goes, by default stderr.

    Raises:
        UserError, Interrupted, RunFailed: as the trainer of an ordinary run.
    """
    rounds = plan(config)
    if resume:
        if not config.folder.joinpath("config.yaml").is_file():
            raise UserError(f"{config.folder}: run.dir holds no run to resume; train without --resume to start it")
        run_folder.refuse_another_run(load_config(config.folder / "config.yaml"), config)
    else:
        run_folder.claim(config.folder)
        run_folder.make(config.folder)
        Record(config, Ranks()).begin(training_device(config.training))
    with lock.held(config.folder) as warning:
        if warning:
            tell(f"warning: {warning}")
        for number in range(rounds.last):
            if atomic.existing(rounds.ticket(number)) is None:
                _train_round(rounds, number, tell, stream)
                draw_ticket(rounds, number)
    return _train_round(rounds, rounds.last, tell, stream)


def plan(config: RunConfig) -> Rounds:
    """Return the rounds that a configuration takes.

    Raises:
        UserError: its budgets cannot be met, or leave nothing to prune.
    """
    if not isinstance(config.method, Lottery):
        raise ValueError(f"sparsity.method: {config.method.name} is no recipe of rounds")
    _, budgets = empty_model(config, vocabulary_size(config.data), CPU)
    counts = config.method.rounds([b.group.positions for b in budgets], [b.connections for b in budgets])
    if len(counts) == 1:
        raise UserError(
            f"sparsity.sparsity: {config.budget.sparsity} leaves nothing to prune; raise it, or use "
            f"sparsity.method=dense"
        )
    return Rounds(config, counts, [b.group.block_rows for b in budgets])


def _train_round(rounds: Rounds, number: int, tell: Callable[[str], None], stream: TextIO | None) -> dict[str, Any]:
    folder = rounds.folder(number)
    resume = run_folder.has_checkpoint(folder)
    if not resume and number < rounds.last and folder.exists():
        # Stopped before its first checkpoint: there is nothing to go on from.
        shutil.rmtree(folder)
    trainer = prepare(
        rounds.run(number), resume=resume, stream=stream, recorded=rounds.config if number == rounds.last else None
    )
    tell(
        f"round       {number} of {rounds.last} (0 is dense), method {rounds.config.method.name}: "
        f"{rounds.entries(number):,} of {rounds.entries(0):,} connections"
    )
    tell("\n".join(banner(trainer)))
    return trainer.train()


def draw_ticket(rounds: Rounds, number: int) -> None:
    """Write what a round leaves for the next one: in each group the connections with the largest weights."""
    trained, method = restore(rounds.folder(number), CPU), rounds.config.method
    assert isinstance(method, Lottery)
    groups = [budget.group for budget in trained.budgets]
    kept = method.ticket(groups, rounds.counts[number + 1])
    for weight, indices in weight_topologies(zip(groups, kept, strict=True)):
        rewire(weight, indices, None)
    next_run = rounds.config if number + 1 == rounds.last else rounds.run(number + 1)
    checkpoint.save(
        rounds.ticket(number),
        step=trained.step,
        model=trained.model,
        tokenizer_json=trained.saved.tokenizer_json,
        config_yaml=next_run.to_yaml(),
        training_state=None,
        text=trained.saved.trained_text(),
    )
