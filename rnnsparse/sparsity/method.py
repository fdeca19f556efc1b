"""The contract of a sparse-training method, and the registry of all of them."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from rnnsparse.errors import UserError, suggest
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.randomness import generator_for
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity.allocation import Budget, draw_uniformly
from rnnsparse.sparsity.group import Group


@dataclass(frozen=True)
class StepContext:
    """Where in a run a method acts: at optimizer step `step` (counted from 1) of `total_steps`, with `seed`."""

    step: int
    total_steps: int
    seed: int
    # The optimizer, for methods that read its moments.
    optimizer: torch.optim.Optimizer | None = None

    def at(self, step: int) -> StepContext:
        """Return another step of the same run."""
        return replace(self, step=step)

    def generator(self, group: Group, purpose: str = "update") -> torch.Generator:
        """Return the generator for random choices of this step in this group, the same on all ranks."""
        return generator_for(self.seed, purpose, self.step, group.name)

    def momentum(self, group: Group) -> Tensor:
        """Return the optimizer's running average of each value's gradient; zeros before its first step."""
        return self._average(group, "momenta", keeps_momenta, "exp_avg", "momentum_buffer")

    def second_moment(self, group: Group) -> Tensor:
        """Return the optimizer's running average of each value's squared gradient; zeros before its first step."""
        return self._average(group, "second moments", keeps_second_moments, "exp_avg_sq")

    def _average(
        self, group: Group, what: str, are_kept: Callable[[torch.optim.Optimizer], bool], *names: str
    ) -> Tensor:
        """Return what the optimizer keeps for each value of a group, under the first of these names that it knows."""
        if self.optimizer is None:
            raise ValueError(f"there is no optimizer, which keeps the {what}")
        if not are_kept(self.optimizer):
            raise ValueError(f"the optimizer keeps no {what}")
        pieces = []
        for part in group.parts:
            values = part.weight.values
            state = self.optimizer.state.get(values, {})
            found = next((state[name] for name in names if name in state), None)
            if found is None and state:
                raise ValueError(f"the optimizer keeps no {what}, but {', '.join(state)}")
            pieces.append(part.of(torch.zeros_like(values) if found is None else found))
        return torch.cat(pieces)


def keeps_momenta(optimizer: torch.optim.Optimizer) -> bool:
    return "betas" in optimizer.defaults or bool(optimizer.defaults.get("momentum"))


def keeps_second_moments(optimizer: torch.optim.Optimizer) -> bool:
    return "betas" in optimizer.defaults


@dataclass(kw_only=True)
class Method(ABC):
    """Decides which connections exist. Its fields are its hyper-parameters.

    A method never touches values or optimizer state: it returns topologies, and the sparsifier moves everything along.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    # Whether the run is dense throughout, whatever the budgets say.
    stays_dense: ClassVar[bool] = False
    # Whether so much of the run has so many connections that it is better computed as a dense one.
    mostly_dense: ClassVar[bool] = False
    # Whether counts depend on every update, so that one whose step overflowed has to be made up for at the next step.
    makes_up_updates: ClassVar[bool] = False
    # Whether what it does at a step depends on how many there are to be, by a field `stop` that is a share of them.
    depends_on_length: ClassVar[bool] = False
    # At which steps the dense gradient is needed; "always" costs dense work and memory at every step.
    dense_gradient: ClassVar[Literal["never", "at updates", "always"]] = "never"

    # Settings of other sections, by section.key, that are there without being set.
    provides: ClassVar[frozenset[str]] = frozenset()

    # The module of rnnsparse.recipes that trains it, if it takes several runs; each of these behaves as written here.
    recipe: ClassVar[str] = ""

    def warnings(self, steps: int) -> Iterator[str]:
        """Yield a line for each of its settings that keeps it from doing anything in a run of `steps` steps."""
        return iter(())

    @property
    def shifts_budgets(self) -> bool:
        """Whether connections may move from group to group, so that no plan knows how many each has."""
        return False

    @property
    def needs_momenta(self) -> bool:
        """Whether the optimizer has to keep running averages of gradients."""
        return False

    @property
    def needs_second_moments(self) -> bool:
        """Whether the optimizer has to keep running averages of squared gradients."""
        return False

    def model_config(self, config: ModelConfig, budget: BudgetConfig, vocab_size: int) -> ModelConfig:
        """Return the model that is trained in the place of the configured one."""
        return config

    @property
    def works_sparse(self) -> bool:
        """Whether time and memory of a step can stay those of the connections."""
        return self.dense_gradient != "always"

    def require_groups(self, groups: Sequence[Group], granularity: str) -> None:
        """Make sure that the groups which its settings name are there.

        Raises:
            UserError: one is not.
        """
        return

    def initial_connections(self, budget: Budget) -> int:
        """Return how many random connections a group starts with."""
        return budget.connections

    def draw_connections(self, group: Group, count: int, generator: torch.Generator) -> Tensor:
        """Return `count` sorted positions of a group for a run to begin with."""
        return draw_uniformly(group, count, generator)

    def pool_size(self, budget: Budget) -> int:
        """Return at how many positions of a group, its pool, gradients are summed over steps."""
        return 0

    @property
    def pool_share(self) -> float:
        """The share of steps at which there are pools, while there are updates.

        As in the papers' averages, these are taken to go on to the end.
        """
        return 0.0

    def earlier_runs(self, budgets: Sequence[Budget], steps: int) -> list[tuple[int, list[int]]]:
        """Return the runs that a recipe makes before the last one, each as its steps and the connections of its groups.

        Args:
            budgets: of the last run.
            steps: of a whole run.
        """
        return []

    def updates_at(self, context: StepContext) -> bool:
        """Return whether the topology changes at this step."""
        return False

    def needs_dense_gradient(self, context: StepContext) -> bool:
        """Return whether this step's backward pass has to yield dense gradients."""
        return self.dense_gradient == "at updates" and self.updates_at(context)

    @property
    def replaces_optimizer_step(self) -> bool:
        """Whether an update takes the place of that batch's optimizer step, instead of following it."""
        return False

    def draw_pools(self, groups: Sequence[Group], context: StepContext) -> list[Tensor] | None:
        """Return sorted positions of each group whose gradients are summed from this step to the next update.

        None goes on with the pools that there are, if any.
        """
        return None

    @property
    def watches_factors(self) -> bool:
        """Whether some steps need what only a layer's own passes see: the two factors of its weights' gradients."""
        return False

    def needs_marginals(self, context: StepContext) -> bool:
        """Return whether pools are drawn right after this step, by the marginals of its gradients."""
        return False

    def observe(self, weights: Sequence[SparseWeight]) -> None:  # noqa: B027  (most methods do not look)
        """See the dense gradients of a step that had them, before anything else happens at that step."""

    def update(self, budgets: Sequence[Budget], context: StepContext) -> list[Tensor]:
        """Return the new sorted positions of each group."""
        return [budget.group.indices() for budget in budgets]

    def final_counts(self, budgets: Sequence[Budget], context: StepContext) -> list[int]:
        """Return how many connections each group ends with if no batch is left to make up for an update."""
        return [budget.connections for budget in budgets]

    def mean_forward_flops(self, sparse: float, first: float, steps: int, taken: int) -> float:
        """Return FLOPs of one forward pass per character, averaged over the first `taken` steps of a run of `steps`.

        Args:
            sparse, first: FLOPs of one forward pass per character, with the budgeted connections and with those that
                a run begins with (`initial_connections`).
        """
        return sparse

    def training_flops(self, sparse: float, dense: float, steps: int) -> float:
        """Return FLOPs of training per character, averaged over a run of `steps` steps (RigL, appendix H).

        Without those of the gradients in pools.

        Args:
            sparse, dense: FLOPs of one forward pass per character, by `mean_forward_flops` and with all connections.
        """
        return 3 * sparse

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return what the method remembers between steps: tensors by name, under a name for each kind of them."""
        return {}

    def state_shapes(self, weights: Iterable[SparseWeight]) -> dict[str, dict[str, Tensor]]:
        """Return what `state_dict` may hold at any step, as tensors without memory: what a file is checked by."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            raise ValueError(f"{self.name} remembers nothing, but the checkpoint holds {sorted(state)}")


METHODS: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def register(name: str) -> Callable[[M], M]:
    """Make a method available as `sparsity.method: name`."""

    def decorate(method: M) -> M:
        if name in METHODS:
            raise ValueError(f"two methods are called {name}")
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
