"""From a configuration, or from a checkpoint, to a model that is ready to use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from rnnsparse import yaml12
from rnnsparse.config import RunConfig, parse_config
from rnnsparse.data.corpus import load_corpus
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.errors import UserError
from rnnsparse.nn.language_model import CharLM
from rnnsparse.sparsity.allocation import Budget, allocate, connect_randomly
from rnnsparse.training import checkpoint

PARAMETER_TYPES = {"fp64": torch.float64}
COMPUTE_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(wanted: str = "auto") -> torch.device:
    """Return the device called `wanted`; "auto" is the first CUDA device, or the CPU where there is none.

    Raises:
        UserError: CUDA is wanted and not there.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device: cuda is not available on this machine; use training.device=auto or cpu")
    return torch.device(wanted)


def vocabulary_size(config: RunConfig) -> int:
    """Return how many symbols a run has; reads the text only if its characters are the symbols."""
    return 256 if config.data.tokenizer == "byte" else load_corpus(config.data).tokenizer.vocab_size


def empty_model(config: RunConfig, vocab_size: int, device: torch.device) -> tuple[CharLM, list[Budget]]:
    """Return a model without connections, and the budgets that its groups have.

    Raises:
        UserError: the budgets cannot be met, or the precision needs another device.
    """
    precision = config.training.precision
    if precision in COMPUTE_TYPES and device.type != "cuda":
        raise UserError(
            f"training.precision: {precision} needs a CUDA device, this run is on {device.type}; use "
            "training.precision=fp32"
        )
    model = CharLM(config.model, vocab_size).to(device=device, dtype=PARAMETER_TYPES.get(precision, torch.float32))
    model.compute_dtype = COMPUTE_TYPES.get(precision)
    return model, allocate(list(model.sparse_weights().values()), config.budget)


def new_model(config: RunConfig, vocab_size: int, device: torch.device) -> tuple[CharLM, list[Budget]]:
    """Return a model as a run starts with it: first topology and first values, both by `run.seed`; and its budgets."""
    model, budgets = empty_model(config, vocab_size, device)
    connect_randomly(budgets, config.run.seed, config.method.starts)
    model.reset_parameters(config.run.seed)
    return model, budgets


@dataclass(frozen=True)
class Restored:
    """A checkpoint brought to life."""

    folder: Path
    step: int
    config: RunConfig
    model: CharLM
    tokenizer: Tokenizer
    budgets: list[Budget]


def restore(path: Path, device: torch.device) -> Restored:
    """Read a run (its last checkpoint) or a checkpoint. One trained in half precision on CUDA runs in fp32 elsewhere.

    Raises:
        UserError: there is none, it is damaged, or of another program or version.
    """
    saved = checkpoint.load(checkpoint.resolve(path))
    config = read_config(saved)
    tokenizer = Tokenizer.from_json(saved.tokenizer_json)
    if config.training.precision in COMPUTE_TYPES and device.type != "cuda":
        config = parse_config(config.to_dict(), str(path), ["training.precision=fp32"])
    model, budgets = empty_model(config, tokenizer.vocab_size, device)
    saved.apply_weights(model)
    return Restored(path, saved.step, config, model, tokenizer, budgets)


def read_config(saved: checkpoint.Checkpoint) -> RunConfig:
    """Return the configuration in a checkpoint."""
    source = f"{saved.folder}/config.yaml"
    try:
        data = yaml12.read(saved.config_yaml)
    except ValueError as error:
        raise UserError(f"{source}: {error}; use another checkpoint") from None
    return parse_config(data, source)
