from itertools import product
from math import exp, tanh
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from rnnsparse.flops import ForwardFlops, earlier_flops, forward_flops, training_flops
from rnnsparse.nn import reference
from rnnsparse.nn.basis import Basis
from rnnsparse.nn.language_model import CharLM
from rnnsparse.nn.materialise import materialise
from rnnsparse.nn.recurrent import RecurrentLayer
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity.allocation import Budget, allocate
from rnnsparse.sparsity.group import make_groups
from rnnsparse.sparsity.method import Method, StepContext
from rnnsparse.sparsity.methods.dense import Dense
from rnnsparse.sparsity.methods.granet import GraNet
from rnnsparse.sparsity.methods.lottery import Lottery
from rnnsparse.sparsity.methods.prune import Prune
from rnnsparse.sparsity.methods.rigl import RigL
from rnnsparse.sparsity.methods.scout import Scout
from rnnsparse.sparsity.methods.set import SET
from rnnsparse.sparsity.methods.snfs import SNFS
from rnnsparse.sparsity.methods.static import Static

TIME, BATCH, VOCABULARY = 5, 3, 40


def model_with(density: float, **config: Any) -> CharLM:
    model = CharLM(ModelConfig(**config), VOCABULARY)
    for weight in model.sparse_weights().values():
        weight.connect(torch.arange(round(density * weight.positions)))
    return model


def budgets_of(model: CharLM) -> list[Budget]:
    """Return budgets of as many connections as there are."""
    return [Budget(group, group.connections) for group in make_groups(list(model.sparse_weights().values()), "gate")]


def textbook_forward(model: CharLM, tokens_TB: torch.Tensor, state_LSBH: torch.Tensor) -> torch.Tensor:
    """Return logits, by dense matrices that can be differentiated for, and the textbook cells."""
    dense = {name: weight.to_dense().requires_grad_() for name, weight in model.sparse_weights().items()}
    x = F.embedding(tokens_TB, dense["embedding"])
    for i, layer in enumerate(model.recurrent_layers):
        weights = (dense[f"rnn.{i}.input"], dense[f"rnn.{i}.recurrent"], layer.bias_ih, layer.bias_hh)
        x, _ = reference.run(model.config.cell, x, state_LSBH[i], *weights)
    for i in range(len(model.config.readout_dims)):
        x = torch.relu(F.linear(x, dense[f"readout.{i}"]))
    return F.linear(x, dense.get("output", dense["embedding"]))


def two_layers(density: float, cell: str, tied: bool) -> CharLM:
    config: dict[str, Any] = {"embedding_dim": 8, "hidden_size": 12, "num_layers": 2, "readout_dims": (16, 8)}
    return model_with(density, cell=cell, tie_embeddings=tied, **config)


every_model = pytest.mark.parametrize(("cell", "tied"), list(product(["lstm", "gru"], [False, True])))


@every_model
def test_dense_flops_are_those_counted_in_a_textbook_run(cell: str, tied: bool) -> None:
    model = two_layers(0.5, cell, tied)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        textbook_forward(model, torch.zeros(TIME, BATCH, dtype=torch.int64), model.initial_state(BATCH))
    assert forward_flops(model).dense * TIME * BATCH == counter.get_total_flops()


@every_model
@pytest.mark.parametrize(("times", "batch"), [(1, 1), (TIME, BATCH)])
def test_training_flops_are_those_counted_in_a_textbook_run(cell: str, tied: bool, times: int, batch: int) -> None:
    model = two_layers(1.0, cell, tied)
    expected = training_flops(Dense(), model, budgets_of(model), steps=1, characters_per_step=times * batch).total
    tokens_TB, state_LSBH = torch.zeros(times, batch, dtype=torch.int64), model.initial_state(batch)

    def counted(state_LSBH: torch.Tensor) -> int:
        counter = FlopCounterMode(display=False)
        with counter:
            textbook_forward(model, tokens_TB, state_LSBH).sum().backward()
        return counter.get_total_flops()

    # Three products per matrix: forward, gradient of the matrix, gradient of what it multiplies. The first layer's
    # input needs one too, for the embedding; looking that up and back costs nothing.
    assert counted(state_LSBH.requires_grad_()) == expected
    # The formula counts every product alike; truncated backpropagation needs no gradient of the state it starts from.
    recurrent = sum(2 * layer.recurrent.positions for layer in model.recurrent_layers)
    assert counted(state_LSBH.detach()) == expected - batch * recurrent


