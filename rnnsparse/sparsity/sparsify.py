"""`rnnsparse.sparsify`: a method for the sparse layers of anybody's model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pydantic
import torch
import torch.distributed as dist
from torch import Tensor, nn

import rnnsparse.sparsity.methods  # noqa: F401  (registers them)
from rnnsparse.errors import UserError, suggest
from rnnsparse.nn.initial import draw_values
from rnnsparse.nn.language_model import name_weights
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.randomness import generator_for
from rnnsparse.settings.setting import settings_of
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity.allocation import Budget, allocate, connect_randomly, matches
from rnnsparse.sparsity.blocks import chosen_block_rows
from rnnsparse.sparsity.group import weight_topologies
from rnnsparse.sparsity.method import Method, keeps_momenta, keeps_second_moments, method_class
from rnnsparse.sparsity.methods.small_dense import SmallDense
from rnnsparse.sparsity.selection import draw_absent, keep_largest, rewire
from rnnsparse.sparsity.sparsifier import Sparsifier, left_out_of
from rnnsparse.sparsity.tickets import Tickets

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Values = Literal["reset", "keep"]
Initial = Callable[[Budget], int]  # how many connections a group starts with


def sparsify(
    model: nn.Module,
    method: str | Method,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    sparsity: float = 0.9,
    seed: int = 0,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    block_rows: int | Mapping[str, int] | None = None,
    values: Values | None = None,
    scaler: torch.amp.GradScaler | None = None,
    **settings: Any,
) -> Sparsifier:
    """Give the sparse layers of a model their first connections, and let a method change these while it is trained.

    Weights get names by where they are in the model, such as "encoder.0.recurrent.f" for the forget gate of
    `model.encoder = rnnsparse.LSTM(...)`, or "head" for `model.head = rnnsparse.Linear(...)`. What else the model has,
    PyTorch's own layers for example, stays dense and is listed in the result's `left_out`.

    Methods `lottery` and `kd_ticket` take several rounds of `steps`: see `rounds` of the result.

    Args:
        model: holds layers of rnnsparse (`rnnsparse.convert` makes them of PyTorch's), on any device.
        method: the name of a method or, with settings of its own, a method such as `rnnsparse.RigL(interval=200)`.
        optimizer: over the model's parameters; its state moves with the connections.
        steps: optimizer steps that will be taken: schedules end by them.
        sparsity: the share of positions without a connection, over all layers that are sparsified.
        seed: decides the first connections and all random choices of the method.
        include, exclude: names, prefixes or globs of the weights that are sparsified; the others keep what they have.
        block_rows: how many rows of a gate are connected together: 1, 2, 4, 8 or 16 in recurrent layers, or such
            numbers by name, prefix or glob; by default what each layer was made with.
        values: "reset" draws the first connections at random and their values anew; "keep" starts from the values that
            are there: the largest remain, and connections that are added are zero. By default values are kept by
            methods that start from all connections, and drawn anew in layers that have not been trained.
        scaler: scales losses for half precision; it is stepped and updated by the result's `step`.
        **settings: of the method, if it is given by name, and of the budgets: `distribution` ("erk", "uniform"),
            `granularity` ("gate", "matrix", "cell"), `dense`, `overrides` and `initial_scale`, as in the section
            `sparsity` of a configuration.

    Raises:
        ValueError: an unknown method, name or setting; budgets that cannot be met, or leave a ticket nothing to prune;
            a method that makes another model; layers that have been trained, without `values`; weights that the
            optimizer has not; sparse execution with a method that needs the dense gradient at every step.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise ValueError(f"model: give the module itself; {type(model).__name__} cannot follow changing connections")
    if type(steps) is not int or steps < 1:
        raise ValueError(f"steps={steps}: must be a whole number of optimizer steps, at least 1")
    method, budget = _settings(method, sparsity, settings)
    weights = _selected(name_weights(model), include, exclude)
    _require_trainable(weights, optimizer)
    _require_momenta(method, optimizer)
    as_they_were = [
        (weight.block_rows, weight.indices, weight.values.detach(), weight.is_untrained) for weight in weights
    ]
    try:
        if block_rows is not None:
            _regroup(weights, block_rows, values, optimizer)
        budgets = allocate(weights, budget)
    except (ValueError, UserError):
        for weight, was in zip(weights, as_they_were, strict=True):
            _restore(weight, *was)
        raise
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        _take_from_first_rank(model)
    # The first of several rounds has all connections.
    initial: Initial = (lambda budget: budget.group.positions) if method.recipe else method.initial_connections
    if values is None:
        values = _default_values(initial, budgets, weights, optimizer)
    if not method.works_sparse:
        _mask(model, weights, method)
    if values == "reset":
        connect_randomly(budgets, seed, initial, method.draw_connections)
        for weight in weights:
            optimizer.state.pop(weight.values, None)
            draw_values(weight, seed, budget.initial_scale)
    else:
        _keep(initial, budgets, optimizer, seed)
    kind = Tickets if method.recipe else Sparsifier
    return kind(
        model, method, budgets, optimizer, seed=seed, steps=steps, scaler=scaler, left_out=left_out_of(model, weights)
    )


def _settings(method: str | Method, sparsity: float, settings: Mapping[str, Any]) -> tuple[Method, BudgetConfig]:
    """Return a method and the budgets' settings, both validated."""
    cls = method_class(method) if isinstance(method, str) else type(method)
    if issubclass(cls, SmallDense):
        raise ValueError(f"method {cls.name}: trains another model than this one; build a smaller one, and use dense")
    own, shared = settings_of(cls), settings_of(BudgetConfig)
    taken = [name for name in shared if name not in ("sparsity", "block_rows", "basis", "basis_from")]
    given = [*own] if isinstance(method, str) else []
    if unknown := [name for name in settings if name not in (*given, *taken)]:
        raise ValueError(
            f"{unknown[0]}: unknown setting{suggest(unknown[0], [*given, *taken])}; there are "
            f"{', '.join([*given, *taken])}"
        )
    if isinstance(method, str):
        method = _validated(cls, {name: settings[name] for name in settings if name in own})
    else:
        _validated(cls, {name: getattr(method, name) for name in own})
        method = dataclasses.replace(method)  # what it remembers is of one model
    budget = _validated(BudgetConfig, {"sparsity": sparsity} | {n: settings[n] for n in settings if n in taken})
    if method.stays_dense:
        budget = dataclasses.replace(budget, sparsity=0.0, overrides=dict.fromkeys(budget.overrides, 0.0))
    return method, budget


T = TypeVar("T", bound="DataclassInstance")


def _validated(cls: type[T], settings: Mapping[str, Any]) -> T:
    checked = {}
    for name, value in settings.items():
        try:
            checked[name] = settings_of(cls)[name].adapter.validate_python(value)
        except pydantic.ValidationError as error:
            raise ValueError(f"{name}={value!r}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    return cls(**checked)


def _selected(named: Mapping[str, SparseWeight], include: Sequence[str], exclude: Sequence[str]) -> list[SparseWeight]:
    if not named:
        raise ValueError(
            "model: has no sparse layer; build it of rnnsparse.LSTM, GRU, Linear and Embedding, or make these of "
            "PyTorch's by rnnsparse.convert(model)"
        )

    def matching(patterns: Sequence[str], key: str) -> set[str]:
        found: set[str] = set()
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            hits = {n for n in named if matches(n, pattern)}
            if not hits:
                raise ValueError(
                    f"{key}: no weight is called {pattern!r}{suggest(pattern, named)}; there are {', '.join(named)}"
                )
            found |= hits
        return found

    chosen = matching(include, "include") - matching(exclude, "exclude")
    if not chosen:
        raise ValueError("exclude: leaves no weight to sparsify")
    return [weight for name, weight in named.items() if name in chosen]


def _require_trainable(weights: Sequence[SparseWeight], optimizer: torch.optim.Optimizer) -> None:
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for weight in weights:
        if not weight.values.requires_grad:
            raise ValueError(f"{weight.name}: is frozen, so no method can tell what it needs; leave it out (exclude=)")
        if id(weight.values) not in known:
            raise ValueError(
                f"optimizer: it has not the values of {weight.name}; make it over model.parameters() when the model is "
                "complete, after rnnsparse.convert"
            )


def _require_momenta(method: Method, optimizer: torch.optim.Optimizer) -> None:
    if method.needs_momenta and not keeps_momenta(optimizer):
        raise ValueError(
            f"redistribute='momentum': {type(optimizer).__name__} keeps none as it is set; use Adam, or SGD with it"
        )
    if method.needs_second_moments and not keeps_second_moments(optimizer):
        raise ValueError(
            f"drop_score='saliency': {type(optimizer).__name__} keeps no second moments; use Adam, or 'magnitude'"
        )


def _regroup(
    weights: Sequence[SparseWeight],
    block_rows: int | Mapping[str, int],
    values: Values | None,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Let connections of these weights be blocks of another height: where all exist, or new ones will be drawn."""
    _validated(BudgetConfig, {"block_rows": block_rows})
    for weight, height in chosen_block_rows(weights, block_rows).items():
        if height == weight.block_rows:
            continue
        if values != "reset" and _has_stepped(optimizer, weight):
            raise ValueError(
                f"{weight.name}: the optimizer has a state for connections of {weight.block_rows} rows, not {height}; "
                "make it anew, or say values='reset'"
            )
        is_untrained = weight.is_untrained
        if not weight.is_full and (values == "reset" or (values is None and is_untrained)):
            weight.connect(weight.indices[:0])
        weight.set_block_rows(height)
        if is_untrained:
            weight.mark_untrained()


def _restore(weight: SparseWeight, block_rows: int, indices: Tensor, values: Tensor, untrained: bool) -> None:
    """Give a weight back what `_regroup` took from it."""
    if weight.block_rows == block_rows and weight.values.data_ptr() == values.data_ptr():
        return
    weight.connect(weight.indices[:0])
    weight.set_block_rows(block_rows)
    weight.connect(indices, values)
    if untrained:
        weight.mark_untrained()


def _mask(model: nn.Module, weights: Sequence[SparseWeight], method: Method) -> None:
    """Let layers of these weights compute masked, for a method that needs the dense gradient at every step."""
    chosen: set[nn.Module] = set(weights)
    for module in model.modules():
        execution = getattr(module, "execution", None)
        if isinstance(execution, str) and chosen.intersection(
            m for m in module.modules() if isinstance(m, SparseWeight)
        ):
            if execution == "sparse":
                raise ValueError(
                    f"execution='sparse': method {method.name} needs the dense gradient at every step; use "
                    "execution='auto', or another method"
                )
            module.execution = "masked"  # type: ignore[assignment]


@torch.no_grad()
def _take_from_first_rank(model: nn.Module) -> None:
    """Give all ranks the parameters, the buffers and the connections of the first."""
    inside = set()
    for weight in [module for module in model.modules() if isinstance(module, SparseWeight)]:
        told = torch.tensor([len(weight.indices), weight.is_untrained], device=weight.indices.device)
        dist.broadcast(told, src=0)
        count, is_untrained = told.tolist()
        indices, values = weight.indices, weight.values.detach()
        if dist.get_rank() > 0:
            indices, values = indices.new_empty(count), values.new_empty(count, *values.shape[1:])
        dist.broadcast(indices, src=0)
        dist.broadcast(values, src=0)
        if dist.get_rank() > 0:
            weight.connect(indices, values)
            if is_untrained:
                weight.mark_untrained()
        inside |= {id(weight.values), id(weight.indices)}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in inside:
            dist.broadcast(tensor.data, src=0)


def _default_values(
    initial: Initial, budgets: Sequence[Budget], weights: Sequence[SparseWeight], optimizer: torch.optim.Optimizer
) -> Values:
    from_all = all(budget.dense or initial(budget) == budget.group.positions for budget in budgets)
    if from_all and all(weight.is_full for weight in weights):
        return "keep"
    if all(
        (weight.is_untrained or not weight.connections) and not _has_stepped(optimizer, weight) for weight in weights
    ):
        return "reset"
    raise ValueError(
        "values: these layers have been trained or loaded; say values='keep' to start from their largest values, or "
        "values='reset' to draw new ones"
    )


def _has_stepped(optimizer: torch.optim.Optimizer, weight: SparseWeight) -> bool:
    """Whether an optimizer has moved the values of a weight; Adagrad has a state from the start."""
    state = optimizer.state.get(weight.values)
    return state is not None and len(state) > 0 and float(state.get("step", 1)) > 0


@torch.no_grad()
def _keep(initial: Initial, budgets: Sequence[Budget], optimizer: torch.optim.Optimizer, seed: int) -> None:
    """Let every group have as many connections as the method starts with: the largest, or added ones of zero."""
    wanted = []
    for budget in budgets:
        group = budget.group
        present = group.indices()
        count = budget.connections if budget.dense else initial(budget)
        if count <= present.numel():
            wanted.append((group, keep_largest(present, group.magnitudes(), count)))
        else:
            numbers = generator_for(seed, "added", group.name)
            added = draw_absent(count - present.numel(), present, group.positions, numbers)
            wanted.append((group, torch.cat([present, added]).sort().values))
    for weight, indices in weight_topologies(wanted):
        rewire(weight, indices, optimizer)
