"""The sections `start` and `training`: what a run starts with, and how that is trained.

All step counts are optimizer steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval, Le
from typing_extensions import Doc

from rnnsparse.errors import UserError
from rnnsparse.settings.marks import (
    Changeable,
    ChosenByRecipe,
    Incidental,
    KeptOnRewind,
    Limit,
    OnlyWith,
    OnOneMachine,
    OtherRun,
    PathName,
    Steps,
)
from rnnsparse.settings.setting import marked

# The range of an optional number belongs to the number, not to the union: None cannot be compared.
PositiveFloat = Annotated[float, Gt(0)]
PositiveInt = Annotated[int, Ge(1)]
DecayRate = Annotated[float, Interval(ge=0, lt=1)]
OfAdam = OnlyWith("optimizer", ("adam", "adamw"))


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """What a new run takes over from other runs: each the folder of a run (its last checkpoint) or of a checkpoint."""

    topology: Annotated[
        PathName | None,
        OtherRun,
        ChosenByRecipe,
        Doc(
            "run or checkpoint whose connections the run starts with, in the place of random ones; they decide the "
            "budgets, and sparsity.sparsity, distribution and overrides do not"
        ),
    ] = None
    weights: Annotated[
        PathName | None,
        OtherRun,
        ChosenByRecipe,
        Doc("run or checkpoint whose values it starts with; its connections too, unless start.topology has fewer"),
    ] = None
    rewind: Annotated[
        PathName | None,
        OtherRun,
        ChosenByRecipe,
        Doc(
            "checkpoint to go on from as that run did, but with the connections of start.topology only: values, "
            "optimizer, step, place in the text, recurrent state, random numbers"
        ),
    ] = None
    add: Annotated[
        bool,
        Doc(
            "with start.weights: random connections are added, with values of zero, until there are as many as "
            "sparsity.method begins with; at first the network computes what it did"
        ),
    ] = False

    def __post_init__(self) -> None:
        if self.add and (self.weights is None or self.topology is not None):
            raise UserError(
                "start.add: connections are added to those of start.weights, without start.topology; "
                "name such a run, or set start.add to false"
            )
        if self.weights is not None and self.rewind is not None:
            raise UserError(
                "start.weights: start.rewind has values of its own to start with; set one of the two to null"
            )

    @property
    def is_elsewhere(self) -> bool:
        """Whether a run starts from another one at all."""
        return bool(self.runs)

    @property
    def runs(self) -> dict[str, str]:
        """The other runs, by what is taken from them."""
        named = {name: getattr(self, name) for name in marked(StartConfig, OtherRun)}
        return {name: path for name, path in named.items() if path is not None}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the parameters are trained: length, batches, optimizer, numbers, device."""

    steps: Annotated[int, Ge(1), Steps, Changeable, Doc("optimizer steps of the whole run")] = 2000
    multiplier: Annotated[
        float, Gt(0), Le(1e6), Doc("extended training: scales every number of steps in `training` and of the method")
    ] = 1.0
    batch_size: Annotated[int, Ge(1), KeptOnRewind, Doc("lanes of text read side by side, per micro-batch")] = 32
    sequence_length: Annotated[int, Ge(1), Doc("symbols per lane and step, the reach of truncated backpropagation")] = (
        128
    )
    reset_probability: Annotated[
        float,
        Interval(ge=0, le=1),
        Doc("how likely a lane is to begin a step with a recurrent state of zeros, as evaluation and sampling do"),
    ] = 0.01
    learning_rate: Annotated[float, Gt(0), Le(1e38), Changeable, Doc("the peak: reached after the warm-up")] = 2e-3
    lr_schedule: Annotated[
        Literal["constant", "cosine"], Changeable, Doc("what the learning rate does after the warm-up")
    ] = "cosine"
    warmup: Annotated[
        int, Ge(0), Steps, Changeable, Doc("steps over which the learning rate rises linearly to its peak")
    ] = 0
    final_learning_rate: Annotated[
        float,
        Interval(ge=0, le=1),
        Changeable,
        OnlyWith("lr_schedule", ("cosine",)),
        Doc("where the cosine ends, as a fraction of learning_rate"),
    ] = 0.1
    optimizer: Annotated[
        Literal["adam", "adamw", "sgd", "sntasgd"],
        KeptOnRewind,
        Doc(
            "adam: weight_decay is L2, part of the gradient; adamw: decoupled; sgd: with momentum and L2; "
            "sntasgd: plain SGD with L2, whose averages, once validation starts them, are evaluated and saved"
        ),
    ] = "adam"
    betas: Annotated[
        tuple[DecayRate, DecayRate], OfAdam, Doc("adam, adamw: decay rates of the first and the second moment")
    ] = (0.9, 0.999)
    epsilon: Annotated[float, Gt(0), OfAdam, Doc("adam, adamw: added to the root of the second moment")] = 1e-8
    connection_steps: Annotated[
        bool,
        KeptOnRewind,
        OfAdam,
        Doc("adam, adamw: count the steps of each connection from its growth, not from the start of the run"),
    ] = False
    connection_warmup: Annotated[
        int,
        Ge(0),
        Steps,
        OnlyWith("connection_steps"),
        Doc("with connection_steps: steps over which a connection grown later rises to its full step"),
    ] = 0
    momentum: Annotated[
        DecayRate, OnlyWith("optimizer", ("sgd",)), Doc("sgd: decay rate of the velocity, 0 for none")
    ] = 0.9
    nonmonotone: Annotated[
        int,
        Ge(0),
        OnlyWith("optimizer", ("sntasgd",)),
        Doc("sntasgd: averaging starts when validation is worse than its best, this many last evaluations left out"),
    ] = 5
    weight_decay: Annotated[
        float,
        Ge(0),
        Le(1e38),
        Changeable,
        Doc("pull of every existing connection, bias and gain towards zero, 0 for none"),
    ] = 0.0
    grad_clip: Annotated[
        PositiveFloat | None,
        Changeable,
        Doc("largest gradient norm over all parameters together, null for no clipping"),
    ] = 10.0
    skip_bad_batches: Annotated[
        int,
        Ge(0),
        Limit,
        Doc(
            "batches in a row that may be left out because loss or gradients are not finite; the next one ends the run"
        ),
    ] = 0
    precision: Annotated[
        Literal["fp32", "tf32", "bf16", "fp16", "fp64"],
        KeptOnRewind,
        Doc(
            "numbers of forward and backward; bf16 and fp16 keep the parameters in fp32, and with tf32 all is fp32 but "
            "that a GPU rounds what it multiplies to 10 bits"
        ),
    ] = "fp32"
    accumulate: Annotated[int, Ge(1), Doc("micro-batches whose gradients are averaged into one optimizer step")] = 1
    teacher: Annotated[
        PathName | None,
        OtherRun,
        ChosenByRecipe,
        Doc("run or checkpoint whose predictions are learned beside the text (distillation), null for none"),
    ] = None
    teacher_weight: Annotated[
        float,
        Interval(ge=0, le=1),
        OnlyWith("teacher"),
        Doc("share a of the teacher in the loss a T^2 KL(teacher, model) + (1 - a) CE"),
    ] = 0.9
    teacher_temperature: Annotated[
        float,
        Gt(0),
        Le(1e3),
        OnlyWith("teacher"),
        Doc("T: what the logits of teacher and model are divided by in the divergence KL"),
    ] = 5.0
    early_stopping: Annotated[
        PositiveInt | None,
        Limit,
        ChosenByRecipe,
        Doc("stop after this many evaluations without improvement, null for never"),
    ] = None
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Incidental, Doc("auto: the first CUDA device if there is one, else the CPU")
    ] = "auto"
    threads: Annotated[
        Annotated[int, Interval(ge=1, le=1024)] | None, OnOneMachine, Doc("CPU threads, null for PyTorch's choice")
    ] = None
