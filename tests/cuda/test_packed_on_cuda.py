"""Runs packed on a GPU are the runs that they are alone on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.test_pack import DIFFERENT, config_in, require_close, require_same, train_alone, train_together

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_run_in_a_pack_on_a_gpu_is_the_run_alone(tmp_path: Path, cell: str) -> None:
    settings = ["training.device=cuda", "model.dropout=0", f"model.cell={cell}"]
    packed, alone = (
        [config_in(tmp_path / place, str(i), *settings, *run) for i, run in enumerate(DIFFERENT)]
        for place in ("packed", "alone")
    )
    for together, config in zip(train_together(packed), alone, strict=True):
        require_close(together, train_alone(config))
    for config, other in zip(packed, alone, strict=True):
        require_same(config, other)
