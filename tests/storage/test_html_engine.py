"""The engine of exported pages, in V8, against the product: the same predictions, texts and costs."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from py_mini_racer import MiniRacer

from rnnsparse.cells.cell import CELLS
from rnnsparse.data.split import Split
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import UserError
from rnnsparse.evaluation import evaluate
from rnnsparse.nn.basis import Basis
from rnnsparse.nn.language_model import CharLM
from rnnsparse.randomness import generator_for
from rnnsparse.sampling import Sampler, SamplingConfig, candidates
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.run import EvaluationConfig
from rnnsparse.sparsity.selection import draw_positions
from rnnsparse.storage.exports import Options, export
from rnnsparse.storage.html import page
from rnnsparse.storage.html.packing import Kind, pack, rounded

ENGINE = (Path(__file__).parents[2] / "rnnsparse/storage/html/engine.js").read_text(encoding="utf-8")
# What tests ask of the engine; JSON has no way to say "not a number".
ASK = """
let model;
function load(header, weights) { model = new Model(header, weights); return true; }
function logits(symbols) {
  const state = model.start();
  return symbols.map(symbol => { model.step(state, symbol); return [...state.logits]; });
}
function write(prompt, options) {
  const writer = new Writer(model, prompt, options.seed), ending = new Ending(options.stops);
  let text = "";
  for (let i = 0; i < options.length && !ending.reached; i++) text += ending.push(writer.write(options));
  return text + ending.held;
}
function score(text) {
  const scorer = new Scorer(model, text), found = [];
  while (scorer.at < scorer.symbols.length) found.push(scorer.next());
  return { bits: scorer.bits, characters: scorer.characters, found };
}
function trace(text, most) {
  const trace = new Trace(model, text, most);
  while (trace.at < trace.symbols.length) trace.next();
  return { ranking: trace.ranking(), unit: [...trace.unit(0)], characters: trace.at };
}
function decode(bytes) {
  const decoder = new Decoder();
  return bytes.map(byte => decoder.push(byte)).join("");
}
"""
TEXT = 'It was a bright cold day; "thirteen", said the clöck — 時計 🕐.\n'
WHOLE = {"temperature": 1.0, "topK": None, "topP": None, "seed": 0, "length": 100, "stops": []}


@pytest.fixture(scope="module")
def engine() -> MiniRacer:
    engine = MiniRacer()
    engine.eval(ENGINE + ASK)
    return engine


def model_of(tokenizer: Tokenizer, density: float = 0.3, scale: float = 1.0, **config: Any) -> CharLM:
    model = CharLM(ModelConfig(**{"embedding_dim": 12, "hidden_size": 12, **config}), tokenizer.vocab_size)
    for name, weight in model.sparse_weights().items():
        connections = weight.positions if name in ("embedding", "rnn.0.input") else round(density * weight.positions)
        weight.connect(draw_positions(connections, weight.positions, generator_for(1, name)))
    model.reset_parameters(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model.eval()


def load(engine: MiniRacer, model: CharLM, tokenizer: Tokenizer, kind: Kind = "fp32") -> None:
    header, weights = pack(model, kind)
    characters = b"".join(tokenizer.symbols[1:]).decode() if tokenizer.kind == "char" else ""
    header["vocabulary"] = {"kind": tokenizer.kind, "characters": characters}
    engine.call("load", header, base64.b64encode(weights).decode())


def logits_of(model: CharLM, symbols: list[int]) -> torch.Tensor:
    model.double()
    for weight in model.sparse_weights().values():
        weight.basis = weight.basis and weight.basis.to(weight.values)
    with torch.no_grad():
        return model(torch.tensor(symbols)[:, None])[0][:, 0]


def assert_same_logits(engine: MiniRacer, model: CharLM, symbols: list[int]) -> None:
    found, wanted = torch.tensor(engine.call("logits", symbols), dtype=torch.float64), logits_of(model, symbols)
    assert (found - wanted).norm() / wanted.norm() < 1e-5


# ---- predictions


def test_every_setting_of_a_model_is_one_that_the_engine_knows() -> None:
    known = {"cell", "embedding_dim", "hidden_size", "num_layers", "readout_dims", "readout_activation",
             "tie_embeddings", "dropout", "output_dropout", "execution", "layer_norm", "skip_connections"}  # fmt: skip
    assert {field.name for field in dataclasses.fields(ModelConfig)} == known


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("layers", "readout", "activation"),
    [(1, (), "relu"), (3, (9, 12), "relu"), (2, (12,), "tanh"), (1, (12,), "identity")],
)
@pytest.mark.parametrize("cell", CELLS)
def test_logits_are_the_products(
    engine: MiniRacer, cell: str, layers: int, readout: tuple[int, ...], activation: str, tied: bool
) -> None:
    tokenizer = Tokenizer.char(TEXT)
    model = model_of(
        tokenizer, scale=2.0, cell=cell, num_layers=layers, readout_dims=readout, readout_activation=activation,
        tie_embeddings=tied,
    )  # fmt: skip
    load(engine, model, tokenizer)
    assert_same_logits(engine, model, [*range(tokenizer.vocab_size), 3, 1, 3])


@pytest.mark.parametrize(
    ("norm", "skip", "layers"), [(True, False, 2), (False, True, 3), (True, True, 3), (True, True, 1)]
)
@pytest.mark.parametrize("cell", CELLS)
def test_normalised_layers_and_skip_connections_are_the_products(
    engine: MiniRacer, cell: str, norm: bool, skip: bool, layers: int
) -> None:
    tokenizer = Tokenizer.char(TEXT)
    model = model_of(
        tokenizer, scale=2.0, cell=cell, num_layers=layers, embedding_dim=8, layer_norm=norm, skip_connections=skip
    )
    for layer in model.recurrent_layers if norm else ():
        torch.nn.init.uniform_(layer.norm.bias)
    load(engine, model, tokenizer)
    assert_same_logits(engine, model, [*range(tokenizer.vocab_size), 3, 1, 3])


@pytest.mark.parametrize("more", [{}, {"layer_norm": True, "skip_connections": True}])
@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_rounded_weights_are_those_that_were_measured(engine: MiniRacer, kind: Kind, more: dict[str, Any]) -> None:
    tokenizer = Tokenizer.byte()
    model = model_of(tokenizer, cell="lstm", num_layers=2, **more)
    load(engine, model, tokenizer, kind)
    symbols = list(TEXT.encode())
    assert_same_logits(engine, rounded(model, kind), symbols)
    error = (logits_of(rounded(model, kind), symbols) - logits_of(model, symbols)).abs().max()
    assert 0 < error < {"fp16": 1e-3, "int8": 3e-2}[kind]


def test_int8_rounds_every_row_by_its_own_scale() -> None:
    model = model_of(Tokenizer.byte())
    weight = model.recurrent_layers[0].recurrent
    with torch.no_grad():
        weight.values[: weight.connections // 2] *= 1000
    dense, found = weight.to_dense(), rounded(model, "int8").recurrent_layers[0].recurrent.to_dense()
    steps = dense.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((found - dense).abs() <= steps * 0.501).all())


@pytest.mark.parametrize("kind", ["dct", "svd"])
def test_a_model_in_a_basis_is_packed_as_its_matrices(engine: MiniRacer, kind: str) -> None:
    tokenizer = Tokenizer.byte()
    model = model_of(tokenizer)
    for weight in model.sparse_weights().values():
        gates, matrix = len(weight.gates), weight.to_dense()
        basis = Basis.dct(weight.rows // gates, weight.cols) if kind == "dct" else Basis.svd(matrix, gates)
        weight.express(matrix, basis)
        weight.connect(torch.arange(0, weight.positions, 2), weight.values.detach()[::2])
    load(engine, model, tokenizer)
    assert_same_logits(engine, model, list(TEXT.encode()))


@pytest.mark.parametrize("kind", ["fp32", "int8"])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_blocks_of_rows_are_packed_by_column(engine: MiniRacer, density: float, kind: Kind) -> None:
    tokenizer = Tokenizer.byte()
    model = CharLM(ModelConfig(embedding_dim=12, hidden_size=12, num_layers=2), tokenizer.vocab_size)
    for name, weight in model.sparse_weights().items():
        if name.startswith("rnn."):
            weight.set_block_rows(4)
        places = weight.rows // weight.block_rows * weight.cols
        weight.connect(draw_positions(round(density * places), places, generator_for(1, name)))
    model.reset_parameters(1)
    load(engine, model, tokenizer, kind)
    assert_same_logits(engine, rounded(model, kind), list(TEXT.encode()))


def test_wide_and_empty_rows_are_packed_exactly(engine: MiniRacer) -> None:
    tokenizer = Tokenizer.char("ab")
    model = model_of(tokenizer, embedding_dim=70_000, hidden_size=3)
    weight = model.recurrent_layers[0].input
    positions = [0, 1, 254, 255, 256, 510, 765, 69_999, 4 * 70_000 + 69_998, 8 * 70_000]
    weight.connect(torch.tensor(positions), torch.arange(1.0, 11.0))
    load(engine, model, tokenizer)
    assert_same_logits(engine, model, [1, 2, 0, 1])


def test_what_is_no_number_is_refused() -> None:
    model = model_of(Tokenizer.byte())
    with torch.no_grad():
        model.embedding.values[3] = 70_000
    with pytest.raises(UserError, match="embedding: holds values beyond 65,504"):
        pack(model, "fp16")
    pack(model, "int8")
    with torch.no_grad():
        model.embedding.values[3] = math.nan
    with pytest.raises(UserError, match="embedding: holds values that are not numbers"):
        pack(model, "int8")


# ---- writing


@pytest.mark.parametrize("tokenizer", [Tokenizer.byte(), Tokenizer.char(TEXT)], ids=["byte", "char"])
@pytest.mark.parametrize("prompt", ["It was", ""])
def test_the_likeliest_text_is_the_products(engine: MiniRacer, tokenizer: Tokenizer, prompt: str) -> None:
    model = model_of(tokenizer, scale=8.0, hidden_size=24)
    load(engine, model, tokenizer)
    greedy = {**WHOLE, "temperature": 0, "length": 500}
    wanted = "".join(Sampler(model, tokenizer, prompt).stream(SamplingConfig(length=500, temperature=0)))
    assert engine.call("write", prompt, greedy) == wanted
    assert len(set(wanted)) > 1


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.7, None, None), (1.5, 5, None), (1.0, 30, 0.6), (1, 1, 1)]
)
def test_candidates_are_the_products(engine: MiniRacer, temperature: float, top_k: int, top_p: float) -> None:
    logits_V = torch.randn(40, dtype=torch.float64, generator=generator_for(1, "logits")).mul(3).round(decimals=1)
    found: Any = engine.call("candidates", logits_V.tolist(), temperature, top_k, top_p)
    symbols_K, shares_K = candidates(logits_V, temperature, top_k, top_p)
    assert found["symbols"] == symbols_K.tolist()
    np.testing.assert_allclose(found["shares"], shares_K, rtol=1e-12)


def test_symbols_are_drawn_as_often_as_their_probabilities_say_and_again_from_a_seed(engine: MiniRacer) -> None:
    tokenizer = Tokenizer.char("abc")
    model = model_of(tokenizer)
    with torch.no_grad():
        for weight in model.sparse_weights().values():
            weight.values.zero_()
        model.get_parameter("output.bias").copy_(torch.tensor([9.0, 0.0, 1.0, 2.0]))
    load(engine, model, tokenizer)
    text = engine.call("write", "a", {**WHOLE, "length": 4000})
    shares = np.exp([0.0, 1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum()
    np.testing.assert_allclose([text.count(c) / 4000 for c in "abc"], shares, atol=0.03)
    assert "<unk>" not in text
    assert engine.call("write", "a", {**WHOLE, "length": 4000}) == text
    assert engine.call("write", "a", {**WHOLE, "length": 4000, "seed": 1}) != text


def test_a_text_ends_before_what_stops_it(engine: MiniRacer) -> None:
    tokenizer = Tokenizer.char("abcd")
    load(engine, model_of(tokenizer), tokenizer)
    text = engine.call("write", "a", {**WHOLE, "length": 400})
    for stop in (text[50:53], text[100:104], text[:1]):
        assert engine.call("write", "a", {**WHOLE, "length": 400, "stops": [stop, "never"]}) == text[: text.index(stop)]


def test_bytes_become_the_characters_that_python_reads(engine: MiniRacer) -> None:
    generator = np.random.default_rng(1)
    broken = (
        b"\xc0\x80 \xe0\x80\x80 \xed\xa0\x80 \xf0\x80\x80\x80 \xf4\x90\x80\x80 \xf5 \xe2\x82 \xf0\x9f\x95 \xff\x80 "
    )
    texts = [
        TEXT.encode(),
        broken,
        *(generator.integers(0xB0, 0x100, 40).astype(np.uint8).tobytes() for _ in range(50)),
    ]
    for text in texts:
        # What is unfinished at the end is held back.
        assert engine.call("decode", list(text + b".")) == (text + b".").decode(errors="replace")


@pytest.mark.parametrize("character", ["a", "\x7f", "\x80", "ÿ", "߿", "ࠀ", "時", "\uffff", "🕐", "\U0010ffff"])
def test_characters_become_their_utf8(engine: MiniRacer, character: str) -> None:
    assert engine.call("toUtf8", character) == list(character.encode())


def test_a_prompt_with_unknown_characters_is_refused_by_name(engine: MiniRacer) -> None:
    tokenizer = Tokenizer.char("abc")
    load(engine, model_of(tokenizer), tokenizer)
    with pytest.raises(Exception, match='does not know "<", "é"'):
        engine.call("write", "a<éa", WHOLE)


# ---- scoring and looking inside


@pytest.mark.parametrize("tokenizer", [Tokenizer.byte(), Tokenizer.char(TEXT.replace("時", ""))], ids=["byte", "char"])
def test_bits_per_character_are_those_of_evaluate(engine: MiniRacer, tokenizer: Tokenizer) -> None:
    model, text = model_of(tokenizer, scale=4.0), TEXT * 3
    load(engine, model, tokenizer)
    found: Any = engine.call("score", text)
    tokens, utf8 = tokenizer.encode_utf8(text.encode()), len(text.encode())
    split = Split(tokens, len(text), utf8, utf8 - int(tokenizer.byte_lengths[tokens].sum()))
    wanted = evaluate(model, split, tokenizer, EvaluationConfig(lanes=1))
    assert found["bits"] / found["characters"] == pytest.approx(wanted.bits_per_character, rel=1e-6)
    assert found["characters"] == wanted.characters == len(text) - 1
    costs = [one["bits"] for one in found["found"]]
    assert costs[0] is None
    assert sum(costs[1:]) == pytest.approx(found["bits"])
    for name, share in found["found"][9]["likeliest"]:
        assert 0 < share < 1
        assert name


def test_the_likeliest_symbols_are_the_first_of_all(engine: MiniRacer) -> None:
    tokenizer = Tokenizer.byte()
    model = model_of(tokenizer, scale=4.0)
    load(engine, model, tokenizer)
    found: Any = engine.call("score", "ab")
    shares_V, symbols_V = logits_of(model, [ord("a")])[0].softmax(0).sort(descending=True)
    likeliest = found["found"][1]["likeliest"]
    np.testing.assert_allclose([share for _, share in likeliest], shares_V[:5], rtol=1e-5)
    names = [
        f"byte {s:02X}" if s >= 0x80 else chr(s) if chr(s).isprintable() and s != 32 else None for s in symbols_V[:5]
    ]
    assert all(name in (None, found) for name, (found, _) in zip(names, likeliest, strict=True))


def test_units_are_those_of_the_network_and_ranked_by_how_much_they_vary(engine: MiniRacer) -> None:
    tokenizer = Tokenizer.char(TEXT)
    model = model_of(tokenizer, num_layers=2)
    load(engine, model, tokenizer)
    found: Any = engine.call("trace", TEXT, 1 << 20)
    state, units = model.double().initial_state(1), []
    with torch.no_grad():
        for symbol in tokenizer.encode(TEXT).tolist():
            state = model(torch.tensor([[symbol]]), state)[1]
            units.append(state[:, 0, 0].flatten())
    values_TU = torch.stack(units)
    np.testing.assert_allclose(found["unit"], values_TU[:, 0], atol=1e-6)
    spread_U = values_TU.std(0, correction=0)
    assert [unit for unit, _ in found["ranking"]] == spread_U.argsort(descending=True).tolist()
    assert engine.call("trace", TEXT, 24 * 7)["characters"] == 7


def test_every_connection_is_in_the_pictures(engine: MiniRacer) -> None:
    tokenizer = Tokenizer.char("abcdefghijklm")
    model = model_of(tokenizer, cell="lstm")
    model.embedding.connect(torch.tensor([0, 1, 5, 30]))
    load(engine, model, tokenizer)
    found: Any = json.loads(
        engine.eval("JSON.stringify(connectivity(model, 5), (_, v) => ArrayBuffer.isView(v) ? [...v] : v)")
    )
    names = [gate.name for weight in model.sparse_weights().values() for gate in weight.gates]
    assert [gate["name"] for gate in found["gates"]] == names
    assert sum(gate["connections"] for gate in found["gates"]) == sum(
        w.connections for w in model.sparse_weights().values()
    )
    for gate in found["gates"]:
        assert sum(gate["counts"]) == gate["connections"]
    from_embedding = torch.tensor([3, 0, 1, *[0] * 11])
    output = model.sparse_weights()["output"].topology.row_pointers.diff()
    assert [count for _, count in found["symbols"]] == (from_embedding + output).tolist()


def test_every_byte_has_a_name_that_shows(engine: MiniRacer) -> None:
    tokenizer = Tokenizer.byte()
    load(engine, model_of(tokenizer), tokenizer)
    names: Any = json.loads(
        engine.eval("JSON.stringify(Array.from({length: 256}, (_, i) => model.vocabulary.name(i)))")
    )
    assert len(set(names)) == 256
    assert all(name.strip() and name.isprintable() for name in names)
    assert (names[10], names[32], names[65], names[0], names[255]) == ("line end", "space", "A", "U+0000", "byte FF")


# ---- the file


def test_the_file_is_little_more_than_its_weights(tmp_path: Path) -> None:
    tokenizer = Tokenizer.byte()
    model = model_of(tokenizer, density=0.2, embedding_dim=64, hidden_size=300)
    connections = sum(w.connections for w in model.sparse_weights().values())
    for rounding, most in (("fp16", 3), ("int8", 2)):
        export("html", model, tokenizer, tmp_path / rounding, Options(rounding=rounding))  # type: ignore[arg-type]
        assert (tmp_path / rounding).stat().st_size < 1.5 * most * connections + 60_000


def test_more_than_a_browser_reads_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LARGEST", 1000)
    with pytest.raises(UserError, match="bytes of weights is more than browsers read"):
        export("html", model_of(Tokenizer.byte()), Tokenizer.byte(), tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


HOSTILE = "</script><script>alert(1)</script><!--title--><!--script--><img src=x onerror=alert(1)>&amp;\u2028\"'"


def test_nothing_of_a_model_becomes_markup(tmp_path: Path) -> None:
    pages = []
    for words in ("plain", HOSTILE):
        tokenizer = Tokenizer.char(HOSTILE)
        options = Options(title=words + "\udcff", facts=[(words, words)])
        export("html", model_of(tokenizer), tokenizer, tmp_path / str(len(words)), options)
        pages.append((tmp_path / str(len(words))).read_text(encoding="utf-8"))
    assert pages[0].count("<") == pages[1].count("<")
    model = pages[1].split('id="model">')[1].split("</script>")[0]
    assert json.loads(model)["title"] == HOSTILE + "\udcff"
    assert set(json.loads(model)["vocabulary"]["characters"]) == set(HOSTILE)
    assert "unsafe" not in pages[1]
    assert "default-src &#x27;none&#x27;" in pages[1]
