from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from rnnsparse.errors import UserError
from rnnsparse.nn.language_model import CharLM
from rnnsparse.settings.model import ModelConfig
from rnnsparse.sparsity.blocks import set_block_rows
from rnnsparse.storage import weights
from rnnsparse.storage.weights import WeightsFile

TINY = ModelConfig(cell="gru", embedding_dim=4, hidden_size=3)
BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


def model_of(config: ModelConfig, vocab_size: int = 5, density: float = 0.4, seed: int = 0) -> CharLM:
    """A model with a random topology and random values."""
    model = CharLM(config, vocab_size)
    generator = torch.Generator().manual_seed(seed)
    for weight in model.sparse_weights().values():
        count = round(density * weight.positions)
        indices = torch.randperm(weight.positions, generator=generator)[:count].sort().values
        weight.connect(indices, torch.randn(count, generator=generator))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def bits(model: CharLM) -> dict[str, list[int]]:
    """Every number of a model: topology, and the bit patterns of values and biases (-0.0 is not 0.0)."""
    numbers = {f"{name}.indices": w.indices.tolist() for name, w in model.sparse_weights().items()}
    for name, parameter in model.named_parameters():
        numbers[name] = parameter.detach().view(BITS[parameter.dtype]).tolist()
    return numbers


def write(path: Path, model: CharLM) -> None:
    path.write_bytes(weights.to_bytes(model, {"format": "pt"}))


def reread(model: CharLM, path: Path) -> CharLM:
    write(path, model)
    other = model_of(model.config, model.vocab_size, density=0.7, seed=1).to(model.embedding.values.dtype)
    WeightsFile(path).apply(other)
    return other


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_file_is_the_one_that_safetensors_writes_for_torch(tmp_path: Path, dtype: torch.dtype) -> None:
    model = model_of(ModelConfig(cell="lstm", embedding_dim=300, hidden_size=3), vocab_size=300).to(dtype)
    write(tmp_path / "ours", model)
    tensors = {name: tensor.clone() for name, tensor in weights.tensors(model).items()}
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_halved_numbers_come_back_as_the_nearest_that_fp16_has(tmp_path: Path, dtype: torch.dtype) -> None:
    config = ModelConfig(cell="lstm", embedding_dim=3, hidden_size=4, layer_norm=True)
    model, other = (model_of(config, seed=seed).to(dtype) for seed in (0, 1))
    (tmp_path / "whole").write_bytes(weights.to_bytes(model, {}))
    (tmp_path / "halved").write_bytes(weights.to_bytes(model, {}, halved=True))
    assert (tmp_path / "halved").stat().st_size < (tmp_path / "whole").stat().st_size
    WeightsFile(tmp_path / "halved").apply(other)
    for found, expected in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(found, expected.half().to(dtype))
    for name, weight in other.sparse_weights().items():
        assert torch.equal(weight.indices, model.sparse_weights()[name].indices)


def test_files_of_changing_lengths_leave_nothing_in_memory(tmp_path: Path) -> None:
    model = model_of(ModelConfig(cell="gru", embedding_dim=4, hidden_size=16))
    weight = model.sparse_weights()["rnn.0.recurrent"]

    def left_by(lengths: range) -> int:
        gc.collect()
        before = sys.getallocatedblocks()
        for length in lengths:
            weight.connect(torch.arange(length))
            write(tmp_path / "file", model)
        gc.collect()
        return sys.getallocatedblocks() - before

    left_by(range(10, 60))  # caches fill
    assert left_by(range(300, 350)) < 500  # safetensors.torch leaves 3,600


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "config",
    [
        TINY,
        ModelConfig(cell="lstm", embedding_dim=4, hidden_size=3, num_layers=2, readout_dims=(6, 2)),
        ModelConfig(cell="gru", embedding_dim=3, hidden_size=3, tie_embeddings=True),
    ],
    ids=["gru", "deep-lstm", "tied"],
)
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, config: ModelConfig, dtype: torch.dtype) -> None:
    model = model_of(config).to(dtype)
    tokens = torch.tensor([[0, 1], [2, 3], [4, 0]])
    other = reread(model, tmp_path / "m")
    assert bits(other) == bits(model)
    assert torch.equal(other(tokens)[0], model(tokens)[0])


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(topology=st.lists(st.sets(st.integers(0, 35)), min_size=4, max_size=4))
def test_any_topology_comes_back_and_a_zero_value_is_a_connection(tmp_path: Path, topology: list[set[int]]) -> None:
    model = CharLM(TINY, 5)
    for weight, positions in zip(model.sparse_weights().values(), topology, strict=True):
        indices = torch.tensor(sorted(p for p in positions if p < weight.positions), dtype=torch.int64)
        values = torch.tensor([0.0, -0.0, 1.5]).repeat(12)[: len(indices)]
        weight.connect(indices, values)
    assert bits(reread(model, tmp_path / "m")) == bits(model)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_blocks_without_connections_and_full_blocks_come_back(tmp_path: Path, density: float) -> None:
    model = model_of(TINY, density=density)
    assert bits(reread(model, tmp_path / "m")) == bits(model)


