"""Text from a model: it continues a prompt, one symbol at a time.

Shape suffixes: T time, V vocabulary, K candidates for the next symbol.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Doc

from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import RunFailed, UserError
from rnnsparse.nn.language_model import CharLM
from rnnsparse.randomness import generator_for

PROMPT_CHUNK = 32  # symbols of a prompt that are read together; all of their gates are in memory


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How a text is drawn. Temperature acts first, then top-k, then top-p."""

    length: Annotated[int, Ge(0), Doc("symbols per sample: bytes for a byte model, else characters")] = 1000
    temperature: Annotated[
        float, Ge(0), Doc("below 1 likelier text, above 1 more varied; 0 always takes the likeliest symbol")
    ] = 1.0
    top_k: Annotated[Annotated[int, Ge(1)] | None, Doc("draw among the k likeliest symbols")] = None
    top_p: Annotated[
        Annotated[float, Gt(0), Le(1)] | None,
        Doc("draw among the fewest likeliest symbols that together have this probability"),
    ] = None
    seed: Annotated[int, Doc("the same seed gives the same samples")] = 0
    num_samples: Annotated[int, Ge(1), Doc("independent continuations of the prompt")] = 1
    stop: Annotated[tuple[str, ...], Doc("the sample ends before the first of these that it would have")] = ()

    def __post_init__(self) -> None:
        if "" in self.stop:
            raise ValueError("stop: an empty text would end every sample before its first symbol")


class Sampler:
    """A model that has read a prompt and continues it as often as asked. A changed model needs a new one.

    After an empty prompt it writes as at the start of a line: it has read a newline, which is not part of the
    sample, or the smallest character of a vocabulary that has none (in most texts the space).

    Raises:
        UserError: the prompt has characters that the tokenizer does not know.
        RunFailed: the model's logits are not numbers.
        ValueError: the tokenizer is of another model.
    """

    def __init__(self, model: CharLM, tokenizer: Tokenizer, prompt: str = "") -> None:
        if tokenizer.vocab_size != model.vocab_size:
            raise ValueError(
                f"a tokenizer of {tokenizer.vocab_size} symbols is not that of a model of {model.vocab_size}"
            )
        self._tokenizer = tokenizer
        self._stepper = model.stepper()
        symbols_T = tokenizer.encode(prompt) if prompt else _opening(tokenizer)
        self._logits_V, self._state = _read(model, symbols_T)
        if self._logits_V.isnan().any():
            raise RunFailed(
                "the model's predictions are not numbers: its training diverged; sample an earlier checkpoint"
            )

    def stream(self, config: SamplingConfig, number: int = 0) -> Iterator[str]:
        """Yield sample `number` of `config.seed` piece by piece, without the prompt.

        Each sample has random numbers of its own, so it does not depend on how many others are drawn. Every
        piece is valid text: what a byte model writes that is not UTF-8 becomes U+FFFD, and a character cut
        off by the end of the sample is left out. <unk> is never drawn.

        The sample ends before the first of the texts in `config.stop` that is complete in what the model writes; the
        prompt does not count. What may become one is held back until that is decided.
        """
        ending = Ending(config.stop)
        for text in self._pieces(config, number):
            if certain := ending.push(text):
                yield certain
            if ending.reached:
                return
        if ending.held:
            yield ending.held

    def _pieces(self, config: SamplingConfig, number: int) -> Iterator[str]:
        """Yield text as soon as its characters are whole, up to `config.length` symbols."""
        generator = generator_for(config.seed, "sample", number)
        decoder = self._tokenizer.stream_decoder()
        logits_V, state = self._logits_V, self._state
        for left in range(config.length, 0, -1):
            symbol = self._draw(logits_V, config, generator)
            if text := decoder.push(symbol):
                yield text
            if left > 1:
                logits_1V, state = self._stepper.step(torch.tensor([symbol], device=state.device), state)
                logits_V = logits_1V[0]

    def _draw(self, logits_V: Tensor, config: SamplingConfig, generator: torch.Generator) -> int:
        # A copy, as every sample starts from the same logits; on the CPU in float64, whatever the model uses.
        logits_V = logits_V.to("cpu", torch.float64, copy=True)
        if self._tokenizer.unknown_id is not None:
            logits_V[self._tokenizer.unknown_id] = -torch.inf
        if config.temperature == 0:
            return int(logits_V.argmax())
        symbols_K, probabilities_K = candidates(logits_V, config.temperature, config.top_k, config.top_p)
        return int(symbols_K[torch.multinomial(probabilities_K, 1, generator=generator)])


