"""The names and signatures that programs outside rely on; changing one of them is a decision, not an accident."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import rnnsparse as rs

ROOT = Path(__file__).parent.parent
CLASSES = {
    "CHT", "CharLM", "Dense", "Embedding", "GRU", "GSE", "GraNet", "KDTicket", "LSTM", "Linear", "Lottery", "MEST",
    "Method", "ModelConfig", "Prune", "RNN", "RigL", "SET", "SNFS", "SNIP", "SRigL", "Scout", "SparseWeight",
    "Sparsifier", "Static", "TrainedModel",
}  # fmt: skip
STACK = (
    "input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, *, sparsity=0.0, "
    "block_rows=1, execution='auto', layer_norm=False, skip_connections=False, device=None, dtype=None, **unsupported"
)
SIGNATURES = {
    "LSTM": STACK,
    "GRU": STACK,
    "RNN": STACK,
    "Linear": "in_features, out_features, bias=True, *, sparsity=0.0, block_rows=1, execution='auto', device=None, "
    "dtype=None",
    "Embedding": "num_embeddings, embedding_dim, *, sparsity=0.0, device=None, dtype=None, **unsupported",
    "sparsify": "model, method, optimizer, *, steps, sparsity=0.9, seed=0, include=('*',), exclude=(), "
    "block_rows=None, values=None, scaler=None, **settings",
    "convert": "module",
    "to_dense": "module",
    "load": "path, device='auto'",
    "Sparsifier.backward": "self, loss, *, synchronise=True",
    "Sparsifier.step": "self",
    "Sparsifier.rounds": "self",
    "TrainedModel.sample": "self, prompt='', *, length=500, temperature=1.0, top_k=None, top_p=None, seed=0, stop=()",
    "TrainedModel.bits_per_character": "self, text, *, dynamic=False, dynamic_rate=None",
}


def test_the_public_names_are_these() -> None:
    functions = {name for name in SIGNATURES if "." not in name} - CLASSES
    assert set(rs.__all__) == CLASSES | functions | {"__version__"}
    assert set(rs.__all__) <= set(dir(rs))
    for name in CLASSES:
        assert inspect.isclass(getattr(rs, name)), name


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_these(name: str) -> None:
    found = rs
    for part in name.split("."):
        found = getattr(found, part)
    signature = inspect.signature(found)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    assert str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)) == f"({SIGNATURES[name]})"


def test_every_public_name_says_what_it_is() -> None:
    for name in set(rs.__all__) - {"__version__"}:
        assert (inspect.getdoc(getattr(rs, name)) or "").strip(), name


def test_type_checkers_see_the_same_names() -> None:
    stub = ast.parse((ROOT / "rnnsparse/__init__.pyi").read_text(encoding="utf-8"))
    typed = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed | {"__version__"} == set(rs.__all__)
    assert (ROOT / "rnnsparse/py.typed").exists()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Lstm'"):
        rs.Lstm  # noqa: B018


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, rnnsparse; print(any(name.partition('.')[0] in ('torch', 'numba') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "False\n"
