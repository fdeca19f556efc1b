"""`sparsify` in a loop of one's own: every method, in any model, with what such loops do between the two lines."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import rnnsparse as rs
import rnnsparse.sparsity.methods
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.sparsity.drop_grow import DropGrow
from rnnsparse.sparsity.method import METHODS

STEPS = 12
OFTEN = {"interval": 3}
SETTINGS: dict[str, dict[str, Any]] = {
    name: OFTEN if hasattr(method, "interval") else {}
    for name, method in METHODS.items()
    if not method.recipe and name != "small_dense"
}


class Net(nn.Module):
    """A layer of PyTorch between sparse ones."""

    def __init__(self, seed: int = 1, **arguments: Any) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = rs.LSTM(3, 8, num_layers=2, **arguments)
        self.norm = nn.LayerNorm(8)
        self.head = rs.Linear(8, 2)

    def forward(self, x_TBI: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(self.encoder(x_TBI)[0]))
        return y


def batch(step: int) -> tuple[Tensor, Tensor]:
    x_TBI = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(step))
    return x_TBI, (x_TBI.sum(-1).cumsum(0) > 0).long()


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def loss_of(model: nn.Module, step: int, lanes: slice = slice(None)) -> Tensor:
    x_TBI, y_TB = batch(step)
    like = next(model.parameters())
    x_TBI, y_TB = x_TBI.to(like), y_TB.to(like.device)
    return cross_entropy(model(x_TBI[:, lanes]).flatten(0, 1), y_TB[:, lanes].flatten())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, sparsifier: Any, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(model, step)
        sparsifier.backward(loss)
        sparsifier.step()
        assert loss.isfinite()


def run(method: Any, steps: int = STEPS, model: nn.Module | None = None, **settings: Any) -> tuple[nn.Module, Any, Any]:
    model = model or Net()
    optimizer = adam(model)
    sparsifier = rs.sparsify(model, method, optimizer, sparsity=0.7, steps=STEPS, **settings)
    train(model, optimizer, sparsifier, range(steps))
    return model, optimizer, sparsifier


def connections(model: nn.Module) -> int:
    return sum(m.connections for m in model.modules() if isinstance(m, rs.SparseWeight))


def require_same(one: nn.Module, other: nn.Module) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("method", SETTINGS)
def test_every_method_ends_with_its_budget_in_a_loop_of_ones_own(method: str) -> None:
    model, _, sparsifier = run(method, **SETTINGS[method])
    positions = sum(m.positions for m in model.modules() if isinstance(m, rs.SparseWeight))
    expected = positions if method == "dense" else positions - int(7 * positions / 10)
    assert connections(model) == expected
    moves = {name for name in SETTINGS if issubclass(METHODS[name], DropGrow)}
    assert (sparsifier.connections_moved > 0) == (method in moves)


def test_a_method_that_makes_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="small_dense: trains another model than this one"):
        run("small_dense")


@pytest.mark.parametrize("method", SETTINGS)
def test_most_methods_take_one_round_without_a_teacher(method: str) -> None:
    _, _, sparsifier = run(method, steps=0, **SETTINGS[method])
    assert [(number, sparsifier.steps_taken, sparsifier.teacher) for number in sparsifier.rounds()] == [(0, 0, None)]


def test_the_loop_is_the_engines_own_steps() -> None:
    model, _, _ = run("rigl", **OFTEN)
    other = Net()
    optimizer = adam(other)
    engine = rs.sparsify(other, rs.RigL(interval=3), optimizer, sparsity=0.7, steps=STEPS)
    for step in range(STEPS):
        optimizer.zero_grad()
        engine.before_backward(step + 1)
        loss_of(other, step).backward()
        if engine.after_backward(step + 1):
            optimizer.step()
        engine.after_step(step + 1)
    engine.finish()
    require_same(model, other)


@pytest.mark.parametrize("settings", [{"method": "rigl"}, {"method": "gse", "candidates": "grabo", "pool": 0.3}])
def test_both_executions_choose_the_same_connections(settings: dict[str, Any]) -> None:
    def chosen(execution: str) -> list[Tensor]:
        model = Net(execution=execution).double()
        model.head.execution = execution  # type: ignore[assignment]
        run(model=model, **settings, **OFTEN)
        return [m.indices for m in model.modules() if isinstance(m, rs.SparseWeight)]

    for masked, sparse in zip(chosen("masked"), chosen("sparse"), strict=True):
        assert torch.equal(masked, sparse)


def test_accumulated_losses_are_one_step() -> None:
    model, other = Net().double(), Net().double()
    whole, parts = (rs.sparsify(m, "rigl", adam(m), sparsity=0.7, steps=STEPS, **OFTEN) for m in (model, other))
    for step in range(STEPS):
        model.zero_grad()
        other.zero_grad()
        whole.backward(loss_of(model, step))
        for lanes in (slice(0, 2), slice(2, 4)):
            parts.backward(loss_of(other, step, lanes) / 2)
        whole.step()
        parts.step()
    assert whole.steps_taken == parts.steps_taken == STEPS
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)


def test_what_clips_between_the_lines_sees_the_connections_alone() -> None:
    model = Net()
    sparsifier = rs.sparsify(model, "rigl", adam(model), sparsity=0.7, steps=STEPS, interval=1)
    sparsifier.backward(loss_of(model, 0))
    exact = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None) ** 0.5
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert float(norm) == pytest.approx(exact, rel=1e-5)
    assert sum(p.grad.numel() for p in model.head.parameters() if p.grad is not None) < 8 * 2 + 2
    sparsifier.step()


def test_a_scaler_leaves_out_steps_that_overflow_and_the_rest_is_as_without() -> None:
    plain, _, _ = run("rigl", **OFTEN)
    model = Net()
    optimizer, scaler = adam(model), torch.amp.GradScaler("cpu", init_scale=2.0**60)
    sparsifier = rs.sparsify(model, "rigl", optimizer, sparsity=0.7, steps=STEPS, scaler=scaler, **OFTEN)
    scaler._growth_interval = 1000  # type: ignore[attr-defined]
    optimizer.zero_grad()
    before = copy.deepcopy(model.state_dict())
    sparsifier.backward(loss_of(model, 0) * 1e30)
    sparsifier.step()
    assert sparsifier.steps_taken == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert scaler.get_scale() == 2.0**59

    other = Net()
    optimizer, scaler = adam(other), torch.amp.GradScaler("cpu", init_scale=8.0)
    sparsifier = rs.sparsify(other, "rigl", optimizer, sparsity=0.7, steps=STEPS, scaler=scaler, **OFTEN)
    for step in range(STEPS):
        optimizer.zero_grad()
        sparsifier.backward(loss_of(other, step))
        if step % 2:
            scaler.unscale_(optimizer)  # as before clipping
        sparsifier.step()
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_gradients_that_are_not_finite_change_nothing() -> None:
    model = Net()
    sparsifier = rs.sparsify(model, "rigl", adam(model), sparsity=0.7, steps=STEPS)
    before = copy.deepcopy(model.state_dict())
    sparsifier.backward(loss_of(model, 0) * float("inf"))
    with pytest.raises(RuntimeError, match="not finite"):
        sparsifier.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("bad", [4, 5])  # the latter is before an update
@pytest.mark.parametrize("method", ["rigl", "scout", "snfs", "gse"])
def test_a_batch_that_changed_nothing_is_forgotten(method: str, bad: int) -> None:
    expected, _, _ = run(method, interval=3)
    model = Net()
    optimizer = adam(model)
    sparsifier = rs.sparsify(model, method, optimizer, sparsity=0.7, steps=STEPS, interval=3)
    for step in range(STEPS):
        if step == bad:
            sparsifier.backward(loss_of(model, 100) * torch.nan)
            with pytest.raises(RuntimeError, match="not finite"):
                sparsifier.step()
            with pytest.raises(RuntimeError, match="does not require grad"):  # nor does one that breaks off
                sparsifier.backward(torch.zeros(()))
        train(model, optimizer, sparsifier, range(step, step + 1))
    require_same(model, expected)


@pytest.mark.parametrize("method", ["scout", "snfs"])
def test_a_method_object_remembers_nothing_of_another_model(method: str) -> None:
    expected, _, _ = run(method, interval=3)
    shared = METHODS[method](interval=3)
    run(shared, model=Net(seed=2))
    require_same(run(shared)[0], expected)


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_a_model_may_change_its_type_while_a_method_collects_gradients(execution: str) -> None:
    torch.manual_seed(1)
    model = rs.GRU(3, 8, execution=execution)
    sparsifier = rs.sparsify(
        model, "scout", torch.optim.SGD(model.parameters(), 0.1), sparsity=0.5, steps=8, interval=4
    )
    for step in range(8):
        if step == 2:
            model.double()
        x = batch(step)[0].to(next(model.parameters()))
        model.zero_grad()
        sparsifier.backward(model(x)[0].square().mean())
        sparsifier.step()
    assert next(model.parameters()).dtype == torch.float64


def test_a_step_needs_gradients() -> None:
    _, _, sparsifier = run("set", steps=0)
    with pytest.raises(RuntimeError, match="call backward"):
        sparsifier.step()


@pytest.mark.parametrize("method", ["rigl", "scout", "snfs", "prune", "granet", rs.GSE(**OFTEN, candidates="grabo")])
@pytest.mark.parametrize("steps", [4, 5])  # the next one has the marginals, or the candidates, of an update
def test_a_loop_goes_on_from_its_states_as_if_it_had_not_stopped(method: Any, steps: int) -> None:
    often = OFTEN if isinstance(method, str) else {}
    whole, _, _ = run(method, **often)
    model, optimizer, sparsifier = run(method, steps=steps, **often)
    file = io.BytesIO()
    torch.save([each.state_dict() for each in (model, optimizer, sparsifier)], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    other = Net(seed=8)
    optimizer = adam(other)
    sparsifier = rs.sparsify(other, method, optimizer, sparsity=0.7, steps=STEPS, seed=0, **often)
    for each, state in zip((other, optimizer, sparsifier), states, strict=True):
        each.load_state_dict(state)
    train(other, optimizer, sparsifier, range(steps, STEPS))
    require_same(other, whole)


def test_training_goes_on_after_the_planned_steps_with_the_topology_as_it_is() -> None:
    model, optimizer, sparsifier = run("rigl", interval=1, stop=1.0)
    before = [m.indices for m in model.modules() if isinstance(m, rs.SparseWeight)]
    train(model, optimizer, sparsifier, range(STEPS, STEPS + 3))
    after = [m.indices for m in model.modules() if isinstance(m, rs.SparseWeight)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# ---- which weights


def test_only_what_is_included_and_not_excluded_is_sparsified_and_the_rest_is_named() -> None:
    model, _, sparsifier = run("rigl", include=["encoder"], exclude=["encoder.1.*"], **OFTEN)
    names = {budget.group.name for budget in sparsifier.budgets}
    assert names == {f"encoder.0.{part}.{gate}" for part in ("input", "recurrent") for gate in "ifgo"}
    assert model.get_submodule("encoder.1.input").is_full  # type: ignore[truthy-function]
    assert sparsifier.left_out == {
        "encoder.1": "RecurrentLayer, 64 parameters",
        "encoder.1.input": "SparseWeight, 256 parameters",
        "encoder.1.recurrent": "SparseWeight, 256 parameters",
        "head": "Linear, 18 parameters",
        "norm": "LayerNorm, 16 parameters",
    }
    assert "not sparsified: norm (LayerNorm, 16 parameters)" in str(sparsifier)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "riggl"}, "did you mean 'rigl'"),
        ({"include": ["heat"]}, "include: no weight is called 'heat' .did you mean 'head'"),
        ({"exclude": ["*"]}, "leaves no weight"),
        ({"steps": 0}, "steps=0"),
        ({"sparsity": 1.0}, "sparsity=1.0: Input should be less than 1"),
        ({"intervall": 3}, "did you mean 'interval'"),
        ({"drop_fraction": 2.0}, "drop_fraction=2.0: Input should be less than or equal to 1"),
        ({"method": rs.RigL(interval=0)}, "interval=0: Input should be greater than 0"),
        ({"method": rs.RigL(), "interval": 3}, "interval: unknown setting"),
        ({"sparsity": 0.999}, "without any connection"),
        ({"distribution": "flat"}, "distribution='flat': Input should be"),
        ({"basis": "dct"}, "basis: unknown setting"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], said: str) -> None:
    model = Net()
    arguments: dict[str, Any] = {"method": "rigl", "steps": STEPS} | change
    with pytest.raises(ValueError, match=said):
        rs.sparsify(model, optimizer=adam(model), **arguments)


def test_a_model_without_sparse_layers_is_told_how_to_get_them() -> None:
    model = nn.LSTM(3, 4)
    with pytest.raises(ValueError, match=r"rnnsparse\.convert"):
        rs.sparsify(model, "rigl", adam(model), steps=STEPS)


def test_a_wrapped_model_is_refused() -> None:
    model = nn.DataParallel(Net())
    with pytest.raises(ValueError, match="give the module itself; DataParallel"):
        rs.sparsify(model, "rigl", adam(model), sparsity=0.7, steps=STEPS)


def test_an_optimizer_that_does_not_know_the_weights_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optimizer: it has not the values of encoder\.0\.input"):
        rs.sparsify(Net(), "rigl", adam(Net()), steps=STEPS)


def test_sparse_execution_and_a_dense_gradient_at_every_step_exclude_each_other() -> None:
    model = Net(execution="sparse")
    with pytest.raises(ValueError, match="snfs needs the dense gradient at every step"):
        rs.sparsify(model, "snfs", adam(model), steps=STEPS)
    model, _, _ = run("snfs", steps=1)
    assert model.encoder.execution == "masked"


# ---- first values


def test_layers_that_have_been_trained_are_not_drawn_anew_without_a_word() -> None:
    model, optimizer, _ = run("dense", steps=3)
    with pytest.raises(ValueError, match="values='keep'"):
        rs.sparsify(model, "rigl", optimizer, sparsity=0.7, steps=STEPS)
    before = {m.name: m.to_dense() for m in model.modules() if isinstance(m, rs.SparseWeight)}
    rs.sparsify(model, "rigl", optimizer, sparsity=0.7, steps=STEPS, values="keep")
    for weight in [m for m in model.modules() if isinstance(m, rs.SparseWeight)]:
        kept = weight.to_dense()
        assert torch.equal(kept[kept != 0], before[weight.name][kept != 0])
        for block in weight.gates:
            rows = slice(block.start_row, block.stop_row)
            smallest, dropped = kept[rows][kept[rows] != 0].abs().min(), before[weight.name][rows][kept[rows] == 0]
            assert dropped.abs().max() <= smallest
        assert optimizer.state[weight.values]["exp_avg"].shape == weight.values.shape
    train(model, optimizer, rs.sparsify(model, "rigl", optimizer, steps=STEPS, values="reset"), range(2))


def another_adam(model: nn.Module, trained: torch.optim.Optimizer) -> torch.optim.Optimizer:
    return adam(model)


def the_same_without_state(model: nn.Module, trained: torch.optim.Optimizer) -> torch.optim.Optimizer:
    trained.state.clear()
    return trained


@pytest.mark.parametrize("optimizer_of", [another_adam, the_same_without_state])
@pytest.mark.parametrize("trained", [True, False])
def test_training_is_noticed_in_the_values_whatever_the_optimizer_knows(optimizer_of: Any, trained: bool) -> None:
    model = Net()
    first = adam(model)
    if trained:
        loss_of(model, 0).backward()
        first.step()
    else:
        for weight in [m for m in model.modules() if isinstance(m, rs.SparseWeight)]:
            weight.values.data.mul_(1.01)  # one's own first values
    with pytest.raises(ValueError, match="values='keep'"):
        rs.sparsify(model, "rigl", optimizer_of(model, first), sparsity=0.7, steps=STEPS)


def test_first_values_are_first_values_in_any_type() -> None:
    model = copy.deepcopy(Net().double()).float()
    sparsifier = rs.sparsify(model, "rigl", adam(model), sparsity=0.7, steps=STEPS)
    assert sparsifier.steps_taken == 0


def test_what_is_dense_by_name_has_all_connections_in_the_end() -> None:
    for values in ("keep", "reset"):
        torch.manual_seed(0)
        model = nn.ModuleDict({"a": rs.Linear(20, 20, sparsity=0.9), "b": rs.Linear(20, 20, sparsity=0.9)})
        sparsifier = rs.sparsify(model, "set", adam(model), sparsity=0.8, steps=STEPS, dense=["b"], values=values)
        assert [budget.group.connections for budget in sparsifier.budgets] == [80, 400]


def test_a_frozen_layer_is_to_be_left_out() -> None:
    model = Net()
    model.head.values.requires_grad_(False)
    with pytest.raises(ValueError, match="head: is frozen"):
        rs.sparsify(model, "rigl", adam(model), sparsity=0.7, steps=STEPS)
    run("rigl", model=model, exclude=["head"], **OFTEN)


def test_a_scaler_that_is_off_hides_nothing() -> None:
    model = Net()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    sparsifier = rs.sparsify(model, "rigl", adam(model), sparsity=0.7, steps=STEPS, scaler=scaler)
    sparsifier.backward(loss_of(model, 0) * float("nan"))
    with pytest.raises(RuntimeError, match="not finite"):
        sparsifier.step()


@pytest.mark.parametrize("method", ["prune", "snip"])
def test_a_trained_dense_network_is_pruned_from_what_it_has_learned(method: str) -> None:
    dense = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))
    model = rs.convert(copy.deepcopy(dense))
    x = torch.randn(6, 3)
    optimizer = adam(model)
    sparsifier = rs.sparsify(model, method, optimizer, sparsity=0.5, steps=STEPS, **SETTINGS[method])
    assert torch.allclose(model(x), dense(x))
    for _ in range(STEPS):
        optimizer.zero_grad()
        sparsifier.backward(model(x).square().sum())
        sparsifier.step()
    assert connections(model) == (3 * 16 + 16 * 2) // 2
    assert type(rs.to_dense(model)[0]) is nn.Linear


def test_the_same_seed_gives_the_same_run_whatever_came_before() -> None:
    one, _, _ = run("scout", seed=3, **OFTEN)
    torch.manual_seed(1)
    again, _, _ = run("scout", seed=3, **OFTEN)
    other, _, _ = run("scout", seed=4, **OFTEN)
    require_same(one, again)
    assert not torch.equal(one.head.indices, other.head.indices)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.AdamW])
def test_any_optimizer_will_do(make: Callable[..., torch.optim.Optimizer]) -> None:
    model = Net()
    optimizer = make(model.parameters(), lr=0.01)
    train(model, optimizer, rs.sparsify(model, "rigl", optimizer, sparsity=0.7, steps=STEPS, **OFTEN), range(STEPS))


# ---- blocks of rows


@pytest.mark.parametrize("execution", ["masked", "sparse"])
@pytest.mark.parametrize("name", SETTINGS)
def test_layers_in_blocks_keep_their_budgets(name: str, execution: str) -> None:
    if name == "snfs" and execution == "sparse":
        pytest.skip("needs the dense gradient at every step")
    model = Net(block_rows=4, execution=execution)
    model, _, sparsifier = run(name, model=model, **SETTINGS[name])
    blocks = {weight.name: weight.block_rows for weight in model.modules() if isinstance(weight, SparseWeight)}
    assert blocks == {f"encoder.{i}.{part}": 4 for i in (0, 1) for part in ("input", "recurrent")} | {"head": 1}
    for budget in sparsifier.budgets:
        assert budget.group.connections == budget.connections
    assert "in blocks of 4 rows" in str(sparsifier)


def test_sparsify_gives_blocks_to_new_layers_and_to_full_ones() -> None:
    model = Net(sparsity=0.5)
    run("rigl", model=model, block_rows=8, interval=3)
    assert [weight.block_rows for weight in model.encoder.weights()] == [8] * 4
    full = rs.convert(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)))
    before = full[0].to_dense()
    rs.sparsify(full, "prune", adam(full), steps=9, block_rows={"0": 4})
    assert (full[0].block_rows, full[1].block_rows) == (4, 1)
    assert torch.equal(full[0].to_dense(), before), "pruning begins with the values that are there"


def test_blocks_that_cannot_be_are_refused() -> None:
    model = Net()
    with pytest.raises(ValueError, match="block_rows=3: must be 1, 2, 4, 8 or 16"):
        rs.sparsify(model, "rigl", adam(model), steps=9, block_rows=3)
    with pytest.raises(ValueError, match="block_rows=16: does not divide 8"):
        rs.sparsify(model, "rigl", adam(model), steps=9, block_rows=16)
    model, optimizer, _ = run("static", model=Net())
    with pytest.raises(ValueError, match="the optimizer has a state for connections of 1 rows"):
        rs.sparsify(model, "rigl", optimizer, steps=9, block_rows=2)
    with pytest.raises(ValueError, match="cannot become 2"):
        rs.sparsify(model, "rigl", adam(model), steps=9, block_rows=2, values="keep")
    with pytest.raises(ValueError, match="block_rows=32: must be one of"):
        rs.LSTM(3, 64, block_rows=32)


@pytest.mark.parametrize(
    "wrong", [{"sparsity": 0.999, "block_rows": 16}, {"block_rows": 4, "dense": ["nope"], "values": "reset"}]
)
def test_blocks_that_come_to_nothing_leave_the_model_as_it_was(wrong: dict[str, Any]) -> None:
    model = rs.LSTM(8, 16, sparsity=0.5)
    before = [(w.block_rows, w.indices.clone(), w.values.detach().clone()) for w in weights_of(model)]
    with pytest.raises(ValueError):  # noqa: PT011
        rs.sparsify(model, "set", torch.optim.Adam(model.parameters()), steps=10, **wrong)
    for weight, (block_rows, indices, values) in zip(weights_of(model), before, strict=True):
        assert weight.block_rows == block_rows
        assert torch.equal(weight.indices, indices)
        assert torch.equal(weight.values.detach(), values)
        assert weight.is_untrained


def test_layers_that_block_rows_does_not_select_keep_the_blocks_that_they_have() -> None:
    model = nn.ModuleDict({"rnn": rs.LSTM(8, 16, sparsity=0.5), "head": rs.Linear(16, 8, sparsity=0.5, block_rows=4)})
    rs.sparsify(model, "set", torch.optim.Adam(model.parameters()), steps=10, sparsity=0.5, block_rows=8)
    assert [weight.block_rows for weight in weights_of(model)] == [8, 8, 4]


def weights_of(model: nn.Module) -> list[SparseWeight]:
    return [module for module in model.modules() if isinstance(module, SparseWeight)]


@pytest.mark.parametrize("values", [None, "reset", "keep"])
def test_an_optimizer_that_has_a_state_before_its_first_step_is_new(values: Any) -> None:
    layer = rs.Linear(8, 4)
    optimizer = torch.optim.Adagrad(layer.parameters())
    sparsifier = rs.sparsify(layer, "rigl", optimizer, steps=4, sparsity=0.5, values=values)
    sparsifier.backward(layer(torch.ones(3, 8)).square().sum())
    sparsifier.step()
    with pytest.raises(ValueError, match="values: these layers have been trained"):
        rs.sparsify(layer, "rigl", optimizer, steps=4, sparsity=0.5)