class Sums:
    """A sparse network computed one connection at a time, in Python's own numbers, counting what it does."""

    def __init__(self) -> None:
        self.operations = 0

    def product(self, weight: SparseWeight, x: list[float], bias: torch.Tensor) -> list[float]:
        y = bias.tolist()
        for position, value in zip(weight.indices.tolist(), weight.values.tolist(), strict=True):
            row, col = divmod(position, weight.cols)
            y[row] += value * x[col]
            self.operations += 2  # a multiplication and an addition
        return y

    def step(self, layer: RecurrentLayer, x: list[float], state: list[list[float]]) -> list[list[float]]:
        """Return the next state, [h, c] or [h], of an LSTM or a GRU."""
        size = layer.hidden_size
        a, b = self.product(layer.input, x, layer.bias_ih), self.product(layer.recurrent, state[0], layer.bias_hh)
        following = []
        for unit in range(size):
            at = range(unit, len(a), size)
            if len(state) == 2:
                i, f, g, o = (a[k] + b[k] for k in at)
                c = sigmoid(f) * state[1][unit] + sigmoid(i) * tanh(g)
                following.append([sigmoid(o) * tanh(c), c])
            else:
                r, z, n = at
                update = sigmoid(a[z] + b[z])
                new = tanh(a[n] + sigmoid(a[r] + b[r]) * b[n])
                following.append([(1 - update) * new + update * state[0][unit]])
        return [list(numbers) for numbers in zip(*following, strict=True)]


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


@every_model
def test_sparse_flops_are_those_counted_connection_by_connection(cell: str, tied: bool) -> None:
    model = two_layers(0.3, cell, tied).double()
    model.reset_parameters(0)
    sums, text = Sums(), [3, 0, 3, 39, 17]
    states = [[[0.0] * 12 for _ in range(layer.cell.states)] for layer in model.recurrent_layers]
    logits = []
    for token in text:
        x = model.embedding.to_dense()[token].tolist()  # a look-up
        for i, layer in enumerate(model.recurrent_layers):
            states[i] = sums.step(layer, x, states[i])
            x = states[i][0]
        for readout in model.readout:
            x = [max(0.0, number) for number in sums.product(readout, x, readout.bias)]
        logits.append(sums.product(model.embedding if tied else model.output, x, model.output.bias))
    with torch.no_grad():
        expected_T1V, _ = model(torch.tensor(text)[:, None])
    torch.testing.assert_close(torch.tensor(logits, dtype=torch.float64), expected_T1V[:, 0])
    assert forward_flops(model).sparse * len(text) == sums.operations


def test_sparse_flops_are_two_per_connection_that_exists() -> None:
    # embedding 40 x 8 (looked up: free), input 36 x 8, recurrent 36 x 12, output 40 x 12
    model = model_with(0.25, embedding_dim=8, hidden_size=12)
    assert forward_flops(model).sparse == 2 * (72 + 108 + 120)
    model.recurrent_layers[0].recurrent.connect(torch.tensor([3, 5, 7]))
    assert forward_flops(model).sparse == 2 * (72 + 3 + 120)
    # Tied, the embedding is multiplied once, as output: 40 x 12, input 36 x 12.
    tied = model_with(0.25, embedding_dim=12, hidden_size=12, tie_embeddings=True)
    assert forward_flops(tied).sparse == 2 * (108 + 108 + 120)


@pytest.mark.parametrize(
    ("method", "at_75", "at_90"),
    [
        (Static(), 0.25, 0.1),
        (SET(), 0.25, 0.1),
        (RigL(), 0.2525, 0.103),
        (SNFS(), 0.5, 0.4),
        (Prune(), 0.531, 0.4375),
        (Dense(), 1, 1),
    ],
)
def test_training_costs_the_published_share_of_dense_training(method: Method, at_75: float, at_90: float) -> None:
    for density, share in ((0.25, at_75), (0.1, at_90)):
        model = model_with(density, embedding_dim=20, hidden_size=40)
        result = training_flops(method, model, budgets_of(model), steps=200_000, characters_per_step=64)
        assert result.ratio == pytest.approx(share, abs=6e-4 if isinstance(method, Prune) else 5e-5)


