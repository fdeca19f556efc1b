"""The contract of a sparse-training method, and the registry of all of them."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from rnnsparse.errors import UserError, suggest
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.randomness import generator_for
from rnnsparse.sparsity.group import Group


@dataclass(frozen=True)
class Moment:
    """When a method acts: optimizer step `step` (counted from 1) of `total_steps`, in the run with `seed`."""

    step: int
    total_steps: int
    seed: int

    def generator(self, group: Group) -> torch.Generator:
        """Return the generator for random choices of this step in this group, the same on all ranks."""
        return generator_for(self.seed, "update", self.step, group.name)


@dataclass(kw_only=True)
class Method(ABC):
    """Decides which connections exist. Its fields are its hyper-parameters.

    A method never touches values or optimizer state: it returns topologies, and the sparsifier moves everything along.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    # How many connections a group starts with: its budget, or every position.
    starts: ClassVar[Literal["sparse", "dense"]] = "sparse"
    # At which steps the dense gradient is needed; "always" costs dense work and memory at every step.
    dense_gradient: ClassVar[Literal["never", "at updates", "always"]] = "never"

    def updates_at(self, moment: Moment) -> bool:
        """Return whether the topology changes at this step."""
        return False

    def needs_dense_gradient(self, moment: Moment) -> bool:
        """Return whether this step's backward pass has to yield dense gradients."""
        return self.dense_gradient == "at updates" and self.updates_at(moment)

    @property
    def replaces_optimizer_step(self) -> bool:
        """Whether an update takes the place of that batch's optimizer step, instead of following it."""
        return False

    def observe(self, weights: Sequence[SparseWeight]) -> None:  # noqa: B027  (most methods do not look)
        """See the dense gradients of a step that had them, before anything else happens at that step."""

    def update(self, groups: Sequence[Group], moment: Moment) -> list[Tensor]:
        """Return the new sorted positions of each group."""
        return [group.indices() for group in groups]

    def training_flops(self, sparse: float, dense: float, steps: int) -> float:
        """Return FLOPs of training per character, averaged over a run of `steps` steps (RigL, appendix H).

        Args:
            sparse, dense: FLOPs of one forward pass per character, with the budgeted and with all connections.
        """
        return 3 * sparse

    def state_dict(self) -> dict[str, Any]:
        """Return what the method remembers between steps, as plain data and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert not state, f"{self.name} remembers nothing, but the checkpoint holds {sorted(state)}"


METHODS: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def register(name: str) -> Callable[[M], M]:
    """Make a method available as `sparsity.method: name`."""

    def decorate(method: M) -> M:
        assert name not in METHODS, f"two methods are called {name}"
        method.name = name
        METHODS[name] = method
        return method

    return decorate


def method_class(name: str) -> type[Method]:
    """Return the method registered as `name`.

    Raises:
        UserError: there is none.
    """
    if name not in METHODS:
        raise UserError(
            f"sparsity.method: no method is called {name!r}{suggest(name, METHODS)}; there are {listed(METHODS)}"
        )
    return METHODS[name]


def listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
