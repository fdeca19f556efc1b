"""What TensorBoard shows of a model while it trains: its values, where its connections are, what it writes."""

from __future__ import annotations

from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import UserError
from rnnsparse.nn.language_model import CharLM
from rnnsparse.sampling import Sampler, SamplingConfig
from rnnsparse.training.run.logging import RunLogger


def log_pictures(logger: RunLogger, step: int, model: CharLM) -> None:
    """Log a histogram of each gate's values, and where the connections of each weight are."""
    for weight in model.sparse_weights().values():
        for gate in weight.gates:
            start, stop = weight.bounds(gate.start_row, gate.stop_row)
            logger.histogram(step, f"weights/{gate.name}", weight.values[start:stop])
        logger.connectivity(step, weight.name, weight)


def sample_text(model: CharLM, tokenizer: Tokenizer, prompt: str, length: int, seed: int) -> str:
    """Return the prompt, and `length` symbols that the model adds to it.

    Raises:
        UserError: the prompt has symbols that the model does not know.
    """
    try:
        sampler = Sampler(model, tokenizer, prompt)
    except UserError as error:
        raise UserError(f"logging.sample_prompt: {error}") from None
    return prompt + "".join(sampler.stream(SamplingConfig(length=length, seed=seed)))