@pytest.mark.parametrize(("pool", "window", "pooled"), [(3.0, None, 20), (0.1, 25, 2), (None, 100, 300)])
def test_positions_in_a_pool_cost_one_product_and_no_block_has_more_than_are_absent(
    pool: float | None, window: int | None, pooled: float
) -> None:
    model = CharLM(ModelConfig(cell="lstm", embedding_dim=4, hidden_size=5), VOCABULARY)
    for weight in model.sparse_weights().values():
        weight.connect(torch.arange(0))
    # 20 of each gate's 25 positions, and none of the 4 x 20 of the inputs and the 200 of the output.
    model.rnn[0].recurrent.connect(torch.arange(100).view(4, 25)[:, :20].flatten())
    method = Scout(pool=pool, window=window, interval=100)
    found = training_flops(method, model, budgets_of(model), steps=10, characters_per_step=64)
    still = training_flops(Static(), model, budgets_of(model), steps=10, characters_per_step=64)
    assert found.per_character - still.per_character == 2 * pooled


@pytest.mark.parametrize("initial", [0.0, 0.5, 0.9])
def test_granet_is_counted_from_the_connections_that_each_group_begins_with(initial: float) -> None:
    model = CharLM(ModelConfig(embedding_dim=8, hidden_size=12), vocab_size=20)
    config = BudgetConfig(sparsity=0.9, dense=("embedding", "output"))
    budgets = allocate(list(model.sparse_weights().values()), config)
    method, steps, counts = GraNet(interval=1, initial_sparsity=initial, start=0.0, stop=1.0), 400, []
    for step in range(1, steps + 1):
        planned = iter(method.targets([b for b in budgets if not b.dense], StepContext(step, steps, seed=0)))
        counts.append([b.connections if b.dense else next(planned) for b in budgets])
    multiplied = [not b.group.name.startswith("embedding") for b in budgets]
    forward = [2 * sum(n for n, is_multiplied in zip(now, multiplied, strict=True) if is_multiplied) for now in counts]
    mean = sum(forward) / steps
    dense = forward_flops(model).dense
    expected = (5 * mean + dense) / 2  # every step an update: appendix H of Evci et al.
    found = training_flops(method, model, budgets, steps, 10).per_character
    assert found == pytest.approx(expected, rel=0.01)


def test_totals_count_every_character_of_every_step() -> None:
    model = model_with(0.25, embedding_dim=20, hidden_size=40)
    result = training_flops(Static(), model, budgets_of(model), steps=10, characters_per_step=64)
    assert result.total == 3 * forward_flops(model).sparse * 640
    assert result.ratio == forward_flops(model).sparse / forward_flops(model).dense


@pytest.mark.parametrize("kind", ["dct", "svd"])
@pytest.mark.parametrize("method", [Static(), RigL(), SNFS(), Prune(), Dense(), Lottery(rewind=0)])
def test_a_basis_costs_dense_products_and_two_counted_transformations_per_batch(method: Method, kind: str) -> None:
    plain, model = model_with(0.25, embedding_dim=8, hidden_size=12), model_with(0.25, embedding_dim=8, hidden_size=12)
    for weight in model.sparse_weights().values():
        rows = weight.rows // len(weight.gates)
        matrix = torch.randn(weight.rows, weight.cols, generator=torch.Generator().manual_seed(0))
        weight.basis = Basis.dct(rows, weight.cols) if kind == "dct" else Basis.svd(matrix, len(weight.gates))
        weight.basis = weight.basis.to(weight.values)
    counter = FlopCounterMode(display=False)
    with counter:
        for weight in model.sparse_weights().values():
            (matrix,) = materialise([weight])
            matrix.sum().backward()
    transformations, dense = counter.get_total_flops(), forward_flops(plain).dense
    assert transformations > 0
    assert forward_flops(model) == ForwardFlops(sparse=dense, dense=dense)
    steps, batches, batch = 10, 4, 16
    result = training_flops(method, model, budgets_of(model), steps, batches * batch, micro_batches=batches)
    runs = 1 if not isinstance(method, Lottery) else 1 + len(method.earlier_runs(budgets_of(model), steps))
    earlier = earlier_flops(method, model, budgets_of(model), steps, batch) * steps * batches * batch
    assert result.total + earlier == pytest.approx(
        runs * steps * batches * (3 * dense * batch + transformations), rel=1e-12
    )
    assert result.dense_per_character == 3 * dense
