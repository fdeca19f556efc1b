import itertools
import json
import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from rnnsparse.data.split import Split
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import RunFailed, UserError
from rnnsparse.evaluation import evaluate
from rnnsparse.nn.language_model import CharLM
from rnnsparse.randomness import generator_for
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.run import EvaluationConfig
from rnnsparse.sparsity.blocks import set_block_rows
from rnnsparse.sparsity.selection import draw_positions
from rnnsparse.storage.exports import FORMATS, export
from tests.readme import code_blocks

VOCABULARY = 20
TOKENIZER = Tokenizer.char("\n abcdefghijklmnopé")


class PlainModel(nn.Module):
    """What a stranger builds from the exported config, with nothing but PyTorch."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config["vocab_size"], config["embedding_dim"])
        rnn = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[config["cell"]]
        embedding, hidden, layers = config["embedding_dim"], config["hidden_size"], config["num_layers"]
        self.norm, self.skip = config.get("layer_norm", False), config.get("skip_connections", False)
        if self.norm or self.skip:
            inputs = [embedding] + [hidden + embedding * self.skip] * (layers - 1)
            self.rnn = nn.ModuleList(rnn(width, hidden) for width in inputs)
        else:
            self.rnn = rnn(embedding, hidden, layers)
        if self.norm:
            self.norm = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(layers))
        widths = [hidden * layers if self.skip else hidden, *config["readout_dims"]]
        self.readout = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.output = nn.Linear(widths[-1], config["vocab_size"])
        if config["tie_embeddings"]:
            self.output.weight = self.embedding.weight
        activations: dict[str, Callable[[Tensor], Tensor]] = {
            "relu": torch.relu,
            "tanh": torch.tanh,
            "identity": nn.Identity(),
        }
        self.activation = activations[config["readout_activation"]]

    def forward(self, tokens_TB: Tensor) -> Tensor:
        x = embedded = self.embedding(tokens_TB)
        outputs: list[Tensor] = []
        for i, rnn in enumerate(self.rnn if isinstance(self.rnn, nn.ModuleList) else [self.rnn]):
            x, _ = rnn(torch.cat([x, embedded], 2) if self.skip and i > 0 else x)
            x = self.norm[i](x) if self.norm else x
            outputs.append(x)
        x = torch.cat(outputs, 2) if self.skip else x
        for readout in self.readout:
            x = self.activation(readout(x))
        logits: Tensor = self.output(x)
        return logits


def sparse_model(vocab_size: int = VOCABULARY, density: float = 0.3, block_rows: int = 1, **config: Any) -> CharLM:
    model = CharLM(ModelConfig(**config), vocab_size)
    set_block_rows(list(model.sparse_weights().values()), block_rows)
    for name, weight in model.sparse_weights().items():
        positions = weight.topology.positions
        weight.connect(draw_positions(round(density * positions), positions, generator_for(1, name)))
    model.reset_parameters(1)
    return model


def load_plain(path: Path, dtype: torch.dtype = torch.float32) -> PlainModel:
    exported = torch.load(path, weights_only=True)
    plain = PlainModel(exported["config"]).to(dtype)
    plain.load_state_dict(exported["state_dict"], strict=True)
    return plain


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("readout_dims", [(), (10, 8)])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("cell", "block_rows"), [("lstm", 1), ("gru", 1), ("gru", 4)])
def test_plain_pytorch_loads_the_export_strictly_and_gives_the_same_logits(
    tmp_path: Path,
    cell: str,
    block_rows: int,
    tied: bool,
    num_layers: int,
    readout_dims: tuple[int, ...],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    model = sparse_model(
        block_rows=block_rows,
        cell=cell,
        embedding_dim=8 if readout_dims else 12,
        hidden_size=12,
        num_layers=num_layers,
        readout_dims=readout_dims,
        readout_activation="tanh",
        tie_embeddings=tied,
    ).to(dtype)
    export("torch", model, TOKENIZER, tmp_path / "model.pt")
    plain = load_plain(tmp_path / "model.pt", dtype)
    tokens_TB = torch.randint(VOCABULARY, (30, 3), generator=generator_for(1, "tokens"))
    torch.testing.assert_close(plain(tokens_TB), model(tokens_TB)[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize(
    ("norm", "skip", "layers"), [(True, False, 1), (True, False, 2), (False, True, 3), (True, True, 3)]
)
def test_normalised_layers_and_skip_connections_are_layers_of_a_list(
    tmp_path: Path, cell: str, norm: bool, skip: bool, layers: int
) -> None:
    model = sparse_model(
        cell=cell, embedding_dim=8, hidden_size=12, num_layers=layers, layer_norm=norm, skip_connections=skip,
        dropout=0.5 * (layers > 1), readout_dims=(8,), tie_embeddings=True,
    ).eval()  # fmt: skip
    for layer in model.recurrent_layers if norm else ():
        nn.init.uniform_(layer.norm.weight)
        nn.init.uniform_(layer.norm.bias)
    export("torch", model, TOKENIZER, tmp_path / "model.pt")
    exported = torch.load(tmp_path / "model.pt", weights_only=True)
    assert {key: exported["config"].get(key, False) for key in ("layer_norm", "skip_connections")} == {
        "layer_norm": norm,
        "skip_connections": skip,
    }
    tokens_TB = torch.randint(VOCABULARY, (30, 3), generator=generator_for(1, "tokens"))
    plain = load_plain(tmp_path / "model.pt")
    torch.testing.assert_close(plain(tokens_TB), model(tokens_TB)[0], rtol=0, atol=1e-5)
    export("safetensors", model, TOKENIZER, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        found = {name for name in file.keys() if ".norm." in name}  # noqa: SIM118 (no mapping)
        assert found == {f"rnn.{i}.norm.{part}" for i in range(layers) for part in ("weight", "bias") if norm}
        assert all(torch.equal(file.get_tensor(name), model.get_parameter(name)) for name in found)


@pytest.mark.parametrize(("norm", "skip", "layers"), [(True, False, 1), (False, True, 2), (True, True, 3)])
def test_the_readme_says_how_to_build_them(tmp_path: Path, norm: bool, skip: bool, layers: int) -> None:
    (example,) = (block for block in code_blocks("python", "checkpoints/README.md") if "class PlainChain" in block)
    names: dict[str, Any] = {}
    exec(compile(example, "checkpoints/README.md", "exec"), names)
    model = sparse_model(num_layers=layers, layer_norm=norm, skip_connections=skip, embedding_dim=8, hidden_size=12)
    export("torch", model, TOKENIZER, tmp_path / "model.pt")
    exported = torch.load(tmp_path / "model.pt", weights_only=True)
    plain = names["PlainChain"](exported["config"])
    plain.load_state_dict(exported["state_dict"], strict=True)
    tokens_TB = torch.randint(VOCABULARY, (30, 3), generator=generator_for(1, "tokens"))
    torch.testing.assert_close(plain(tokens_TB), model(tokens_TB)[0], rtol=0, atol=1e-5)


def test_the_export_holds_config_and_state_by_the_agreed_names(tmp_path: Path) -> None:
    model = sparse_model(embedding_dim=8, hidden_size=12, num_layers=2, readout_dims=(8,), tie_embeddings=True)
    export("torch", model, TOKENIZER, tmp_path / "model.pt")
    exported = torch.load(tmp_path / "model.pt", weights_only=True)
    assert exported["config"] == {
        "cell": "gru",
        "vocab_size": VOCABULARY,
        "embedding_dim": 8,
        "hidden_size": 12,
        "num_layers": 2,
        "readout_dims": [8],
        "readout_activation": "relu",
        "tie_embeddings": True,
    }
    rnn = [f"rnn.{p}_{k}_l{i}" for i in (0, 1) for p in ("weight", "bias") for k in ("ih", "hh")]
    names = ["embedding.weight", *rnn, "readout.0.weight", "readout.0.bias", "output.weight", "output.bias"]
    assert set(exported) == {"config", "state_dict", "vocabulary", "tokenizer"}
    assert sorted(exported["state_dict"]) == sorted(names)
    assert torch.equal(exported["state_dict"]["output.weight"], exported["state_dict"]["embedding.weight"])


@pytest.mark.parametrize("tokenizer", [TOKENIZER, Tokenizer.byte()])
def test_plain_pytorch_reads_the_vocabulary_with_the_weights(tmp_path: Path, tokenizer: Tokenizer) -> None:
    export("torch", sparse_model(tokenizer.vocab_size, dropout=0.5), tokenizer, tmp_path / "model.pt")
    exported = torch.load(tmp_path / "model.pt", weights_only=True)
    ids = tokenizer.encode("a café\n").tolist()
    assert b"".join(exported["vocabulary"][i] for i in ids).decode() == "a café\n"
    assert len(exported["vocabulary"]) == exported["config"]["vocab_size"]
    assert Tokenizer.from_json(exported["tokenizer"]) == tokenizer


@pytest.mark.parametrize("format", FORMATS)
def test_a_model_is_not_exported_with_the_symbols_of_another(tmp_path: Path, format: str) -> None:
    with pytest.raises(ValueError, match="a tokenizer of 256 symbols is not that of a model of 20"):
        export(format, sparse_model(), Tokenizer.byte(), tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_the_export_gives_the_same_bits_per_character(tmp_path: Path) -> None:
    tokenizer = Tokenizer.byte()
    model = sparse_model(tokenizer.vocab_size, embedding_dim=8, hidden_size=12)
    tokens = tokenizer.encode("the quick brown fox " * 20)
    export("torch", model, tokenizer, tmp_path / "model.pt")
    logits_TBV = load_plain(tmp_path / "model.pt")(torch.from_numpy(tokens[:-1].astype(np.int64))[:, None])
    bits = nn.functional.cross_entropy(logits_TBV[:, 0], torch.from_numpy(tokens[1:].astype(np.int64))) / math.log(2)
    split = Split(tokens, len(tokens), len(tokens))
    expected = evaluate(model, split, tokenizer, EvaluationConfig(lanes=1)).bits_per_character
    assert bits.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_safetensors_hold_every_connection_value_and_bias(tmp_path: Path, tied: bool) -> None:
    model = sparse_model(cell="lstm", embedding_dim=300, hidden_size=300, readout_dims=(300,), tie_embeddings=tied)
    embedding = model.embedding
    embedding.connect(torch.arange(embedding.positions), torch.randn(embedding.positions))
    model.recurrent_layers[0].input.values.data[:50] = 0  # existing connections that happen to be zero
    export("safetensors", model, TOKENIZER, tmp_path / "model.safetensors")

    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    # A block whose positions are all connected needs no positions.
    assert torch.equal(tensors.pop("embedding.values"), embedding.values)
    for weight in list(model.sparse_weights().values())[1:]:
        dense, exists = torch.zeros(weight.rows, weight.cols), torch.zeros(weight.rows, weight.cols)
        for block in weight.gates:
            parts = [tensors.pop(f"{block.name}.{part}") for part in ("values", "row_pointers", "columns")]
            values_N, pointers_R, columns_N = parts
            assert columns_N.dtype == torch.uint16
            for row, (start, stop) in enumerate(itertools.pairwise(pointers_R.tolist()), block.start_row):
                columns = columns_N[start:stop].long()
                dense[row, columns], exists[row, columns] = values_N[start:stop], 1.0
        assert torch.equal(dense, weight.to_dense())
        assert torch.equal(exists.flatten().nonzero().flatten(), weight.indices)
    biases = {"rnn.0.bias_ih", "rnn.0.bias_hh", "readout.0.bias", "output.bias"}
    assert set(tensors) == biases
    assert all(torch.equal(tensors[name], model.get_parameter(name)) for name in biases)


def test_safetensors_describe_themselves(tmp_path: Path) -> None:
    tokenizer = Tokenizer.char("abcé")
    export("safetensors", sparse_model(5), tokenizer, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["format_version"]) == ("rnnsparse", "1")
    assert Tokenizer.from_json(metadata["tokenizer"]) == tokenizer
    config = json.loads(metadata["config"])
    assert (config["vocab_size"], config["cell"], config["readout_dims"]) == (5, "gru", [])


def test_safetensors_grow_with_the_connections(tmp_path: Path) -> None:
    for density in (0.01, 0.1):
        model = sparse_model(256, density, embedding_dim=128, hidden_size=256)
        export("safetensors", model, Tokenizer.byte(), tmp_path / f"{density}.safetensors")
    small, large = ((tmp_path / f"{density}.safetensors").stat().st_size for density in (0.01, 0.1))
    dense = sum(4 * weight.positions for weight in model.sparse_weights().values())
    assert small < large < 0.17 * dense


# ---- what every format does


def export_to(path: Path, format: str) -> None:
    export(format, sparse_model(256, embedding_dim=64, hidden_size=64), Tokenizer.byte(), path)


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_ever_overwritten(tmp_path: Path, format: str) -> None:
    path = tmp_path / "out"
    path.write_text("precious")
    with pytest.raises(UserError, match="out: exists"):
        export_to(path, format)
    with pytest.raises(UserError, match="exists"):
        export_to(tmp_path, format)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("format", FORMATS)
def test_a_missing_folder_is_named(tmp_path: Path, format: str) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        export_to(tmp_path / "nowhere" / "out", format)


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_cannot_be_completed_leaves_nothing_behind(tmp_path: Path, format: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(RunFailed, match="File too large"):
            export_to(tmp_path / "out", format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_others_may_read_the_file_as_any_new_one(tmp_path: Path, format: str) -> None:
    export_to(tmp_path / "out", format)
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ordinary", "out"]
