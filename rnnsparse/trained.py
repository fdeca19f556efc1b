"""A trained model from a run or a checkpoint, ready to use in Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rnnsparse.config import RunConfig
from rnnsparse.data.split import Split
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.dynamic import Dynamic
from rnnsparse.evaluation import evaluate
from rnnsparse.nn.language_model import CharLM
from rnnsparse.sampling import Sampler, SamplingConfig
from rnnsparse.training.build import restore
from rnnsparse.training.device import choose_device


@dataclass(frozen=True)
class TrainedModel:
    """What `rnnsparse.load` returns.

    Attributes:
        model: the network, in evaluation mode.
        tokenizer: of its symbols, bytes or characters.
        config: the run's configuration.
        step: the optimizer step after which it was saved.
    """

    model: CharLM
    tokenizer: Tokenizer
    config: RunConfig
    step: int

    def sample(
        self,
        prompt: str = "",
        *,
        length: int = 500,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> str:
        """Return a text that continues the prompt, without it; the same seed gives the same text.

        Args:
            length: symbols to write: bytes for a byte model, else characters.
            temperature: below 1 safer, above 1 wilder; 0 takes the likeliest symbol each time.
            top_k, top_p: choose among the K likeliest symbols, or among the likeliest that hold probability P.
            stop: the text ends before the first of these that the model writes.

        Raises:
            ValueError: the prompt has characters that the model does not know, or a number is out of range.
        """
        if isinstance(stop, str):
            raise ValueError(f"stop={stop!r}: must be a list of texts, such as [{stop!r}]")
        if (
            length < 0
            or temperature < 0
            or (top_k is not None and top_k < 1)
            or not 0 < (1 if top_p is None else top_p) <= 1
        ):
            raise ValueError(
                f"length={length}, temperature={temperature}, top_k={top_k}, top_p={top_p}: the first two must not "
                "be negative, top_k at least 1, top_p above 0 and at most 1"
            )
        settings = SamplingConfig(
            length=length, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=tuple(stop)
        )
        return "".join(Sampler(self.model, self.tokenizer, prompt).stream(settings))

    def bits_per_character(self, text: str, *, dynamic: bool = False, dynamic_rate: float | None = None) -> float:
        """Return how well the model predicts a text: bits per Unicode code point, the first symbol not counted.

        Characters that the model does not know count as its unknown symbol and cost what tells them apart.

        Args:
            dynamic: a copy of the model learns from each segment once it is scored (see `rnnsparse.dynamic`).
            dynamic_rate: how fast it does, in the place of the default.

        Raises:
            ValueError: fewer than two characters, or a negative rate.
        """
        if dynamic_rate is not None and not (dynamic and 0 <= dynamic_rate < math.inf):
            raise ValueError(f"dynamic_rate={dynamic_rate}: must be a number from 0 on, and is for dynamic=True")
        adapts = Dynamic() if dynamic_rate is None else Dynamic(rate=dynamic_rate)
        utf8 = text.encode()
        tokens = self.tokenizer.encode_utf8(utf8)
        known = int(self.tokenizer.byte_lengths[tokens].sum())
        split = Split(tokens=tokens, characters=len(text), bytes=len(utf8), unknown_bytes=len(utf8) - known)
        config = self.config.evaluation
        return evaluate(
            self.model, split, self.tokenizer, config, dynamic=adapts if dynamic else None
        ).bits_per_character


def load(path: str | Path, device: str = "auto") -> TrainedModel:
    """Read a run (its last checkpoint) or a checkpoint, such as "checkpoints/demo".

    Args:
        device: "cpu", "cuda", or "auto": the first CUDA device if there is one.

    Raises:
        ValueError: there is none, it is damaged, or of another program or version.
    """
    restored = restore(Path(path), choose_device(device))
    return TrainedModel(restored.model.eval(), restored.tokenizer, restored.config, restored.step)
