from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from rnnsparse.flops import forward_flops, training_flops
from rnnsparse.nn import reference
from rnnsparse.nn.language_model import CharLM, ModelConfig
from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.group import make_groups
from rnnsparse.sparsity.method import Method
from rnnsparse.sparsity.methods.dense import Dense
from rnnsparse.sparsity.methods.prune import Prune
from rnnsparse.sparsity.methods.rigl import RigL
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


def textbook_forward(model: CharLM, tokens_TB: torch.Tensor) -> None:
    """The forward pass written out with dense matrices and the textbook cells."""
    dense = {name: weight.to_dense() for name, weight in model.sparse_weights().items()}
    x, state_LSBH = F.embedding(tokens_TB, dense["embedding"]), model.initial_state(tokens_TB.shape[1])
    for i, layer in enumerate(model.recurrent_layers):
        weights = (dense[f"rnn.{i}.input"], dense[f"rnn.{i}.recurrent"], layer.bias_ih, layer.bias_hh)
        x, _ = reference.run(model.config.cell, x, state_LSBH[i], *weights)
    for i in range(len(model.config.readout_dims)):
        x = torch.relu(F.linear(x, dense[f"readout.{i}"]))
    F.linear(x, dense.get("output", dense["embedding"]))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_dense_flops_are_those_counted_in_a_textbook_run(cell: str, tied: bool) -> None:
    model = model_with(
        0.5,
        cell=cell,
        embedding_dim=8,
        hidden_size=12,
        num_layers=2,
        readout_dims=(16, 8),
        tie_embeddings=tied,
    )
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        textbook_forward(model, torch.zeros(TIME, BATCH, dtype=torch.int64))
    assert forward_flops(model).dense * TIME * BATCH == counter.get_total_flops()


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


def test_totals_count_every_character_of_every_step() -> None:
    model = model_with(0.25, embedding_dim=20, hidden_size=40)
    result = training_flops(Static(), model, budgets_of(model), steps=10, characters_per_step=64)
    assert result.total == 3 * forward_flops(model).sparse * 640
    assert result.dense_total == 3 * forward_flops(model).dense * 640
