"""The language model is its layers in a row: state carries over, sampling steps agree with training passes.

Shape suffixes: T time, B batch, V vocabulary, L recurrent layers, S state tensors, H hidden.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rnnsparse.errors import UserError
from rnnsparse.nn import reference
from rnnsparse.nn.gradients import DenseGradient
from rnnsparse.nn.language_model import CharLM
from rnnsparse.randomness import generator_for
from rnnsparse.settings.model import ModelConfig

VOCAB = 11

# One of each kind: cell, depth, readouts, tying, activation, normalisation, skip connections.
SHAPES: list[dict[str, Any]] = [
    {"cell": "gru"},
    {"cell": "lstm"},
    {"cell": "gru", "num_layers": 2, "readout_dims": (7, 5), "readout_activation": "tanh"},
    {"cell": "lstm", "num_layers": 3, "readout_dims": (6,), "readout_activation": "identity"},
    {"cell": "gru", "readout_dims": (9, 5), "tie_embeddings": True},
    {"cell": "lstm", "num_layers": 2, "embedding_dim": 8, "tie_embeddings": True},
    {"cell": "gru", "layer_norm": True},
    {"cell": "lstm", "num_layers": 3, "skip_connections": True, "readout_dims": (6,)},
    {"cell": "rnn", "num_layers": 3, "skip_connections": True, "layer_norm": True},
    {"cell": "lstm", "num_layers": 2, "embedding_dim": 16, "tie_embeddings": True, "skip_connections": True},
]
ACTIVATIONS = {"identity": lambda x: x, "relu": torch.relu, "tanh": torch.tanh}


def build(density: float = 0.4, seed: int = 1, dtype: torch.dtype = torch.float64, **shape: Any) -> CharLM:
    """Return a small model with random connections; its global-random biases catch what ignores a bias."""
    model = CharLM(ModelConfig(**{"embedding_dim": 5, "hidden_size": 8} | shape), VOCAB).to(dtype)
    for name, weight in model.sparse_weights().items():
        generator = generator_for(seed, "test", name)
        count = math.ceil(density * weight.positions)
        weight.connect(torch.randperm(weight.positions, generator=generator)[:count].sort().values)
    model.reset_parameters(seed)
    with torch.no_grad():
        for layer in model.recurrent_layers:
            for parameter in layer.norm.parameters() if layer.norm else ():
                parameter.uniform_(-1, 1)
    return model


def tokens(T: int, B: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (T, B), generator=torch.Generator().manual_seed(seed))


def by_hand(model: CharLM, tokens_TB: Tensor, state_LSBH: Tensor) -> tuple[Tensor, Tensor]:
    """Run the model from its named dense parts."""
    config, parameters = model.config, dict(model.named_parameters())
    dense = {name: weight.to_dense() for name, weight in model.sparse_weights().items()}
    embedded = x = dense["embedding"][tokens_TB]
    outputs, states = [], []
    for i in range(config.num_layers):
        if config.skip_connections and i > 0:
            x = torch.cat([x, embedded], 2)
        biases = (parameters[f"rnn.{i}.bias_ih"], parameters[f"rnn.{i}.bias_hh"])
        x, state = reference.run(
            config.cell, x, state_LSBH[i], dense[f"rnn.{i}.input"], dense[f"rnn.{i}.recurrent"], *biases
        )
        states.append(state)
        if config.layer_norm:
            off = x - x.mean(2, keepdim=True)
            normal = off / (off.square().mean(2, keepdim=True) + 1e-5).sqrt()
            x = normal * parameters[f"rnn.{i}.norm.weight"] + parameters[f"rnn.{i}.norm.bias"]
        outputs.append(x)
    if config.skip_connections:
        x = torch.cat(outputs, 2)
    for i in range(len(config.readout_dims)):
        x = x @ dense[f"readout.{i}"].T + parameters[f"readout.{i}.bias"]
        x = ACTIVATIONS[config.readout_activation](x)
    output = dense["embedding" if config.tie_embeddings else "output"]
    return x @ output.T + parameters["output.bias"], torch.stack(states)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_model_is_its_named_parts_in_a_row(shape: dict[str, Any]) -> None:
    model = build(**shape)
    with torch.no_grad():
        model.output.bias.uniform_(-1, 1)
        state = torch.randn_like(model.initial_state(3))
        found, expected = model(tokens(6, 3), state), by_hand(model, tokens(6, 3), state)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_two_chunks_with_carried_state_are_one_pass(shape: dict[str, Any]) -> None:
    model = build(**shape).eval()
    text = tokens(9, 2)
    with torch.no_grad():
        whole, last = model(text)
        first, state = model(text[:4])
        second, state = model(text[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_symbol_by_symbol_is_one_pass(shape: dict[str, Any]) -> None:
    model = build(**shape).eval()
    text = tokens(7, 3)
    stepper, state = model.stepper(), model.initial_state(3)
    logits = []
    for tokens_B in text:
        logits_BV, state = stepper.step(tokens_B, state)
        logits.append(logits_BV)
    with torch.no_grad():
        whole, last = model(text)
    torch.testing.assert_close(torch.stack(logits), whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, last, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tied", [False, True])
def test_a_stepper_is_a_frozen_copy(tied: bool) -> None:
    model = build(readout_dims=(5,), tie_embeddings=tied)
    stepper, text, state = model.stepper(), tokens(1, 2)[0], model.initial_state(2)
    before, _ = stepper.step(text, state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    after, _ = stepper.step(text, state)
    assert torch.equal(before, after)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_stepper_runs_whatever_the_compute_dtype(cell: str) -> None:
    model = build(cell=cell, dtype=torch.float32).eval()
    expected, _ = model(tokens(1, 2))
    model.compute_dtype = torch.bfloat16
    logits, state = model.stepper().step(tokens(1, 2)[0], model.initial_state(2))
    torch.testing.assert_close(logits.float(), expected[0], rtol=0.05, atol=0.05)
    assert state.shape == model.initial_state(2).shape


def test_the_state_is_one_tensor_with_cell_state_for_lstm_only() -> None:
    assert build(cell="gru", num_layers=2).initial_state(3).shape == (2, 1, 3, 8)
    assert build(cell="lstm", num_layers=2).initial_state(3).shape == (2, 2, 3, 8)
    assert not build().initial_state(3).any()


def test_weights_are_listed_from_input_to_output() -> None:
    names = list(build(num_layers=2, readout_dims=(6, 5)).sparse_weights())
    layers = ["rnn.0.input", "rnn.0.recurrent", "rnn.1.input", "rnn.1.recurrent"]
    assert names == ["embedding", *layers, "readout.0", "readout.1", "output"]
    assert list(build(readout_dims=(5,), tie_embeddings=True).sparse_weights()) == [
        "embedding",
        "rnn.0.input",
        "rnn.0.recurrent",
        "readout.0",
    ]


def test_parameters_have_the_names_of_their_weights() -> None:
    model = build(readout_dims=(6,))
    weights = [f"{name}.values" for name in model.sparse_weights()]
    biases = ["rnn.0.bias_ih", "rnn.0.bias_hh", "readout.0.bias", "output.bias"]
    assert sorted(dict(model.named_parameters())) == sorted([*weights, *biases])


def test_a_tied_embedding_gets_the_gradient_of_both_uses() -> None:
    model = build(readout_dims=(5,), tie_embeddings=True)
    embedding = model.sparse_weights()["embedding"]
    embedding.dense_gradient = DenseGradient()
    unused = VOCAB - 1
    F.cross_entropy(model(torch.zeros(3, 2, dtype=torch.long))[0].flatten(0, 1), torch.ones(6).long()).backward()
    dense = embedding.dense_gradient.rows(0, embedding.rows)
    assert dense[unused].abs().max() > 0, "a symbol that is never read is still scored"

    # The oracle: one dense leaf, used as look-up table and as output.
    leaf = embedding.to_dense().requires_grad_()
    hidden, _ = reference.run(
        "gru", leaf[torch.zeros(3, 2, dtype=torch.long)], model.initial_state(2)[0], *model.rnn[0].dense()
    )
    readout = model.readout[0]
    x = torch.relu(hidden @ readout.to_dense().T + readout.bias)
    F.cross_entropy((x @ leaf.T + model.output.bias).flatten(0, 1), torch.ones(6).long()).backward()
    torch.testing.assert_close(dense, leaf.grad, rtol=1e-10, atol=1e-10)


def test_tying_is_refused_in_one_line_when_the_sizes_differ() -> None:
    with pytest.raises(UserError) as error:
        ModelConfig(embedding_dim=5, hidden_size=8, tie_embeddings=True)
    message = str(error.value)
    assert "\n" not in message
    for word in ("model.tie_embeddings", "model.hidden_size (8)", "model.embedding_dim (5)"):
        assert word in message
    with pytest.raises(UserError, match=r"readout_dims\[-1\] \(4\)"):
        ModelConfig(embedding_dim=5, readout_dims=(5, 4), tie_embeddings=True)


def test_tying_with_skip_connections_takes_the_width_of_all_layers() -> None:
    with pytest.raises(
        UserError, match=r"model.hidden_size times its 3 layers, with skip_connections \(24\) must equal"
    ):
        ModelConfig(embedding_dim=8, hidden_size=8, num_layers=3, skip_connections=True, tie_embeddings=True)


def test_matrices_grow_by_what_skip_connections_bring() -> None:
    shapes = {}
    for skip in (False, True):
        model = build(num_layers=3, readout_dims=(6,), skip_connections=skip)
        shapes[skip] = {name: (weight.rows, weight.cols) for name, weight in model.sparse_weights().items()}
    changed = {name: shape for name, shape in shapes[True].items() if shape != shapes[False][name]}
    assert changed == {"rnn.1.input": (24, 8 + 5), "rnn.2.input": (24, 8 + 5), "readout.0": (6, 3 * 8)}
    alone = {name: (w.rows, w.cols) for name, w in build(skip_connections=True).sparse_weights().items()}
    assert alone == {name: (w.rows, w.cols) for name, w in build().sparse_weights().items()}, "one layer has nothing"


def test_a_normalisation_starts_with_gains_of_one_and_draws_no_number() -> None:
    plain, model = build(cell="lstm", num_layers=2), build(cell="lstm", num_layers=2, layer_norm=True)
    model.reset_parameters(1)
    parameters = dict(model.named_parameters())
    for i in range(2):
        assert torch.equal(parameters.pop(f"rnn.{i}.norm.weight"), torch.ones(8).double())
        assert torch.equal(parameters.pop(f"rnn.{i}.norm.bias"), torch.zeros(8).double())
    assert parameters.keys() == dict(plain.named_parameters()).keys()
    assert all(torch.equal(own, parameters[name]) for name, own in plain.named_parameters())


def test_the_same_seed_gives_the_same_parameters_whatever_was_drawn_before() -> None:
    first = build(cell="lstm", readout_dims=(6,), seed=3)
    torch.rand(17)
    second = build(cell="lstm", readout_dims=(6,), seed=3)
    other = build(cell="lstm", readout_dims=(6,), seed=4)
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
    different = dict(other.named_parameters())
    for name, a in first.named_parameters():
        assert a.shape == different[name].shape
        assert not torch.equal(a, different[name]), name


def test_initial_values_fill_the_range_of_their_fan() -> None:
    model = build(1.0, hidden_size=16, embedding_dim=25, readout_dims=(9,))
    fans = {
        "embedding.values": 25,
        "rnn.0.input.values": 16,
        "rnn.0.recurrent.values": 16,
        "rnn.0.bias_ih": 16,
        "rnn.0.bias_hh": 16,
        "readout.0.values": 16,
        "readout.0.bias": 16,
        "output.values": 9,
        "output.bias": 9,
    }
    for name, parameter in model.named_parameters():
        bound = 1 / math.sqrt(fans[name])
        assert 0.6 * bound < parameter.abs().max() <= bound, name
        assert parameter.min() < 0 < parameter.max(), name


def test_a_sparse_row_starts_as_wide_as_if_what_exists_of_it_were_all() -> None:
    # Output rows with 1, 2, ... 9 of 9 inputs; the bound of a row with n connections is 1 / sqrt(n).
    model = build(1.0, hidden_size=9)
    output = model.sparse_weights()["output"]
    counts = [1 + row % 9 for row in range(VOCAB)]
    output.connect(torch.tensor([row * 9 + col for row, n in enumerate(counts) for col in range(n)]))
    widest = torch.zeros(VOCAB, 9).double()
    for seed in range(200):
        model.reset_parameters(seed)
        widest = widest.maximum(output.to_dense().abs())
    for row, n in enumerate(counts):
        assert 0.9 / math.sqrt(n) < widest[row, :n].max() <= 1 / math.sqrt(n) * (1 + 1e-6)
        assert not widest[row, n:].any()


def test_a_recurrent_row_counts_its_own_share_of_the_hidden_size() -> None:
    # One of five inputs exists in every row of the input matrix: fan 8 / 5, not 8.
    model = build(1.0)
    weight = model.sparse_weights()["rnn.0.input"]
    weight.connect(torch.arange(weight.rows) * weight.cols)
    widest = torch.zeros(weight.rows).double()
    for seed in range(50):
        model.reset_parameters(seed)
        widest = widest.maximum(weight.values.detach().abs())
    bound = 1 / math.sqrt(8 / 5)
    assert widest.max() <= bound * (1 + 1e-6)
    assert widest.min() > 0.8 * bound


SCALES = ["neuron", "layer", "dense"]


def reset(model: CharLM, scale: Any, seed: int = 1) -> dict[str, Tensor]:
    """Return all weights, dense, as they start with this scale."""
    model.reset_parameters(seed, scale)
    return {name: weight.to_dense() for name, weight in model.sparse_weights().items()}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_scale_counts_the_inputs_that_it_says(shape: dict[str, Any]) -> None:
    model = build(**shape)
    drawn = {scale: reset(model, scale) for scale in SCALES}
    for name, weight in model.sparse_weights().items():
        exists = torch.zeros(weight.rows, weight.cols).double()
        exists.view(-1)[weight.indices] = 1
        for block in weight.gates:
            rows = slice(block.start_row, block.stop_row)
            of_block = exists[rows].mean().item()
            for row in range(block.start_row, block.stop_row):
                of_row = exists[row].mean().item()
                if of_row == 0:
                    continue
                dense = drawn["dense"][name][row]
                torch.testing.assert_close(drawn["neuron"][name][row], dense / math.sqrt(of_row), rtol=1e-6, atol=0)
                torch.testing.assert_close(drawn["layer"][name][row], dense / math.sqrt(of_block), rtol=1e-6, atol=0)


def test_full_weights_and_all_biases_start_the_same_with_every_scale() -> None:
    sparse, full = build(0.4, cell="lstm", readout_dims=(7,)), build(1.0, cell="lstm", readout_dims=(7,))
    sparse.sparse_weights()["output"].connect(torch.arange(VOCAB * 7))
    for scale in SCALES:
        assert torch.equal(reset(sparse, scale)["output"], reset(full, "neuron")["output"])
        assert all(torch.equal(a, reset(full, "neuron")[name]) for name, a in reset(full, scale).items())
        biases = [p for name, p in sparse.named_parameters() if "bias" in name]
        expected = [p for name, p in full.named_parameters() if "bias" in name]
        assert all(torch.equal(a, b) for a, b in zip(biases, expected, strict=True))


def test_each_sparse_neuron_starts_with_the_variance_of_a_dense_one() -> None:
    # Inputs of variance 1 and independent: that of the sum is the sum of the squared weights. Rows of 1, 2, ... inputs.
    sparse, dense = build(1.0, hidden_size=12), build(1.0, hidden_size=12)
    counts = [1 + row % 12 for row in range(36)]
    where = torch.tensor([12 * row + col for row, n in enumerate(counts) for col in range(n)])
    sparse.sparse_weights()["rnn.0.recurrent"].connect(where)
    seeds = range(400)

    def variance_R(model: CharLM, scale: str) -> Tensor:
        return torch.stack([reset(model, scale, seed)["rnn.0.recurrent"].square().sum(1) for seed in seeds]).mean(0)

    torch.testing.assert_close(variance_R(dense, "dense"), torch.full((36,), 1 / 3).double(), rtol=0.05, atol=0)
    torch.testing.assert_close(variance_R(sparse, "neuron"), torch.full((36,), 1 / 3).double(), rtol=0.15, atol=0)
    # Otherwise a neuron starts with a signal as weak as it is sparse.
    of_dense = torch.tensor(counts).double() / 12 / 3
    torch.testing.assert_close(variance_R(sparse, "dense"), of_dense, rtol=0.15, atol=0)
    of_layer = of_dense / (sum(counts) / (12 * 36))
    torch.testing.assert_close(variance_R(sparse, "layer"), of_layer, rtol=0.15, atol=0)


def test_a_reset_forgets_the_bias_of_a_tied_output() -> None:
    model = build(readout_dims=(5,), tie_embeddings=True)
    model.output.bias.data.fill_(3)
    model.reset_parameters(1)
    assert not model.output.bias.any()


def test_forget_gates_of_an_lstm_start_open_and_no_other_gate_does() -> None:
    layer = build(cell="lstm").rnn[0]
    i, f, g, o = (layer.bias_ih + layer.bias_hh).detach().chunk(4)
    assert torch.equal(f, torch.ones(8).double())
    for gate in (i, g, o):
        assert 0 < gate.abs().max() <= 2 / math.sqrt(8)


def test_dropout_acts_between_recurrent_layers_and_nowhere_else() -> None:
    model = build(num_layers=2, readout_dims=(6,), dropout=0.5)
    text = tokens(5, 3)
    with torch.no_grad():
        torch.manual_seed(0)
        found, _ = model(text)
        embedded = model.embedding.to_dense()[text]
        x, _ = model.rnn[0](embedded, model.initial_state(3)[0])
        torch.manual_seed(0)
        x, _ = model.rnn[1](F.dropout(x, 0.5), model.initial_state(3)[1])
        expected = model.output(torch.relu(model.readout[0](x)))
        assert torch.equal(found, expected)
        assert not torch.equal(found, model(text)[0]), "each pass drops others"


def test_output_dropout_drops_the_same_units_at_every_moment() -> None:
    model = build(output_dropout=0.5, readout_dims=(6,))
    handed_on: list[torch.Tensor] = []
    model.readout[0].register_forward_pre_hook(lambda _, inputs: handed_on.append(inputs[0]))
    with torch.no_grad():
        for text in (tokens(5, 3), tokens(5, 3)):
            model(text)
        whole, _ = model.rnn.run(model.embedding.to_dense()[tokens(5, 3)], model.initial_state(3))
    kept = [(x_TBH != 0) for x_TBH in handed_on]
    assert torch.equal(handed_on[0], 2 * whole * kept[0])
    for kept_TBH in kept:
        assert torch.equal(kept_TBH, kept_TBH[:1].expand(5, -1, -1))
        assert 0 < kept_TBH.double().mean() < 1
        assert not torch.equal(kept_TBH[0, 0], kept_TBH[0, 1]), "each lane has its own"
    assert not torch.equal(*kept), "each pass drops others"


def test_dropout_acts_in_training_only() -> None:
    with torch.no_grad():
        dropping = build(num_layers=2, dropout=0.5, output_dropout=0.5).eval()(tokens(5, 3))[0]
        plain = build(num_layers=2)(tokens(5, 3))[0]
        one_layer = build(dropout=0.5)(tokens(5, 3))[0]
        one_plain_layer = build()(tokens(5, 3))[0]
    assert torch.equal(dropping, plain)
    assert torch.equal(one_layer, one_plain_layer)


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_computes_near_float32_and_trains_float32_parameters(shape: dict[str, Any]) -> None:
    model = build(**shape, dtype=torch.float32)
    expected, expected_state = model(tokens(5, 3))
    model.compute_dtype = torch.bfloat16
    logits, state = model(tokens(5, 3))
    assert logits.dtype == state.dtype == model.initial_state(3).dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(state.float(), expected_state, rtol=0.05, atol=0.05)
    logits, _ = model(tokens(5, 3), state)
    logits.float().square().mean().backward()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_parameters_grow_with_connections_and_nothing_else_is_kept() -> None:
    def numbers(density: float) -> tuple[int, int]:
        model = build(density, hidden_size=64, embedding_dim=32)
        connections = sum(w.connections for w in model.sparse_weights().values())
        return sum(p.numel() for p in model.parameters()) - connections, connections

    biases, few = numbers(0.05)
    assert biases == 2 * 3 * 64 + VOCAB
    assert numbers(0.5)[0] == biases
    assert numbers(0.5)[1] == pytest.approx(10 * few, rel=0.01)
    model = build(0.05, hidden_size=64, embedding_dim=32)
    largest = max(w.connections for w in model.sparse_weights().values())
    held = [*model.state_dict().values(), *model.buffers()]
    assert max(t.numel() for t in held) == max(largest, 3 * 64)
    shapes = 2 * len(model.sparse_weights())
    # The positions are there twice: in the state, and as buffers.
    assert sum(t.numel() for t in held) == biases + few + 2 * few + shapes