class Ending:
    """Cuts a text that comes piece by piece before the first of some stop strings that is complete.

    Attributes:
        held: the end of the text so far that may become a stop string.
        reached: whether one has come; of several that end together, the text is cut before the longest.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._borders = [_borders(text) for text in stop]
        self._matched = [0] * len(stop)  # characters at the beginning of each with which the text ends
        self.held, self.reached = "", False

    def push(self, piece: str) -> str:
        """Return what is certain now of the text."""
        if not self._stop:
            return piece
        shown = ""
        for character in piece:
            self.held += character
            complete = 0
            for i, (text, borders) in enumerate(zip(self._stop, self._borders, strict=True)):
                length = self._matched[i]
                while length and text[length] != character:
                    length = borders[length - 1]
                self._matched[i] = length = length + (text[length] == character)
                if length == len(text):
                    complete = max(complete, length)
            certain = len(self.held) - (complete or max(self._matched))
            shown, self.held = shown + self.held[:certain], self.held[certain:]
            if complete:
                self.held, self.reached = "", True
                break
        return shown


def _borders(text: str) -> list[int]:
    """Return for each beginning of a text the longest shorter one with which it ends (Knuth, Morris & Pratt 1977)."""
    borders = [0]
    for character in text[1:]:
        length = borders[-1]
        while length and text[length] != character:
            length = borders[length - 1]
        borders.append(length + (text[length] == character))
    return borders


def candidates(
    logits_V: Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the symbols [K] that may come next and their probabilities [K], which add up to one.

    Top-p (Holtzman et al. 2020) counts the probabilities that top-k has cut and renormalised. The likeliest
    symbol always stays; of equally likely ones, the smallest.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature} is not above 0, and nothing can be drawn at it")
    # The largest becomes zero before the division, which could overflow at tiny temperatures.
    logits_V = (logits_V - logits_V.max()) / temperature
    if top_k is None and top_p is None:
        return torch.arange(len(logits_V)), logits_V.softmax(0)
    logits_K, symbols_K = logits_V.sort(descending=True, stable=True)
    probabilities_K = logits_K[:top_k].softmax(0)
    if top_p is not None and top_p < 1:
        likelier_K = probabilities_K.cumsum(0) - probabilities_K
        probabilities_K = probabilities_K[likelier_K < top_p]
    return symbols_K[: len(probabilities_K)], probabilities_K / probabilities_K.sum()


@torch.no_grad()
def _read(model: CharLM, symbols_T: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Return the logits [V] and the state [L, S, 1, H] after some symbols, in the parameters' precision."""
    device, dtype = model.embedding.values.device, model.embedding.values.dtype
    was_training = model.training
    model.eval()
    try:
        state = model.initial_state(1)
        for start in range(0, len(symbols_T), PROMPT_CHUNK):
            chunk = torch.from_numpy(symbols_T[start : start + PROMPT_CHUNK].astype(np.int64))
            logits_T1V, state = model(chunk.to(device)[:, None], state)
    finally:
        model.train(was_training)
    return logits_T1V[-1, 0].to(dtype), state.to(dtype)


def _opening(tokenizer: Tokenizer) -> NDArray[Any]:
    """Return what a model reads in place of an empty prompt."""
    try:
        return tokenizer.encode("\n")
    except UserError:
        return np.array([1 if tokenizer.unknown_id == 0 else 0])