def test_a_block_is_stored_as_rows_and_columns_and_a_full_one_as_values_alone(tmp_path: Path) -> None:
    model = model_of(TINY, density=0.0)
    # gate r:  . 1 . 2     gate z:  all of it     gate n:  nothing
    #          . . . .
    #          3 . . .
    indices = torch.tensor([1, 3, 8, *range(12, 24)])
    model.sparse_weights()["rnn.0.input"].connect(indices, torch.arange(1.0, 16.0))
    write(tmp_path / "m", model)

    stored = {name: t for name, t in load_file(tmp_path / "m").items() if name.startswith("rnn.0.input")}
    assert {name: tensor.tolist() for name, tensor in stored.items()} == {
        "rnn.0.input.r.values": [1, 2, 3],
        "rnn.0.input.r.row_pointers": [0, 2, 2, 3],
        "rnn.0.input.r.columns": [1, 3, 0],
        "rnn.0.input.z.values": list(range(4, 16)),
        "rnn.0.input.n.values": [],
        "rnn.0.input.n.row_pointers": [0, 0, 0, 0],
        "rnn.0.input.n.columns": [],
    }


@pytest.mark.parametrize(
    ("cols", "dtype"),
    [
        (256, torch.uint8),
        (257, torch.uint16),
        (65536, torch.uint16),
        (65537, torch.int32),
    ],
)
def test_columns_take_the_smallest_type_that_fits(tmp_path: Path, cols: int, dtype: torch.dtype) -> None:
    model = CharLM(ModelConfig(embedding_dim=cols, hidden_size=2), 3)
    model.embedding.connect(torch.tensor([0, cols - 1, cols, 3 * cols - 1]), torch.arange(4.0))
    write(tmp_path / "m", model)
    assert load_file(tmp_path / "m")["embedding.columns"].dtype == dtype

    other = CharLM(model.config, 3)
    WeightsFile(tmp_path / "m").apply(other)
    assert bits(other) == bits(model)


R = "rnn.0.recurrent.r"
Tensors = dict[str, Tensor]


def put(name: str, numbers: list[float], dtype: torch.dtype) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: torch.tensor(numbers, dtype=dtype)})


