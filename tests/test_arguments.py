"""Public functions refuse bad arguments by an error of their own, which `python -O` does not take away."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rnnsparse.config import parse_config
from rnnsparse.data.batches import Lanes
from rnnsparse.data.split import Split
from rnnsparse.data.tokenizer import Tokenizer
from rnnsparse.evaluation import evaluate
from rnnsparse.nn.language_model import CharLM
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.randomness import generator_for
from rnnsparse.recipes import ticket_rounds
from rnnsparse.sampling import Sampler, candidates
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.run import EvaluationConfig
from rnnsparse.sparsity.method import METHODS, StepContext, register
from rnnsparse.sparsity.schedule import annealed
from rnnsparse.sparsity.selection import draw_positions, keep_largest
from rnnsparse.training.step.connection_adam import ConnectionAdam
from rnnsparse.training.train import prepare

ROOT = Path(__file__).parent.parent
BYTE, CHAR = Tokenizer.byte(), Tokenizer.char("ab")
TOKENS = np.zeros(9, np.uint8)


def model(execution: Any = "masked") -> CharLM:
    found = CharLM(ModelConfig(embedding_dim=2, hidden_size=2), 256)
    found.execution = execution
    return found


def adam() -> ConnectionAdam:
    return ConnectionAdam([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


CALLS: dict[str, Callable[[], Any]] = {
    "a tokenizer of 3 symbols": lambda: Sampler(model(), CHAR),
    "a tokenizer of 3 symbols is": lambda: evaluate(model(), Split(TOKENS, 9, 9), CHAR, EvaluationConfig()),
    "temperature: -1 is not above 0": lambda: candidates(torch.zeros(3), -1),
    "3 rows do not split into 2 equal": lambda: SparseWeight("w", 3, 2, ["a", "b"]),
    "trained by its recipe": lambda: prepare(parse_config({"sparsity": {"method": "lottery"}}, "c.yaml")),
    "static is no recipe": lambda: ticket_rounds.plan(parse_config({}, "c.yaml")),
    "run.dir: is null": lambda: replace(parse_config({}, "c.yaml"), run=type(parse_config({}, "").run)()).folder,
    "closure: gradients come": lambda: adam().step(lambda: None),
    "schedule: 'cosin' is none of": lambda: annealed("cosin", 0.3, 1, 10),
    "3 of 2 positions": lambda: draw_positions(3, 2, generator_for(0)),
    "-1 of 2 connections": lambda: keep_largest(torch.arange(2), torch.ones(2), -1),
    "cannot read from position -1": lambda: Lanes(TOKENS, 2, 2, position=-1),
    "rank 2 of 2": lambda: Lanes(TOKENS, 2, 2, rank=2, world_size=2),
    "two methods are called rigl": lambda: register("rigl")(METHODS["rigl"]),
    "static remembers nothing": lambda: METHODS["static"]().load_state_dict({"x": 1}),
    "there is no optimizer": lambda: StepContext(1, 10, seed=0).momentum(None),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("reason", CALLS)
def test_a_bad_argument_is_refused(reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace(".", r"\.")):
        CALLS[reason]()


@pytest.mark.parametrize("path", sorted((ROOT / "rnnsparse").rglob("*.py")), ids=lambda path: path.stem)
def test_an_assertion_tells_a_type_and_checks_no_argument(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assert):
            text = ast.unparse(node.test)
            assert text.endswith(" is not None") or text.startswith("isinstance("), f"{path}:{node.lineno}: {text}"
