"""Sparse execution is masked execution: the same logits, states, gradients and topologies, without the dense matrices.

Shape suffixes: T time, B batch, V vocabulary, H hidden, L layers, S state tensors.
"""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from rnnsparse.nn.gradients import STRIP_ROWS, DenseGradient
from rnnsparse.nn.language_model import CharLM
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity.allocation import allocate, connect_randomly
from rnnsparse.sparsity.blocks import set_block_rows
from rnnsparse.sparsity.drop_grow import DropGrow
from rnnsparse.sparsity.methods.rigl import RigL
from rnnsparse.sparsity.methods.set import SET
from rnnsparse.sparsity.updater import Updater

F64, F32 = torch.float64, torch.float32
VOCAB = 11
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_embeddings": True, "embedding_dim": 8},
    "readouts": {"readout_dims": (7, 5), "readout_activation": "tanh"},
    "tied readouts": {"readout_dims": (9, 6), "tie_embeddings": True},
    "normalised": {"layer_norm": True},
    "skipping": {"skip_connections": True, "readout_dims": (7,)},
    "both": {"layer_norm": True, "skip_connections": True},
    "both, tied": {"layer_norm": True, "skip_connections": True, "readout_dims": (6,), "tie_embeddings": True},
}
# Part of a vector, the same again, two vectors, and tiles of which the last one is not full.
BATCHES = 1, 3, 16, 33
# Each cell, shape and batch with each other; numbers of layers and vocabularies so that any two values meet.
MODELS = [
    (cell, (1, 3)[(s + b) % 2], shape, batch, (VOCAB, 300)[(s // 2 + b + c) % 2])
    for c, cell in enumerate(("lstm", "gru"))
    for s, shape in enumerate(SHAPES)
    for b, batch in enumerate(BATCHES)
]
MODELS += [("rnn", 3, shape, 33, vocab) for shape in ("normalised", "skipping", "both") for vocab in (VOCAB, 300)]


def build(
    vocab: int = VOCAB,
    density: float = 0.3,
    dtype: torch.dtype = F64,
    seed: int = 0,
    block_rows: int = 1,
    **shape: Any,
) -> CharLM:
    """Return a model in masked execution with random connections, in recurrent layers blocks of `block_rows`."""
    sizes: dict[str, Any] = {"cell": "gru", "embedding_dim": 6, "hidden_size": 8}
    config = ModelConfig(**sizes | shape)
    model = CharLM(config, vocab).to(dtype)
    set_block_rows(list(model.sparse_weights().values()), block_rows)
    generator = torch.Generator().manual_seed(seed)
    for weight in model.sparse_weights().values():
        positions = weight.topology.positions
        count = round(density * positions)
        weight.connect(torch.randperm(positions, generator=generator)[:count].sort().values)
    model.reset_parameters(seed)
    with torch.no_grad():
        for layer in model.recurrent_layers:
            for parameter in layer.norm.parameters() if layer.norm else ():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def both(vocab: int = VOCAB, density: float = 0.3, **shape: Any) -> tuple[CharLM, CharLM]:
    """Return the same model in masked and in sparse execution."""
    masked = build(vocab, density, **shape)
    sparse = copy.deepcopy(masked)
    sparse.execution = "sparse"
    return masked, sparse


def text(model: CharLM, times: int, batch: int, seed: int = 1) -> Tensor:
    return torch.randint(model.vocab_size, (times, batch), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def gradients(model: CharLM) -> dict[str, Tensor]:
    """Return the gradient of every parameter and, where they are collected, of every position."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for name, weight in model.sparse_weights().items():
        if weight.dense_gradient is not None:
            found[f"{name} everywhere"] = weight.dense_gradient.rows(0, weight.rows)
    return found


def passed(model: CharLM, tokens_TB: Tensor, collect: bool = True) -> dict[str, Tensor]:
    """Return all that one pass from a random state, forward and backward, computes."""
    generator = torch.Generator().manual_seed(2)
    model.zero_grad()
    for weight in model.sparse_weights().values():
        weight.dense_gradient = DenseGradient() if collect else None
    zeros = model.initial_state(tokens_TB.shape[1])
    state = torch.rand(zeros.shape, dtype=F64, generator=generator).to(zeros.dtype).requires_grad_()
    torch.manual_seed(3)  # of dropout
    logits, last = model(tokens_TB, state)
    upstream = [torch.randn(x.shape, dtype=F64, generator=generator).to(x.dtype) for x in (logits, last)]
    torch.autograd.backward([logits, last], upstream)
    assert state.grad is not None
    found = {"logits": logits.detach(), "last state": last.detach(), "initial state": state.grad}
    return found | gradients(model)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """Compare each tensor relative to its norm."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        error = float((found[name].double() - value.double()).norm()) / max(1e-300, float(value.double().norm()))
        assert error <= tolerance or torch.equal(found[name], value), f"{name} is off by {error}"


@pytest.mark.parametrize(("cell", "num_layers", "shape", "batch", "vocab"), MODELS)
def test_sparse_execution_is_masked_execution(cell: str, num_layers: int, shape: str, batch: int, vocab: int) -> None:
    masked, sparse = both(vocab, cell=cell, num_layers=num_layers, **SHAPES[shape])
    tokens = text(masked, 3, batch)
    expected = passed(masked, tokens)
    assert f"rnn.{num_layers - 1}.recurrent everywhere" in expected
    assert_equal(passed(sparse, tokens), expected)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("density", [0, 0.02, 1])
def test_any_density_will_do(cell: str, density: float) -> None:
    masked, sparse = both(density=density, cell=cell, num_layers=2, readout_dims=(5,))
    tokens = text(masked, 4, 5)
    assert_equal(passed(sparse, tokens), passed(masked, tokens))


@pytest.mark.parametrize("activation", ["identity", "relu", "tanh"])
def test_any_readout_activation_will_do(activation: str) -> None:
    masked, sparse = both(readout_dims=(9, 7), readout_activation=activation)
    tokens = text(masked, 4, 5)
    assert_equal(passed(sparse, tokens), passed(masked, tokens))


@pytest.mark.parametrize(("batch", "times"), [(1, 4), (8, 1), (16, 4)])
@pytest.mark.parametrize(
    ("vocab", "shape"),
    [
        (VOCAB, {"embedding_dim": 1}),
        (64, {"embedding_dim": 1}),
        (300, {"embedding_dim": 1}),
        (VOCAB, {"hidden_size": 1, "num_layers": 2}),
        (VOCAB, {"readout_dims": (1, 1)}),
        (1, {}),
        (1, {"embedding_dim": 1, "hidden_size": 1}),
    ],
)
def test_sides_of_one_will_do(vocab: int, shape: dict[str, Any], batch: int, times: int) -> None:
    masked, sparse = both(vocab, density=1, cell="lstm", **shape)
    tokens = text(masked, times, batch)
    assert_equal(passed(sparse, tokens), passed(masked, tokens))


@pytest.mark.parametrize("dropout", [{"dropout": 0.4}, {"output_dropout": 0.4}])
@pytest.mark.parametrize("shape", ["plain", "both"])
@pytest.mark.parametrize(("cell", "batch"), [("lstm", 16), ("gru", 3), ("gru", 40)])
def test_dropout_drops_the_same_units(cell: str, batch: int, shape: str, dropout: dict[str, float]) -> None:
    masked, sparse = both(cell=cell, num_layers=3, **dropout, **SHAPES[shape])
    tokens = text(masked, 5, batch)
    with_dropout = passed(masked, tokens)
    assert_equal(passed(sparse, tokens), with_dropout)
    without = passed(sparse.eval(), tokens)
    assert not torch.equal(without["logits"], with_dropout["logits"])
    assert_equal(without, passed(masked.eval(), tokens))


@pytest.mark.parametrize("more", [{}, {"layer_norm": True, "skip_connections": True}])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_float32_gradients_are_as_near_as_their_precision_allows(cell: str, more: dict[str, Any]) -> None:
    exact = build(64, 0.1, cell=cell, hidden_size=96, embedding_dim=32, num_layers=2, readout_dims=(48,), **more)
    sparse = copy.deepcopy(exact).float()
    exact.load_state_dict(sparse.state_dict())  # the same numbers, rounded to float32
    sparse.execution = "sparse"
    tokens = text(exact, 40, 16)
    assert_equal(passed(sparse, tokens), passed(exact, tokens), 1e-6)


def test_the_state_carries_over_from_call_to_call() -> None:
    masked, sparse = both(cell="lstm", num_layers=2)
    tokens = text(masked, 9, 3)
    whole, last = sparse(tokens)
    pieces, state = [], None
    for piece in tokens.split(3):
        logits, state = sparse(piece, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(masked(tokens)[1], last, rtol=1e-12, atol=1e-12)


def test_gradients_flow_through_a_state_that_is_not_detached() -> None:
    found = []
    for model in both(cell="gru", num_layers=2):
        logits, state = model(text(model, 3, 4))
        more, _ = model(text(model, 2, 4, seed=5), state)
        (logits.square().sum() + more.square().sum()).backward()
        found.append(gradients(model))
    assert_equal(found[1], found[0])


def test_a_loss_of_the_last_state_alone_has_its_gradients() -> None:
    found = []
    for model in both(cell="lstm", num_layers=2):
        model(text(model, 3, 4))[1].square().sum().backward()
        found.append(gradients(model))
    assert {name: g for name, g in found[1].items() if g.any()}.keys() >= {"rnn.1.recurrent.values", "embedding.values"}
    for name, gradient in found[1].items():
        expected = found[0].get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_micro_batches_add_up_at_every_position(cell: str) -> None:
    masked, sparse = both(cell=cell, num_layers=2, tie_embeddings=True, embedding_dim=8)
    tokens = text(masked, 4, 6)
    found = []
    for model, parts in ((masked, [6]), (sparse, [1, 3, 2])):
        for weight in model.sparse_weights().values():
            weight.dense_gradient = DenseGradient()
        for part in tokens.split(parts, dim=1):
            model(part)[0].square().sum().backward()
        found.append(gradients(model))
    assert_equal(found[1], found[0])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gradients_share_no_memory(cell: str) -> None:
    _, sparse = both(cell=cell, num_layers=2, tie_embeddings=True, embedding_dim=8)
    passed(sparse, text(sparse, 3, 2))
    before = gradients(sparse)
    for i, parameter in enumerate(sparse.parameters()):
        assert parameter.grad is not None
        parameter.grad.fill_(i)
    for i, parameter in enumerate(sparse.parameters()):
        assert bool((parameter.grad == i).all())
    after = gradients(sparse)
    assert all(torch.equal(after[name], value) for name, value in before.items() if name.endswith("everywhere"))


def test_a_pass_leaves_the_dense_gradients_of_the_one_before_alone() -> None:
    for cell in ("lstm", "gru"):
        _, sparse = both(cell=cell, num_layers=2)
        passed(sparse, text(sparse, 3, 2))
        weights = sparse.sparse_weights()
        kept = {name: weight.dense_gradient for name, weight in weights.items()}
        before = {name: kept[name].rows(0, weight.rows).clone() for name, weight in weights.items()}
        for weight in weights.values():
            weight.dense_gradient = DenseGradient()
        sparse(text(sparse, 3, 2, seed=7))[0].square().sum().backward()
        for name, weight in weights.items():
            assert torch.equal(kept[name].rows(0, weight.rows), before[name])


def test_dense_gradients_are_kept_only_when_asked_for() -> None:
    _, sparse = both(tie_embeddings=True, embedding_dim=8, num_layers=2)
    passed(sparse, text(sparse, 3, 2), collect=False)
    assert all(weight.dense_gradient is None for weight in sparse.sparse_weights().values())


def test_reruns_give_the_same_bits() -> None:
    _, sparse = both(cell="lstm", num_layers=2, hidden_size=40, dtype=F32)
    tokens = text(sparse, 10, 7)
    first, second = passed(sparse, tokens), passed(sparse, tokens)
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


class Training:
    """A model that learns random symbols under a method."""

    def __init__(self, model: CharLM, method: DropGrow, total_steps: int, granularity: Any) -> None:
        self.model = model
        budgets = allocate(list(model.sparse_weights().values()), BudgetConfig(sparsity=0.8, granularity=granularity))
        connect_randomly(budgets, 1, method.initial_connections)
        model.reset_parameters(1)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        self.sparsifier = Updater(method, budgets, self.optimizer, seed=1, total_steps=total_steps)

    def step(self, step: int) -> None:
        tokens = text(self.model, 7, 5, seed=step)
        self.optimizer.zero_grad()
        self.sparsifier.before_backward(step)
        cross_entropy(self.model(tokens[:-1])[0].flatten(0, 1), tokens[1:].flatten()).backward()
        if self.sparsifier.after_backward(step):
            self.optimizer.step()
        self.sparsifier.after_step(step)

    def topology(self) -> dict[str, list[int]]:
        return {name: weight.indices.tolist() for name, weight in self.model.sparse_weights().items()}


@pytest.mark.parametrize(
    ("cell", "method", "granularity", "more"),
    [
        ("lstm", RigL, "gate", {}),
        ("gru", RigL, "cell", {}),
        ("gru", SET, "matrix", {}),
        ("gru", RigL, "gate", {"layer_norm": True, "skip_connections": True, "embedding_dim": 24}),
    ],
)
def test_twenty_updates_lead_to_the_same_topology(
    cell: str, method: type[DropGrow], granularity: str, more: dict[str, Any]
) -> None:
    shape = {"hidden_size": 12, "num_layers": 2, "tie_embeddings": True, "embedding_dim": 12}
    models = both(cell=cell, **shape | more)
    runs = [Training(model, method(interval=2, drop_fraction=0.4, stop=1.0), 41, granularity) for model in models]
    first = runs[0].topology()
    for step in range(1, 41):
        for run in runs:
            run.step(step)
        assert runs[0].topology() == runs[1].topology(), f"the topologies part at step {step}"
    assert runs[1].sparsifier.updates == 20
    assert runs[1].topology() != first
    for name, value in runs[0].model.state_dict().items():
        torch.testing.assert_close(runs[1].model.state_dict()[name], value, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_and_single_steps_are_those_of_masked_execution(cell: str, shape: str) -> None:
    masked, sparse = both(cell=cell, num_layers=2, **SHAPES[shape])
    masked.eval()
    sparse.eval()
    tokens = text(masked, 6, 3)
    with torch.no_grad():
        expected, last = masked(tokens)
        logits, state = sparse(tokens)
    assert not logits.requires_grad
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=1e-10, atol=1e-12)

    stepper, state = sparse.stepper(), sparse.initial_state(3)
    for tokens_B, expected_BV in zip(tokens, expected, strict=True):
        logits_BV, state = stepper.step(tokens_B, state)
        torch.testing.assert_close(logits_BV, expected_BV, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(("hidden", "largest_table"), [(1, 0), (8, 1 << 22), (16, 0), (19, 0), (19, 1 << 22)])
def test_single_steps_are_right_for_any_width_with_and_without_a_table_of_inputs(
    monkeypatch: pytest.MonkeyPatch, cell: str, dtype: torch.dtype, hidden: int, largest_table: int
) -> None:
    monkeypatch.setattr("rnnsparse.nn.sparse_stepper.LARGEST_TABLE", largest_table)
    model = build(density=0.8, cell=cell, hidden_size=hidden, num_layers=2, dtype=dtype)
    exact = copy.deepcopy(model).double()
    model.execution = "sparse"
    tokens, stepper, state = text(model, 5, 2), model.stepper(), model.initial_state(2)
    expected, last = exact(tokens)
    for tokens_B, expected_BV in zip(tokens, expected, strict=True):
        logits_BV, state = stepper.step(tokens_B, state)
        torch.testing.assert_close(logits_BV.double(), expected_BV, rtol=1e-5 if dtype == F32 else 1e-10, atol=1e-6)
    assert state.dtype == dtype
    torch.testing.assert_close(state.double(), last, rtol=1e-5 if dtype == F32 else 1e-10, atol=1e-6)


def test_a_stepper_keeps_the_weights_it_was_made_from() -> None:
    _, sparse = both(cell="lstm", num_layers=2, readout_dims=(5,))
    stepper, state, token = sparse.stepper(), sparse.initial_state(1), torch.tensor([3])
    before = stepper.step(token, state)
    with torch.no_grad():
        for parameter in sparse.parameters():
            parameter.add_(1)
    for weight in sparse.sparse_weights().values():
        weight.connect(weight.indices[:1])
    after = stepper.step(token, state)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_a_second_backward_pass_is_refused() -> None:
    _, sparse = both()
    loss = sparse(text(sparse, 3, 2))[0].sum()
    loss.backward(retain_graph=True)
    # The gates have become their own gradients.
    with pytest.raises((RuntimeError, AssertionError), match="once"):
        loss.backward()


@pytest.mark.parametrize("symbol", [VOCAB, 300, -1, 1 << 32])
@pytest.mark.parametrize("batch", [1, 8])
def test_symbols_outside_the_vocabulary_are_refused(symbol: int, batch: int) -> None:
    for model in both():
        tokens = text(model, 4, batch)
        tokens[2, 0] = symbol
        with pytest.raises(IndexError):
            model(tokens)


def test_a_state_of_another_batch_size_is_refused() -> None:
    for model in both():
        with pytest.raises((RuntimeError, ValueError)):
            model(text(model, 3, 4), model.initial_state(3))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_topology_that_changes_between_forward_and_backward_is_noticed(cell: str) -> None:
    _, sparse = both(cell=cell, num_layers=2, readout_dims=(5,))
    logits, _ = sparse(text(sparse, 3, 2))
    for weight in sparse.sparse_weights().values():
        # As many connections, elsewhere.
        weight.connect((weight.positions - 1 - weight.indices).flip(0), weight.values.detach().clone())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.square().sum().backward()


def test_a_copy_of_a_model_that_has_computed_computes() -> None:
    _, sparse = both(num_layers=2)
    tokens = text(sparse, 3, 2)
    logits, _ = sparse(tokens)
    other = copy.deepcopy(sparse)
    weight = other.recurrent_layers[0].recurrent
    weight.connect(weight.indices[:5])
    assert not torch.equal(other(tokens)[0], logits)
    assert torch.equal(sparse(tokens)[0], logits)


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor had that any operation returned."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, Tensor):
                # What lies in memory: a view that repeats numbers costs nothing.
                self.numbers = max(self.numbers, x.untyped_storage().nbytes() // x.element_size())
        return result


@pytest.mark.parametrize(("cell", "method"), [("lstm", RigL), ("gru", RigL), ("gru", SET)])
def test_no_tensor_of_a_training_step_has_the_size_of_a_weight_matrix(cell: str, method: type[DropGrow]) -> None:
    largest = []
    for model in both(density=0, cell=cell, hidden_size=640, embedding_dim=16, num_layers=2, dtype=F32):
        training = Training(model, method(interval=2, stop=1.0), 10, "gate")
        with Largest() as seen:
            for step in range(1, 3):
                training.step(step)
            training.sparsifier.state_dict()
            with torch.no_grad():
                model.eval()(text(model, 5, 3))
                model.stepper().step(torch.tensor([0]), model.initial_state(1))
        assert training.sparsifier.updates == 1
        largest.append(seen.numbers)
    matrix = model.recurrent_layers[1].recurrent
    assert largest[0] >= matrix.positions
    # Growth by gradient looks at one tile and the candidates so far; growth at random has only connections to handle.
    seen_at_once = STRIP_ROWS * matrix.cols if method is RigL else 0
    assert largest[1] <= seen_at_once + 1.1 * matrix.connections


MEMORY = """
import resource, torch
from rnnsparse.nn.language_model import CharLM
from rnnsparse.nn.gradients import STRIP_ROWS
from rnnsparse.sparsity.allocation import allocate
from rnnsparse.sparsity.allocation import connect_randomly
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity.methods.rigl import RigL
from rnnsparse.sparsity.updater import Updater

def train(hidden, sparsity):
    model = CharLM(ModelConfig(cell="lstm", hidden_size=hidden, embedding_dim=16), 32)
    model.execution = "sparse"
    budgets = allocate(list(model.sparse_weights().values()), BudgetConfig(sparsity=sparsity))
    method = RigL(interval=2, stop=1.0)
    connect_randomly(budgets, 0, method.initial_connections)
    model.reset_parameters(0)
    optimizer = torch.optim.Adam(model.parameters())
    sparsifier = Updater(method, budgets, optimizer, seed=0, total_steps=9)
    tokens = torch.randint(32, (3, 16))
    for step in (1, 2):
        optimizer.zero_grad()
        sparsifier.before_backward(step)
        logits, _ = model(tokens)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
        if sparsifier.after_backward(step):
            optimizer.step()
        sparsifier.after_step(step)
    assert sparsifier.updates == 1
    model.stepper().step(tokens[0, :1], model.initial_state(1))
    return model.rnn[0].recurrent.positions * 4

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(1)
train(64, 0.5)
before = peak()
dense = train(4096, 0.999)
print(peak() - before, dense)
"""


def test_the_memory_of_a_training_step_is_a_fraction_of_one_dense_matrix() -> None:
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    grown, dense = map(int, done.stdout.split())
    assert grown < dense / 2, f"{grown / 1e6:.0f} MB, where one dense matrix has {dense / 1e6:.0f} MB"


def test_what_is_not_differentiated_is_freed_at_once() -> None:
    _, sparse = both(num_layers=2)
    tokens = text(sparse, 3, 2)
    sparse(tokens)

    def tensors() -> int:
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = tensors()
        logits, state = sparse(tokens)
        assert tensors() > before + 10, "a graph must hold some"
        del logits, state
        assert tensors() == before, "only the garbage collector can free the rest"
    finally:
        gc.enable()


# Every combination is compiled, for seconds: cells and heights meet both widths, but not all of each other.
@pytest.mark.parametrize(
    ("cell", "block_rows", "batch"),
    [("lstm", 2, 1), ("lstm", 16, 33), ("gru", 4, 33), ("gru", 8, 1), ("rnn", 2, 33), ("rnn", 16, 1)],
)
def test_blocks_in_sparse_execution_are_those_of_masked_execution(cell: str, block_rows: int, batch: int) -> None:
    masked, sparse = both(density=0.4, cell=cell, num_layers=2, hidden_size=32, embedding_dim=5, block_rows=block_rows)
    tokens = text(masked, 3, batch)
    found, expected = passed(sparse, tokens), passed(masked, tokens)
    assert expected["rnn.0.recurrent.values"].shape[1:] == (block_rows,)
    assert_equal(found, expected)
    stepper, state = sparse.stepper(), sparse.initial_state(batch)
    with torch.no_grad():
        for tokens_B, expected_BV in zip(tokens, masked(tokens)[0], strict=True):
            logits_BV, state = stepper.step(tokens_B, state)
            torch.testing.assert_close(logits_BV, expected_BV, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("block_rows", [1, 8])
def test_pools_have_the_gradients_of_the_matrix_at_their_places(block_rows: int) -> None:
    masked, sparse = both(density=0.4, hidden_size=16, block_rows=block_rows)
    for model in (masked, sparse):
        for weight in model.sparse_weights().values():
            weight.start_pool(torch.arange(1, weight.topology.positions, 3))
        passed(model, text(model, 3, 5))
        for name, weight in model.sparse_weights().items():
            assert weight.pool
            assert weight.dense_gradient
            everywhere = weight.dense_gradient.rows(0, weight.rows).flatten()
            torch.testing.assert_close(weight.pool.gradient, everywhere[weight.pool.places.entries], msg=name)


def test_blocks_that_change_between_forward_and_backward_are_noticed() -> None:
    _, model = both(hidden_size=16, block_rows=8)
    loss = model(text(model, 3, 2))[0].sum()
    weight = model.sparse_weights()["rnn.0.recurrent"]
    weight.connect(weight.indices[1:], weight.values[1:])
    with pytest.raises(RuntimeError):
        loss.backward()
