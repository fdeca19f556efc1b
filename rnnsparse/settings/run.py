"""The sections `run`, `evaluation`, `logging` and `checkpoint`: what a run is called, measures, tells and saves.

Their step counts are optimizer steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le, Lt
from typing_extensions import Doc

from rnnsparse.settings.marks import (
    Changeable,
    Incidental,
    OfOneRun,
    OnlyWith,
    OnOneMachine,
    PathName,
    Repetition,
    UpTo,
)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What the run is called, where it goes, and its seed."""

    name: Annotated[
        str | None, Incidental, OfOneRun, Doc("name of the run; the configuration's file name by default")
    ] = None
    dir: Annotated[PathName | None, OnOneMachine, OfOneRun, Doc("folder of the run; checkpoints/NAME by default")] = (
        None
    )
    seed: Annotated[
        int, Ge(0), Lt(2**63), Repetition, Doc("decides topology, initial values and everything random")
    ] = 0


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How validation text is read, and how often."""

    interval: Annotated[int, Ge(1), Changeable, Doc("training steps between two evaluations")] = 500
    lanes: Annotated[
        int, Ge(1), Le(1 << 16), Doc("stretches of the text that are read side by side; 1 reads it as one stream")
    ] = 32
    priming: Annotated[
        int, Ge(0), Doc("symbols before its stretch that each lane but the first reads without scoring them")
    ] = 256
    sequence_length: Annotated[
        int, Ge(1), Le(1 << 16), Doc("symbols per lane and forward call; sets memory and speed, not the result")
    ] = 128
    symbols: Annotated[
        Annotated[int, Ge(2)] | None,
        Doc("during training, validate on the first so many symbols only, null for all"),
    ] = None


OfSamples = (Incidental, OnlyWith("pictures"), OnlyWith("tensorboard"))


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What a run tells about itself, and how often."""

    interval: Annotated[int, Ge(1), Incidental, Doc("steps between two lines of metrics.jsonl and of the progress")] = (
        50
    )
    tensorboard: Annotated[bool, Incidental, Doc("write scalars, samples and pictures to RUN/tensorboard as well")] = (
        True
    )
    pictures: Annotated[
        Annotated[int, Ge(1)] | None,
        Incidental,
        Doc("steps between weight histograms, connectivity images and text samples, null for none"),
    ] = 500
    sample_length: Annotated[int, Ge(1), *OfSamples, Doc("symbols of each text sample")] = 200
    sample_prompt: Annotated[str, *OfSamples, Doc("what each text sample continues")] = ""

    def tells_of(self, step: int, last: int) -> bool:
        """Return whether the metrics of a step are recorded; those of the `last` one always are."""
        return step % self.interval == 0 or step == last


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run saves itself, besides at its end and on an interrupt."""

    interval: Annotated[int, Ge(1), Incidental, Doc("steps between two saves of RUN/last")] = 1000
    keep: Annotated[
        tuple[Annotated[int, Ge(0)], ...],
        Incidental,
        UpTo("training.steps", "the last step"),
        Doc("steps after which RUN/step_N is saved and kept; 0: before the first one"),
    ] = ()
