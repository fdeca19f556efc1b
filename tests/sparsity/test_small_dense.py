"""The dense network with as many weights as the sparse one has connections."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from rnnsparse.cli import main
from rnnsparse.errors import UserError
from rnnsparse.nn.language_model import CharLM
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity.allocation import allocate
from rnnsparse.sparsity.methods.small_dense import SmallDense

VOCABULARY = 17


def weights(config: ModelConfig) -> int:
    return sum(weight.positions for weight in CharLM(config, VOCABULARY).sparse_weights().values())


def small(config: ModelConfig, **budget: Any) -> ModelConfig:
    return SmallDense().model_config(config, BudgetConfig(**budget), VOCABULARY)


def connections(config: ModelConfig, **budget: Any) -> int:
    model = CharLM(config, VOCABULARY)
    return sum(b.connections for b in allocate(list(model.sparse_weights().values()), BudgetConfig(**budget)))


def width_of_recurrent_layers(shape: dict[str, Any]) -> int:
    return int(shape["hidden_size"] * (shape["num_layers"] if shape["skip_connections"] else 1))


shapes = st.builds(
    lambda tie, dims, **shape: ModelConfig(
        tie_embeddings=tie,
        readout_dims=dims,
        **shape | ({"embedding_dim": dims[-1] if dims else width_of_recurrent_layers(shape)} if tie else {}),
    ),
    tie=st.booleans(),
    layer_norm=st.booleans(),
    skip_connections=st.booleans(),
    dims=st.sampled_from([(), (5,), (9, 4)]),
    cell=st.sampled_from(["lstm", "gru"]),
    embedding_dim=st.integers(1, 12),
    hidden_size=st.integers(1, 24),
    num_layers=st.integers(1, 3),
)


def test_a_budget_of_less_than_any_network_is_no_network_without_units() -> None:
    shape = ModelConfig(embedding_dim=4, hidden_size=6, readout_dims=(3,))
    assert small(shape, sparsity=0.5, dense=("output",), overrides={"rnn.0.input": 0.2}).hidden_size >= 1


@given(shape=shapes, sparsity=st.floats(0, 0.9), distribution=st.sampled_from(["uniform", "erk"]))
def test_no_number_of_units_comes_closer(shape: ModelConfig, sparsity: float, distribution: Any) -> None:
    budget = {"sparsity": round(sparsity, 3), "distribution": distribution, "granularity": "matrix"}

    def of_size(hidden_size: int) -> ModelConfig:
        follows = shape.tie_embeddings and not shape.readout_dims
        sizes = vars(shape) | {"hidden_size": hidden_size}
        return ModelConfig(**sizes | ({"embedding_dim": width_of_recurrent_layers(sizes)} if follows else {}))

    try:
        wanted = connections(shape, **budget)
    except UserError:
        assume(False)
    sizes = {units: abs(weights(of_size(units)) - wanted) for units in range(1, shape.hidden_size + 2)}
    if weights(of_size(1)) > wanted:
        with pytest.raises(UserError):
            small(shape, **budget)
        return
    found = small(shape, **budget)
    assert found == of_size(found.hidden_size), "nothing else changes"
    assert sizes[found.hidden_size] == min(sizes.values())


def test_the_size_by_hand() -> None:
    # GRU, V = 17, E = 4: 17 * 4 + 3 * 4 h + 3 h h + 17 h weights with h units, which are 68, 100, 138, 182, 232, ...
    # for h = 0, 1, 2, 3, 4, and 2,116 for h = 21.8. Half of the 20 units' 1,848 are 924: h = 12 has 848, 13 has 952.
    config = ModelConfig(cell="gru", embedding_dim=4, hidden_size=20)
    assert weights(config) == 68 + 12 * 20 + 3 * 400 + 17 * 20 == 1848
    assert small(config, sparsity=0.5).hidden_size == 13
    assert small(config, sparsity=0.0).hidden_size == 20


def test_blocks_dense_by_name_and_overrides_count_with_what_they_keep() -> None:
    config = ModelConfig(cell="gru", embedding_dim=4, hidden_size=20)
    # The embedding's 68 stay; of the others' 1,780 half are 890: 958 in all.
    assert small(config, sparsity=0.5, dense=("embedding",)).hidden_size == 13
    # Recurrent 1,200 in full, of the other 648 half: 1,524, which h = 18 (1,562) comes nearer to than 17 (1,428).
    assert small(config, sparsity=0.5, overrides={"rnn.0.recurrent": 0.0}).hidden_size == 18


def test_a_tied_embedding_follows_the_state_it_meets() -> None:
    config = ModelConfig(cell="lstm", embedding_dim=24, hidden_size=24, tie_embeddings=True)
    found = small(config, sparsity=0.75)
    assert found.embedding_dim == found.hidden_size < 24
    behind_readouts = ModelConfig(cell="lstm", embedding_dim=6, hidden_size=24, tie_embeddings=True, readout_dims=(6,))
    assert small(behind_readouts, sparsity=0.75).embedding_dim == 6


def test_what_one_unit_exceeds_is_refused_in_one_line() -> None:
    config = ModelConfig(cell="gru", embedding_dim=64, hidden_size=20)
    with pytest.raises(UserError) as error:
        small(config, sparsity=0.9)
    wanted = connections(config, sparsity=0.9)
    assert str(error.value) == (
        f"sparsity.sparsity: 0.9 leaves {wanted:,} connections, fewer than the {17 * 64 + 3 * 65 + 17:,} weights of a "
        "dense network with one unit; lower it, or shrink embedding_dim and readout_dims"
    )


@pytest.mark.parametrize("method", ["dense", "small_dense"])
def test_sparsity_is_not_asked_of_a_network_that_has_none(tmp_path: Path, method: str) -> None:
    # So few positions that a twentieth of some gate's would be none.
    settings = [f"sparsity.method={method}", "sparsity.sparsity=0.95", "sparsity.distribution=uniform"]
    settings += ["model.embedding_dim=1", f"model.hidden_size={3 if method == 'dense' else 40}"]
    report = json.loads(out_of("inspect", configuration(tmp_path), *settings, "--json"))
    assert all(block["density"] == 1 for block in report["blocks"])


# ---- from the command line


def configuration(folder: Path) -> Path:
    """Return a configuration of a small_dense run in a folder."""
    (folder / "text.txt").write_text("pack my box with five dozen liquor jugs.\n" * 40)
    (folder / "tiny.yaml").write_text(f"""
