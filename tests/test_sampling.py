import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import RunFailed, UserError
from rnnsparse.nn.language_model import CharLM
from rnnsparse.randomness import generator_for
from rnnsparse.sampling import PROMPT_CHUNK, Ending, Sampler, SamplingConfig, candidates
from rnnsparse.settings.model import ModelConfig
from rnnsparse.sparsity.selection import draw_positions

BYTE = Tokenizer.byte()
CHAR = Tokenizer.char("\n abcdefghijklmnopqrstuvwxyzé")
GREEDY = SamplingConfig(length=60, temperature=0)


def model_of(tokenizer: Tokenizer, seed: int = 1, **config: Any) -> CharLM:
    """A model with half of all connections and large random weights, so that what it writes varies."""
    shape = {"embedding_dim": 8, "hidden_size": 12, **config}
    model = CharLM(ModelConfig(**shape), tokenizer.vocab_size).double()
    for name, weight in model.sparse_weights().items():
        weight.connect(draw_positions(weight.positions // 2, weight.positions, generator_for(seed, name)))
    for name, parameter in model.named_parameters():
        parameter.data.normal_(std=1.0, generator=generator_for(seed, name))
    return model


def model_that_says(tokenizer: Tokenizer, logits: dict[int, float]) -> CharLM:
    """A model that predicts the same after every text."""
    model = model_of(tokenizer)
    for parameter in model.parameters():
        parameter.data.zero_()
    for symbol, logit in logits.items():
        model.output.bias.data[symbol] = logit
    return model


def greedy_textbook(model: CharLM, tokenizer: Tokenizer, prompt: str, length: int) -> str:
    """Read the prompt and write the likeliest symbols, one step at a time."""
    stepper, state = model.stepper(), model.initial_state(1)
    for symbol in tokenizer.encode(prompt):
        logits_BV, state = stepper.step(torch.tensor([int(symbol)]), state)
    written = []
    for _ in range(length):
        logits_BV[:, 0] = -torch.inf  # <unk>
        written.append(int(logits_BV.argmax()))
        logits_BV, state = stepper.step(torch.tensor(written[-1:]), state)
    return tokenizer.decode(written)


def text(sampler: Sampler, config: SamplingConfig, number: int = 0) -> str:
    return "".join(sampler.stream(config, number))


# Hundredths: differences so small that arithmetic makes them ties are not what is tested.
logits = st.lists(st.integers(-5000, 5000), min_size=1, max_size=40).map(lambda x: torch.tensor(x).double() / 100)
temperatures = st.floats(0.05, 5)


@given(logits, temperatures)
def test_without_filters_all_symbols_stay_with_their_tempered_probability(
    logits_V: torch.Tensor, temperature: float
) -> None:
    symbols_K, probabilities_K = candidates(logits_V, temperature)
    assert symbols_K.tolist() == list(range(len(logits_V)))
    torch.testing.assert_close(probabilities_K, (logits_V / temperature).softmax(0))


@given(logits, temperatures, st.integers(1, 50))
def test_top_k_keeps_the_k_likeliest_in_their_proportions(
    logits_V: torch.Tensor, temperature: float, top_k: int
) -> None:
    symbols_K, probabilities_K = candidates(logits_V, temperature, top_k)
    assert len(symbols_K.unique()) == len(symbols_K) == min(top_k, len(logits_V))
    left_out = [logit for i, logit in enumerate(logits_V.tolist()) if i not in symbols_K.tolist()]
    assert logits_V[symbols_K].min() >= max(left_out, default=-torch.inf)
    torch.testing.assert_close(probabilities_K, (logits_V[symbols_K] / temperature).softmax(0))


@given(logits, temperatures, st.one_of(st.none(), st.integers(1, 50)), st.floats(0.01, 1))
def test_top_p_keeps_the_fewest_symbols_that_reach_p_after_top_k(
    logits_V: torch.Tensor, temperature: float, top_k: int | None, top_p: float
) -> None:
    symbols_K, probabilities_K = candidates(logits_V, temperature, top_k, top_p)
    before = dict(zip(*(x.tolist() for x in candidates(logits_V, temperature, top_k)), strict=True))
    kept = [before[symbol] for symbol in symbols_K.tolist()]
    assert sum(kept) >= top_p - 1e-9
    assert sum(kept[:-1]) < top_p + 1e-9
    assert probabilities_K.sum().item() == pytest.approx(1)
    assert probabilities_K.tolist() == pytest.approx([p / sum(kept) for p in kept])


@given(logits, temperatures, st.integers(1, 50), st.floats(1e-9, 1))
def test_the_likeliest_symbol_always_stays(
    logits_V: torch.Tensor, temperature: float, top_k: int, top_p: float
) -> None:
    for arguments in ((top_k, None), (None, top_p), (top_k, top_p)):
        symbols_K, probabilities_K = candidates(logits_V, temperature, *arguments)
        assert logits_V[symbols_K[0]] == logits_V.max()
        assert probabilities_K[0] == probabilities_K.max() > 0


def test_filters_act_in_the_order_temperature_top_k_top_p() -> None:
    # probabilities    .1  .4  .3  .2     at temperature 1
    # top-k 3              4/9 3/9 2/9    top-p .75 of these keeps two: 4/9 + 3/9 = .78
    #                                     (of the original ones it would keep three: .4 + .3 + .2)
    logits_V = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64).log()
    symbols_K, probabilities_K = candidates(logits_V, 1.0, 3, 0.75)
    assert symbols_K.tolist() == [1, 2]
    assert probabilities_K.tolist() == pytest.approx([4 / 7, 3 / 7])
    # temperature 1/2: squares, 16/29 9/29 4/29; the first two reach .75 only together
    symbols_K, probabilities_K = candidates(logits_V, 0.5, 3, 0.5)
    assert symbols_K.tolist() == [1]


def test_tiny_temperatures_do_not_overflow() -> None:
    for arguments in ((), (2,), (None, 0.9)):
        _, probabilities_K = candidates(torch.tensor([-3.0, 700.0, 5.0]).double(), 1e-308, *arguments)
        assert probabilities_K.max() == 1
        assert probabilities_K.isfinite().all()


# One symbol more than two chunks: a state lost between chunks would show.
LONG = ("the quick brown fox\n" * 60)[: 2 * PROMPT_CHUNK + 1]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("prompt", ["a", "hello world ", LONG])
def test_temperature_zero_writes_the_likeliest_text_whatever_the_seed(cell: str, prompt: str) -> None:
    model = model_of(CHAR, seed=2, cell=cell, num_layers=2, hidden_size=24)
    expected = greedy_textbook(model, CHAR, prompt, 60)
    assert len(set(expected)) > 3
    assert expected != greedy_textbook(model, CHAR, "z", 60)
    for seed in (0, 9):
        config = SamplingConfig(length=60, temperature=0, seed=seed)
        assert text(Sampler(model, CHAR, prompt), config) == expected


def test_top_k_of_one_is_greedy() -> None:
    sampler = Sampler(model_of(CHAR), CHAR, "a")
    assert text(sampler, SamplingConfig(length=60, top_k=1)) == text(sampler, GREEDY)


def test_seed_and_number_decide_the_sample() -> None:
    sampler = Sampler(model_of(CHAR), CHAR, "a")
    seeds = {text(sampler, SamplingConfig(length=60, seed=seed), number) for seed in (0, 1) for number in (0, 1)}
    assert len(seeds) == 4
    again = Sampler(model_of(CHAR), CHAR, "a")
    assert text(again, SamplingConfig(length=60, seed=1), 1) == text(sampler, SamplingConfig(length=60, seed=1), 1)


def test_symbols_are_drawn_with_the_probabilities_of_the_model() -> None:
    a, b, c = (int(CHAR.encode(x)[0]) for x in "abc")
    model = model_that_says(CHAR, {a: 50, b: 50 + 1, c: 50 + 2})
    drawn = text(Sampler(model, CHAR, "x"), SamplingConfig(length=3000, temperature=2))
    expected = torch.tensor([0.0, 0.5, 1.0]).softmax(0).tolist()
    assert [drawn.count(x) / 3000 for x in "abc"] == pytest.approx(expected, abs=0.03)


def test_a_sample_has_as_many_symbols_as_asked() -> None:
    sampler = Sampler(model_of(CHAR), CHAR, "a")
    assert [len(text(sampler, SamplingConfig(length=n))) for n in (0, 1, 7)] == [0, 1, 7]


def test_text_is_yielded_while_it_is_written() -> None:
    endless = Sampler(model_of(CHAR), CHAR, "a").stream(SamplingConfig(length=10**12))
    assert len("".join(itertools.islice(endless, 20))) == 20


@pytest.mark.parametrize("length", [1, 2, 50, 51, 52])
def test_a_byte_model_yields_valid_text_whatever_it_writes(length: int) -> None:
    pieces = list(Sampler(model_of(BYTE), BYTE, "ä").stream(SamplingConfig(length=length, temperature=3)))
    assert all(piece and piece.encode() for piece in pieces)


def test_bytes_that_are_no_utf8_are_replaced_and_a_cut_off_character_is_left_out() -> None:
    lead_byte = model_that_says(BYTE, {0xC3: 100.0})
    # C3 | C3 | C3: the first two were never completed, the third might have been.
    assert text(Sampler(lead_byte, BYTE, "a"), SamplingConfig(length=3)) == "\ufffd\ufffd"
    assert text(Sampler(lead_byte, BYTE, "a"), SamplingConfig(length=1)) == ""


@pytest.mark.parametrize("temperature", [0, 1])
def test_unknown_is_never_written(temperature: float) -> None:
    model = model_that_says(CHAR, {0: 1000.0})
    written = text(Sampler(model, CHAR, "a"), SamplingConfig(length=200, temperature=temperature))
    assert len(written) == 200
    assert "<" not in written


def test_an_unknown_character_in_the_prompt_is_named() -> None:
    with pytest.raises(UserError, match=r"'Ω'.*byte"):
        Sampler(model_of(CHAR), CHAR, "aΩ")


@pytest.mark.parametrize(("vocabulary", "opening"), [("\n abc", "\n"), ("abc d", " "), ("ab", "a")])
def test_an_empty_prompt_reads_a_newline_or_the_smallest_character(vocabulary: str, opening: str) -> None:
    tokenizer = Tokenizer.char(vocabulary)
    model = model_of(tokenizer)
    config = SamplingConfig(length=100)
    assert text(Sampler(model, tokenizer), config) == text(Sampler(model, tokenizer, opening), config)


def test_prompt_is_read_without_dropout_and_the_mode_is_restored() -> None:
    model = model_of(CHAR, num_layers=2, dropout=0.5).train()
    assert text(Sampler(model, CHAR, "hello"), GREEDY) == greedy_textbook(model, CHAR, "hello", 60)
    assert all(module.training for module in model.modules())


def test_a_model_that_computes_in_half_precision_can_be_sampled() -> None:
    model = model_of(CHAR).float()
    model.compute_dtype = torch.bfloat16
    assert len(text(Sampler(model, CHAR, "hello"), SamplingConfig(length=20))) == 20


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_no_fused_kernel_runs_for_a_single_symbol(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(model_of(CHAR, cell=cell), CHAR, "hello")
    monkeypatch.delattr(torch, cell)
    assert len(text(sampler, SamplingConfig(length=20))) == 20


def test_a_diverged_model_is_reported() -> None:
    with pytest.raises(RunFailed, match="not numbers"):
        Sampler(model_that_says(CHAR, {1: float("nan")}), CHAR, "hello")


# ---- stopping


def cut(whole: str, stop: Sequence[str]) -> str:
    """Return a text up to the first stop string that is complete, the longest of several."""
    for end in range(1, len(whole) + 1):
        if found := [text for text in stop if whole[:end].endswith(text)]:
            return whole[: end - max(map(len, found))]
    return whole


stops = st.lists(st.text("ab", min_size=1, max_size=5), max_size=3)


@given(st.lists(st.text("abc", max_size=4), max_size=12), stops)
def test_a_text_is_cut_before_the_first_complete_stop_string_however_it_comes(
    pieces: list[str], stop: list[str]
) -> None:
    ending, shown = Ending(stop), ""
    for i, piece in enumerate(pieces):
        shown += ending.push(piece)
        if ending.reached:
            break
        read = "".join(pieces[: i + 1])
        assert shown + ending.held == read
        # What is held back may still become a stop string, and more than that is not held.
        assert not ending.held or any(text.startswith(ending.held) for text in stop)
        assert not any(shown and text.startswith(shown[-1] + ending.held) for text in stop)
    assert shown + ending.held == cut("".join(pieces), stop)


def test_a_sample_ends_before_a_stop_string_and_is_else_the_same() -> None:
    sampler = Sampler(model_of(CHAR), CHAR, "a")
    whole = text(sampler, SamplingConfig(length=60))
    for stop in ((whole[20:23],), (whole[30:33], whole[25:27]), (whole[:2],), ("ZZ",)):
        assert text(sampler, SamplingConfig(length=60, stop=stop)) == cut(whole, stop)
    assert text(sampler, SamplingConfig(length=20, stop=(whole[15:30],))) == whole[:20]


def test_a_prompt_stops_nothing() -> None:
    a = int(CHAR.encode("a")[0])
    sampler = Sampler(model_that_says(CHAR, {a: 100.0}), CHAR, "aaa")
    assert text(sampler, SamplingConfig(length=9, stop=("aaaaa",))) == ""
    assert text(sampler, SamplingConfig(length=4, stop=("aaaaa",))) == "aaaa"


def test_a_stop_string_is_found_in_a_character_of_several_bytes() -> None:
    model = model_of(BYTE)
    sampler = Sampler(model_that_says(BYTE, {0xC3: 100.0}), BYTE, "a")
    assert text(sampler, SamplingConfig(length=4, stop=("\ufffd\ufffd",))) == ""
    written: list[int] = []

    class Sharp(Sampler):
        def _draw(self, *_: Any) -> int:  # x é y é ...
            written.append(b"x\xc3\xa9y\xc3\xa9"[len(written) % 6])
            return written[-1]

    assert text(Sharp(model, BYTE, "a"), SamplingConfig(length=60, stop=("éx", "éy"))) == "x"
    assert bytes(written) == b"x\xc3\xa9y", "nothing is drawn after the stop string"


def test_what_cannot_become_a_stop_string_is_yielded_at_once() -> None:
    a = int(CHAR.encode("a")[0])
    endless = Sampler(model_that_says(CHAR, {a: 100.0}), CHAR, "a").stream(
        SamplingConfig(length=10**12, stop=("b", "aab"))
    )
    assert "".join(itertools.islice(endless, 20)) == 20 * "a"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^stop: an empty text"):
        SamplingConfig(stop=("x", ""))
