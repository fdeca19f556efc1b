import itertools
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from rnnsparse.cells.cell import CELLS
from rnnsparse.data.split import Split
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.dynamic import Dynamic
from rnnsparse.errors import UserError
from rnnsparse.evaluation import Evaluation, evaluate, plan_lanes
from rnnsparse.nn.language_model import CharLM
from rnnsparse.randomness import generator_for
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.run import EvaluationConfig
from rnnsparse.sparsity.selection import draw_positions

BYTE = Tokenizer.byte()
ONE_LANE = EvaluationConfig(lanes=1)
TEXT = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 😀 " * 8


def model_of(tokenizer: Tokenizer, seed: int = 1, dtype: torch.dtype = torch.float64, **config: Any) -> CharLM:
    """A model with half of all connections, drawn at random."""
    shape = {"embedding_dim": 8, "hidden_size": 12, **config}
    model = CharLM(ModelConfig(**shape), tokenizer.vocab_size).to(dtype)
    for name, weight in model.sparse_weights().items():
        weight.connect(draw_positions(weight.positions // 2, weight.positions, generator_for(seed, name)))
    model.reset_parameters(seed)
    return model


def split_of(text: str, tokenizer: Tokenizer) -> Split:
    utf8 = text.encode()
    tokens = tokenizer.encode_utf8(utf8)
    unknown = 0
    if tokenizer.unknown_id is not None:
        unknown = sum(len(c.encode()) for c, i in zip(text, tokens, strict=True) if i == tokenizer.unknown_id)
    return Split(tokens=tokens, characters=len(text), bytes=len(utf8), unknown_bytes=unknown)


def textbook_nats(model: CharLM, tokens: NDArray[Any]) -> float:
    """-ln p of each symbol but the first, one symbol at a time, one stream."""
    stepper, state, nats = model.stepper(), model.initial_state(1), 0.0
    for symbol, target in itertools.pairwise(tokens):
        logits_BV, state = stepper.step(torch.tensor([int(symbol)]), state)
        nats -= logits_BV.log_softmax(1)[0, int(target)].item()
    return nats


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_one_lane_is_the_textbook(cell: str) -> None:
    model, split = model_of(BYTE, cell=cell, num_layers=2), split_of(TEXT, BYTE)
    assert evaluate(model, split, BYTE, ONE_LANE).nats == pytest.approx(textbook_nats(model, split.tokens), rel=1e-12)


@given(st.integers(1, 2000), st.integers(1, 40), st.integers(0, 100))
def test_lanes_score_every_target_once_after_enough_priming(targets: int, lanes: int, priming: int) -> None:
    plan = plan_lanes(targets, lanes, priming)
    scored = [
        list(range(start + skip, start + plan.length)) for start, skip in zip(plan.starts, plan.skips, strict=True)
    ]
    assert list(itertools.chain(*scored)) == list(range(targets))
    assert 1 <= len(plan.starts) <= lanes
    assert plan.skips[0] == 0
    assert all(skip >= priming for skip in plan.skips[1:])


def test_a_short_text_is_read_in_fewer_lanes() -> None:
    assert len(plan_lanes(100_000, 32, 256).starts) == 32
    assert len(plan_lanes(2560, 32, 256).starts) == 9
    assert len(plan_lanes(300, 32, 256).starts) == 1
    assert len(plan_lanes(5, 32, 0).starts) == 5


@pytest.mark.parametrize("sequence_length", [1, 7, 64, 100_000])
def test_sequence_length_does_not_matter(sequence_length: int) -> None:
    model, split = model_of(BYTE, cell="lstm"), split_of(TEXT, BYTE)

    def result(sequence_length: int) -> Evaluation:
        config = EvaluationConfig(lanes=3, priming=20, sequence_length=sequence_length)
        return evaluate(model, split, BYTE, config)

    assert result(sequence_length).nats == pytest.approx(result(128).nats, rel=1e-12)
    assert result(sequence_length).symbols == len(split.tokens) - 1


def test_primed_lanes_come_close_to_one_stream_and_unprimed_ones_do_not() -> None:
    model, split = model_of(BYTE, cell="lstm"), split_of(TEXT, BYTE)
    one = evaluate(model, split, BYTE, ONE_LANE)
    primed = evaluate(model, split, BYTE, EvaluationConfig(lanes=7, priming=64))
    unprimed = evaluate(model, split, BYTE, EvaluationConfig(lanes=7, priming=0))
    assert one.symbols == primed.symbols == unprimed.symbols
    assert primed.nats == pytest.approx(one.nats, rel=1e-9)
    assert unprimed.nats != pytest.approx(one.nats, rel=1e-6)


@pytest.mark.parametrize("lanes", [1, 5])
@pytest.mark.parametrize("text", [TEXT, "é" + TEXT])
def test_byte_model_counts_the_characters_and_bytes_that_it_scored(text: str, lanes: int) -> None:
    result = evaluate(model_of(BYTE), split_of(text, BYTE), BYTE, EvaluationConfig(lanes=lanes, priming=16))
    assert (result.characters, result.bytes) == (len(text) - 1, len(text.encode()) - 1)
    assert result.bits_per_character == result.nats / math.log(2) / (len(text) - 1)
    assert result.bits_per_byte == result.nats / math.log(2) / (len(text.encode()) - 1)


def test_unknown_characters_cost_what_naming_them_takes() -> None:
    tokenizer = Tokenizer.char(set(TEXT) - set("ö😀"))
    model, split = model_of(tokenizer), split_of(TEXT, tokenizer)
    result = evaluate(model, split, tokenizer, ONE_LANE)
    unknown = TEXT.count("ö") + TEXT.count("😀")
    naming = unknown * math.log(0x110000 - tokenizer.vocab_size)
    assert result.nats == pytest.approx(textbook_nats(model, split.tokens) + naming, rel=1e-12)
    # Every character outside the vocabulary (<unk> is no character, a surrogate neither) has a code word.
    assert 0x110000 - 0x800 - (tokenizer.vocab_size - 1) <= 0x110000 - tokenizer.vocab_size
    assert (result.characters, result.bytes) == (len(TEXT) - 1, len(TEXT.encode()) - 1)


def test_unknown_symbols_that_were_not_all_scored_count_the_mean_bytes() -> None:
    tokenizer = Tokenizer.char("abc ")
    split = split_of("éab😀cé😀", tokenizer)
    result = evaluate(model_of(tokenizer), split, tokenizer, ONE_LANE)
    assert result.bytes == 3 + round((2 + 4 + 2 + 4) * 3 / 4)
    assert result.characters == 6


def test_the_head_of_a_split_is_evaluated_like_a_text_of_its_own() -> None:
    model, split = model_of(BYTE), split_of(TEXT, BYTE)
    head = evaluate(model, split.head(64, BYTE), BYTE, ONE_LANE)
    assert head.nats == pytest.approx(textbook_nats(model, split.tokens[:64]), rel=1e-12)
    assert head.bytes == 63


@pytest.mark.parametrize("training", [True, False])
def test_model_predicts_without_dropout_and_its_mode_is_restored(training: bool) -> None:
    model, split = model_of(BYTE, num_layers=2, dropout=0.5).train(training), split_of(TEXT, BYTE)
    nats = evaluate(model, split, BYTE, ONE_LANE).nats
    assert nats == pytest.approx(textbook_nats(model, split.tokens), rel=1e-12)
    assert {module.training for module in model.modules()} == {training}


def test_a_failed_evaluation_restores_the_mode_too() -> None:
    model, no_such_symbol = model_of(BYTE).train(), np.array([1, 2, 999])
    with pytest.raises(ValueError, match="shape"):
        evaluate(model, Split(no_such_symbol, 3, 3), BYTE, ONE_LANE)
    assert model.training


def test_the_same_evaluation_gives_the_same_bits() -> None:
    model, split = model_of(BYTE, dtype=torch.float32), split_of(TEXT, BYTE)
    config = EvaluationConfig(lanes=4, priming=32, sequence_length=16)
    assert len({evaluate(model, split, BYTE, config).nats for _ in range(3)}) == 1


def test_half_precision_models_are_scored_in_full_precision() -> None:
    model, split = model_of(BYTE, dtype=torch.float32), split_of(TEXT, BYTE)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.compute_dtype = torch.bfloat16
    # All 256 symbols are equally likely; ln(256) in bfloat16 would be off by 0.3 %.
    assert evaluate(model, split, BYTE, ONE_LANE).bits_per_byte == pytest.approx(8, abs=1e-6)


def test_max_batches_stops_early_with_the_sums_until_then() -> None:
    model, split = model_of(BYTE), split_of(TEXT, BYTE)
    result = evaluate(model, split, BYTE, EvaluationConfig(lanes=1, sequence_length=16), max_batches=2)
    assert (result.symbols, result.bytes) == (32, 32)
    assert result.nats == pytest.approx(textbook_nats(model, split.tokens[:33]), rel=1e-12)


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    model = model_of(BYTE, embedding_dim=2, hidden_size=2, dtype=torch.float32)
    np.full(400_000, ord("a"), dtype=np.uint8).tofile(tmp_path / "tokens.bin")
    tokens = np.memmap(tmp_path / "tokens.bin", dtype=np.uint8, mode="r")

    def peak(symbols: int) -> int:
        tracemalloc.start()
        split = Split(tokens[:symbols], symbols, symbols)
        assert evaluate(model, split, BYTE, EvaluationConfig(lanes=64, priming=8)).symbols == symbols - 1
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(10_000)  # first calls also import and compile
    assert peak(400_000) < 2 * peak(40_000)


@pytest.mark.parametrize("text", ["", "a", "é"])
def test_a_text_without_a_second_character_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="at least 2"):
        evaluate(model_of(BYTE), split_of(text, BYTE), BYTE, ONE_LANE)


# ---- dynamic evaluation

EXECUTIONS = [(cell, execution) for cell in CELLS for execution in ("masked", "sparse")]


def recorded(model: CharLM, split: Split, config: EvaluationConfig, **settings: Any) -> NDArray[np.float64]:
    """The nats of every symbol; those of the first stay not a number."""
    nats = np.full(len(split.tokens), np.nan)

    def record(position: int, some: NDArray[np.float64]) -> None:
        assert np.isnan(nats[position : position + len(some)]).all(), "scored twice"
        nats[position : position + len(some)] = some

    result = evaluate(model, split, BYTE, config, record=record, **settings)
    assert result.symbols == len(split.tokens) - 1
    assert result.nats == pytest.approx(np.nansum(nats), rel=1e-12)
    return nats


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize(("cell", "execution"), EXECUTIONS)
def test_dynamic_evaluation_that_learns_nothing_is_the_static_one_to_the_bit(
    cell: str, execution: Any, lanes: int
) -> None:
    model, split = model_of(BYTE, cell=cell, dtype=torch.float32), split_of(TEXT, BYTE)
    model.execution = execution
    config = EvaluationConfig(lanes=lanes, priming=0, sequence_length=7)
    static = recorded(model, split, config)
    dynamic = recorded(model, split, ONE_LANE, dynamic=Dynamic(rate=0, segment=7, lanes=lanes))
    np.testing.assert_array_equal(dynamic, static)


@pytest.mark.parametrize(("cell", "execution"), EXECUTIONS)
def test_each_segment_is_scored_before_it_is_learned_from_and_every_symbol_but_the_first_is(
    cell: str, execution: Any
) -> None:
    model, split = model_of(BYTE, cell=cell), split_of(TEXT, BYTE)
    model.execution = execution
    static = recorded(model, split, EvaluationConfig(lanes=5, priming=0))
    dynamic = recorded(model, split, ONE_LANE, dynamic=Dynamic(rate=0.1, segment=9, lanes=5))
    assert np.flatnonzero(np.isnan(dynamic)).tolist() == [0]
    np.testing.assert_allclose(dynamic[1:10], static[1:10], rtol=1e-12)
    assert abs(dynamic[10:19] / static[10:19] - 1).min() > 1e-6


def test_dynamic_evaluation_is_a_plain_loop_of_steps_by_the_mean_square_of_gradients() -> None:
    model, split = model_of(BYTE, cell="gru"), split_of(TEXT[:60], BYTE)
    rate, segment = 0.01, 8
    nats = 0.0

    plain = nn.ModuleDict({"embedding": nn.Embedding(256, 8), "rnn": nn.GRU(8, 12), "output": nn.Linear(12, 256)})
    plain.double()
    layer = model.recurrent_layers[0]
    names = ["embedding.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0", "output.weight"]
    weights = dict(zip(names, [model.embedding, layer.input, layer.recurrent, model.output], strict=True))
    dense = {name: weight.to_dense() for name, weight in weights.items()}
    dense |= {"rnn.bias_ih_l0": layer.bias_ih, "rnn.bias_hh_l0": layer.bias_hh, "output.bias": model.output.bias}
    plain.load_state_dict(dense)
    exists = {name: torch.zeros(weight.positions, dtype=torch.bool) for name, weight in weights.items()}
    for name, weight in weights.items():
        exists[name][weight.indices] = True
    means = {name: torch.zeros_like(parameter) for name, parameter in plain.named_parameters()}

    state = torch.zeros(1, 1, 12, dtype=torch.float64)
    tokens = torch.from_numpy(split.tokens.astype(np.int64))
    for steps, start in enumerate(range(0, len(tokens) - 1, segment), start=1):
        inputs = tokens[start : start + segment][: len(tokens) - 1 - start, None]
        hidden, state = plain["rnn"](plain["embedding"](inputs), state.detach())
        logits = plain["output"](hidden)
        loss = nn.functional.cross_entropy(logits[:, 0], tokens[start + 1 : start + 1 + len(inputs)])
        nats += loss.item() * len(inputs)
        plain.zero_grad()
        loss.backward()
        for name, parameter in plain.named_parameters():
            assert parameter.grad is not None
            means[name] += (parameter.grad**2 - means[name]) / steps
            step = rate * parameter.grad / (means[name].sqrt() + 1e-4)
            parameter.data -= step * exists[name].view_as(step) if name in exists else step

    result = evaluate(model, split, BYTE, ONE_LANE, dynamic=Dynamic(rate=rate, segment=segment))
    assert result.nats == pytest.approx(nats, rel=1e-10)
    assert result.nats != pytest.approx(evaluate(model, split, BYTE, ONE_LANE).nats, rel=1e-3)


# Each mode with every execution, and with every other cell.
@pytest.mark.parametrize(("cell", "execution", "training"), [(*e, i % 4 in (0, 3)) for i, e in enumerate(EXECUTIONS)])
def test_a_repetitive_text_gets_better_and_the_model_stays_what_it_was(
    cell: str, execution: Any, training: bool
) -> None:
    model, split = model_of(BYTE, cell=cell, num_layers=2, dropout=0.5), split_of(TEXT * 3, BYTE)
    model.execution = execution
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    static = evaluate(model, split, BYTE, ONE_LANE)
    dynamic = evaluate(model, split, BYTE, ONE_LANE, dynamic=Dynamic(rate=0.01))
    assert dynamic.nats < 0.8 * static.nats
    assert dynamic.characters == static.characters
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {module.training for module in model.modules()} == {training}