run: {{dir: {folder / "run"}}}
data: {{source: text, tokenizer: char, path: {folder / "text.txt"}, cache: {folder / "cache"}}}
model: {{embedding_dim: 4, hidden_size: 16}}
sparsity: {{method: small_dense, sparsity: 0.5}}
training: {{steps: 6, batch_size: 3, sequence_length: 5}}
evaluation: {{interval: 2, lanes: 1}}
logging: {{interval: 1, tensorboard: false, pictures: null}}
""")
    return folder / "tiny.yaml"


def out_of(*arguments: object) -> str:
    """Return what a command prints; it must succeed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([str(argument) for argument in arguments]) == 0
    return out.getvalue()


def test_a_run_can_be_evaluated_sampled_exported_inspected_and_resumed(tmp_path: Path) -> None:
    config, run = configuration(tmp_path), tmp_path / "run"
    planned = json.loads(out_of("inspect", config, "--json"))
    out_of("train", config)
    summary = json.loads((run / "summary.json").read_text())
    inspected = json.loads(out_of("inspect", run, "--json"))
    assert planned == inspected
    assert summary["connections"] == summary["positions"] == inspected["connections"]
    assert summary["sparsity"] == 0
    assert 0.3 < summary["training_flops_vs_dense"] < 0.6, "of the configured network's"
    hidden = next(b["cols"] for b in inspected["blocks"] if b["name"] == "output")
    assert hidden < 16
    evaluated = json.loads(out_of("evaluate", run, "--split", "validation", "--json"))
    assert evaluated["bits_per_character"] == pytest.approx(summary["bits_per_character"])
    assert len(out_of("sample", run, "--prompt", "pack", "--length", "7").rstrip("\n")) >= 4
    out_of("export", run, tmp_path / "model.pt", "--format", "torch")
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert saved["config"]["hidden_size"] == hidden
    rnn = nn.GRU(saved["config"]["embedding_dim"], saved["config"]["hidden_size"])
    rnn.load_state_dict({k.removeprefix("rnn."): v for k, v in saved["state_dict"].items() if k.startswith("rnn.")})
    out_of("export", run, tmp_path / "model.safetensors", "--format", "safetensors")
    out_of("train", config, "--resume")
    assert json.loads((run / "summary.json").read_text())["bits_per_character"] == summary["bits_per_character"]