# Recurrent gate r in the file:  . a b     row pointers 0 2 2 4
#                                . . .     columns 1 2 0 2
#                                c . d
@pytest.mark.parametrize(
    ("tamper", "complaint"),
    [
        (put(f"{R}.row_pointers", [1, 2, 2, 4], torch.int32), "does not rise from 0 to 4"),
        (put(f"{R}.row_pointers", [0, 2, 2, 5], torch.int32), "does not rise from 0 to 4"),
        (put(f"{R}.row_pointers", [0, 3, 2, 4], torch.int32), "does not rise from 0 to 4"),
        (put(f"{R}.row_pointers", [0, 2**63 - 1, -(2**63), 4], torch.int64), "does not rise from 0 to 4"),
        (put(f"{R}.row_pointers", [0, 2, 4], torch.int32), "has shape [3], not [4]"),
        (put(f"{R}.row_pointers", [0, 2, 2, 4], torch.float32), "has type F32, not I32 or I64"),
        (put(f"{R}.columns", [1, 3, 0, 2], torch.uint8), "leaves the range 0 to 2"),
        (put(f"{R}.columns", [2, 1, 0, 2], torch.uint8), "does not rise strictly"),
        (put(f"{R}.columns", [1, 1, 0, 2], torch.uint8), "does not rise strictly"),
        (put(f"{R}.columns", [1, 2, 0], torch.uint8), "has shape [3], not [4]"),
        (put(f"{R}.columns", [1, 2, 0, 2], torch.int32), "has type I32, not U8"),
        (put(f"{R}.values", [0] * 10, torch.float32), "its gate is 3 x 3"),
        (put(f"{R}.values", [0] * 4, torch.float64), "has type F64, not F32"),
        (lambda tensors: tensors.update({f"{R}.values": torch.zeros(2, 2)}), "has shape [2, 2]"),
        (lambda tensors: tensors.update({f"{R}.values": torch.tensor(1.0)}), "has shape []"),
        (lambda tensors: tensors.pop(f"{R}.row_pointers"), "row_pointers' is missing"),
        (lambda tensors: tensors.pop(f"{R}.columns"), "columns' is missing"),
        (lambda tensors: tensors.pop(f"{R}.values"), "values' is missing"),
        (lambda tensors: [tensors.pop(f"{R}.{part}") for part in ("columns", "row_pointers")], "not [9]"),
        (lambda tensors: tensors.pop("output.bias"), "'output.bias' is missing"),
        (put("output.bias", [1, 2], torch.float32), "has shape [2], not [5]"),
        (put("rnn.1.bias_ih", [1], torch.float32), "the model has no 'rnn.1.bias_ih'"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_the_model_stays_as_it_is(
    tmp_path: Path, tamper: Callable[[Tensors], object], complaint: str
) -> None:
    path = tmp_path / "model.safetensors"
    model = model_of(TINY)
    model.sparse_weights()["rnn.0.recurrent"].connect(torch.tensor([1, 2, 6, 8]), torch.ones(4))
    write(path, model)
    tensors = load_file(path)
    tamper(tensors)
    save_file(tensors, path)

    other = model_of(TINY, seed=1)
    before = bits(other)
    with pytest.raises(UserError) as error:
        WeightsFile(path).apply(other)
    assert bits(other) == before
    message = str(error.value)
    assert complaint in message
    assert message.startswith(f"{path}: ")
    assert "another checkpoint" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("config", "vocab_size"),
    [
        (ModelConfig(cell="lstm", embedding_dim=4, hidden_size=3), 5),
        (ModelConfig(cell="gru", embedding_dim=4, hidden_size=4), 5),
        (ModelConfig(cell="gru", embedding_dim=4, hidden_size=3, num_layers=2), 5),
        (ModelConfig(cell="gru", embedding_dim=4, hidden_size=3, readout_dims=(3,)), 5),
        (TINY, 6),
    ],
)
def test_the_weights_of_another_model_are_refused(tmp_path: Path, config: ModelConfig, vocab_size: int) -> None:
    write(tmp_path / "m", model_of(TINY))
    with pytest.raises(UserError, match="not the weights of this model"):
        WeightsFile(tmp_path / "m").apply(model_of(config, vocab_size))


def test_a_float64_model_does_not_silently_become_float32(tmp_path: Path) -> None:
    write(tmp_path / "m", model_of(TINY).double())
    with pytest.raises(UserError, match="has type F64, not F32"):
        WeightsFile(tmp_path / "m").apply(model_of(TINY))


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 64, b"PK\x03\x04" + bytes(60)])
def test_a_file_of_another_format_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(UserError, match="is no safetensors file"):
        WeightsFile(tmp_path / "m")


def test_loaded_weights_do_not_depend_on_the_file_any_more(tmp_path: Path) -> None:
    path = tmp_path / "m"
    model = model_of(TINY)
    other = reread(model, path)
    path.write_bytes(bytes(path.stat().st_size))
    assert bits(other) == bits(model)
    with torch.no_grad():
        other.embedding.values.add_(1)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_blocks_come_back_bit_for_bit_with_one_column_each(tmp_path: Path, cell: str, density: float) -> None:
    config = ModelConfig(cell=cell, embedding_dim=5, hidden_size=8)
    models = [CharLM(config, 5) for _ in range(2)]
    for model in models:
        set_block_rows(list(model.sparse_weights().values()), 4)
    generator = torch.Generator().manual_seed(0)
    for weight in models[0].sparse_weights().values():
        count = round(density * weight.topology.positions)
        indices = torch.randperm(weight.topology.positions, generator=generator)[:count].sort().values
        weight.connect(indices)
        weight.values.data.normal_(generator=generator)
    write(tmp_path / "file", models[0])
    WeightsFile(tmp_path / "file").apply(models[1])
    assert bits(models[1]) == bits(models[0])
    found = load_file(tmp_path / "file")
    for weight in models[0].sparse_weights().values():
        for gate in weight.gates if weight.block_rows > 1 and density < 1 else []:
            blocks = weight.connections_in(gate) // 4
            assert found[f"{gate.name}.values"].shape == (blocks, 4)
            assert found[f"{gate.name}.columns"].shape == (blocks,)
            assert found[f"{gate.name}.row_pointers"].shape == (3,)  # of two rows of blocks


@pytest.mark.parametrize("density", [0.5, 1.0])
def test_a_file_of_other_blocks_is_refused(tmp_path: Path, density: float) -> None:
    config = ModelConfig(cell="gru", embedding_dim=4, hidden_size=8)
    model, other = model_of(config, density=density), CharLM(config, 5)
    set_block_rows(list(other.sparse_weights().values()), 4)
    write(tmp_path / "file", model)
    with pytest.raises(UserError, match="not the weights of this model"):
        WeightsFile(tmp_path / "file").apply(other)
