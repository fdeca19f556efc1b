"""Without numba, sparse execution still works: slowly, with one warning, on PyTorch's sparse products."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rnnsparse.kernels import fallback

# Makes numba look as if it were not installed, for the process that finds this first on its path.
WITHOUT_NUMBA = """
import importlib.machinery

find_spec = importlib.machinery.PathFinder.find_spec

def find_all_but_numba(name, path=None, target=None):
    return None if name.partition(".")[0] in ("numba", "llvmlite") else find_spec(name, path, target)

importlib.machinery.PathFinder.find_spec = staticmethod(find_all_but_numba)
"""

PROGRAM = """
import copy, json, sys, warnings
import torch
from torch.nn.functional import cross_entropy
from rnnsparse.nn.language_model import CharLM, ModelConfig
from rnnsparse.sparsity.allocation import BudgetConfig, allocate, connect_randomly
from rnnsparse.sparsity.methods.rigl import RigL
from rnnsparse.sparsity.sparsifier import Sparsifier

def train(cell, execution, **shape):
    config = ModelConfig(cell=cell, embedding_dim=8, hidden_size=8, num_layers=2, execution=execution, **shape)
    model = CharLM(config, 11).double()
    model.execution = execution
    budgets = allocate(list(model.sparse_weights().values()), BudgetConfig(sparsity=0.7))
    method = RigL(interval=2, stop=1.0)
    connect_randomly(budgets, 1, method.initial_connections)
    model.reset_parameters(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sparsifier = Sparsifier(method, budgets, optimizer, seed=1, total_steps=9)
    generator = torch.Generator().manual_seed(2)
    losses, state = [], None
    for step in range(1, 7):
        # Once more symbols than moments, once fewer.
        tokens = torch.randint(11, (3, 2) if step % 3 == 0 else (5, 3), generator=generator)
        optimizer.zero_grad()
        sparsifier.before_backward(step)
        loss = cross_entropy(model(tokens[:-1])[0].flatten(0, 1), tokens[1:].flatten())
        loss.backward()
        losses.append(float(loss.detach()))
        del loss
        if sparsifier.after_backward(step):
            optimizer.step()
        sparsifier.after_step(step)
    logits, state = model.stepper().step(torch.tensor([1, 2]), model.initial_state(2))
    topology = [w.indices.tolist() for w in model.sparse_weights().values()]
    return losses, torch.cat([p.detach() for p in model.parameters()] + [logits.flatten(), state.flatten()]), topology

torch.set_num_threads(1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    worst, same = 0.0, True
    for cell in ("lstm", "gru"):
        for shape in ({}, {"tie_embeddings": True, "readout_dims": (8,)}):
            losses, numbers, topology = train(cell, "sparse", **shape)
            expected_losses, expected, expected_topology = train(cell, "masked", **shape)
            same = same and topology == expected_topology
            worst = max(worst, float((numbers - expected).abs().max()))
            worst = max(worst, *(abs(a - b) for a, b in zip(losses, expected_losses)))
said = [[w.category.__name__, str(w.message)] for w in caught]
compiled = sorted(name for name in sys.modules if name.partition(".")[0] in ("numba", "llvmlite"))
print(json.dumps({"worst": worst, "same": same, "warnings": said, "compiled": compiled}))
"""


# As with a numba that does not know the NumPy beside it.
BROKEN_NUMBA = 'raise ImportError("Numba needs NumPy 2.0 or less")'


@pytest.mark.parametrize(
    ("file", "source"),
    [("sitecustomize.py", WITHOUT_NUMBA), ("numba.py", BROKEN_NUMBA)],
    ids=["not installed", "not importable"],
)
def test_a_model_trains_without_numba_as_in_masked_execution_and_one_warning_says_so(
    file: str, source: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / file).write_text(source)
    environment = environment | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["compiled"] == []
    assert found["same"], "the topologies differ"
    assert found["worst"] <= 1e-10
    assert len(found["warnings"]) == 1, found["warnings"]
    category, message = found["warnings"][0]
    assert category == "RuntimeWarning"
    assert message.startswith("numba ")


def test_the_sampled_product_gathers_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "_warn", lambda: None)
    indices = torch.arange(0, 600, 3)
    matrix = fallback.build_matrix(indices, 20, 30)
    generator = torch.Generator().manual_seed(0)
    g, x = (torch.randn(4, n, 5, dtype=torch.float64, generator=generator) for n in (20, 30))
    expected = torch.einsum("trb,tcb->rc", g, x).flatten()[indices]
    # All at once; in pieces of 7 with a shorter last one; one by one.
    for gathered in (1 << 22, 7 * 4 * 5, 1):
        monkeypatch.setattr(fallback, "GATHERED", gathered)
        out = torch.zeros(200, dtype=torch.float64)
        fallback.add_sampled_product(matrix, g, x, out)
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_the_whole_batch_is_one_tile() -> None:
    assert [fallback.tile_width(torch.float32, batch) for batch in (0, 1, 3, 33)] == [1, 1, 3, 33]
