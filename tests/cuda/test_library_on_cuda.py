"""Layers and `sparsify` on a GPU: what they are on a CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import rnnsparse as rs
from tests.sparsity.test_sparsify import STEPS, Net, adam, connections, loss_of

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_stack_is_pytorchs_on_a_gpu(cell: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = getattr(rs, cell)(16, 32, 2, batch_first=True, sparsity=0.8, device="cuda", dtype=dtype)
    dense = rs.to_dense(copy.deepcopy(layer))
    x = torch.randn(3, 7, 16, device="cuda", dtype=dtype)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3}[dtype]
    torch.testing.assert_close(layer(x)[0], dense(x)[0], rtol=tolerance, atol=tolerance)


def test_a_layer_that_moves_takes_its_connections_along() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(rs.Embedding(9, 8, sparsity=0.5), rs.Linear(8, 4, sparsity=0.9)).double()
    tokens = torch.tensor([0, 3, 8])
    here = layer(tokens)
    there = layer.to("cuda")(tokens.to("cuda"))
    torch.testing.assert_close(there.cpu(), here)
    torch.testing.assert_close(layer.to("cpu")(tokens), here)


@pytest.mark.parametrize("method", ["rigl", "scout", "snfs", "prune"])
def test_a_loop_of_ones_own_chooses_the_connections_that_it_chooses_on_a_cpu(method: str) -> None:
    chosen = []
    for device in ("cuda", "cpu"):
        model = Net(execution="masked").double().to(device)
        optimizer = adam(model)
        sparsifier = rs.sparsify(model, method, optimizer, sparsity=0.7, steps=STEPS, interval=3)
        for step in range(STEPS):
            optimizer.zero_grad()
            sparsifier.backward(loss_of(model, step))
            sparsifier.step()
        chosen.append([m.indices.cpu() for m in model.modules() if isinstance(m, rs.SparseWeight)])
    for here, there in zip(*chosen, strict=True):
        assert torch.equal(here, there)


def test_half_precision_with_a_scaler_learns() -> None:
    model = Net().to("cuda")
    optimizer, scaler = adam(model), torch.amp.GradScaler("cuda")
    sparsifier = rs.sparsify(model, "rigl", optimizer, sparsity=0.7, steps=STEPS, interval=3, scaler=scaler)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cuda"):
            loss = loss_of(model, 0)
        sparsifier.backward(loss)
        sparsifier.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert connections(model) == sum(budget.connections for budget in sparsifier.budgets)
