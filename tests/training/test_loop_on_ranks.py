"""`sparsify` in a loop of one's own on two ranks, each with half of the batch, is that of one process with all of it.

torchrun starts this file once, as a program that trains with every method.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import rnnsparse as rs
from tests.sparsity.test_sparsify import SETTINGS, STEPS, Net, adam, loss_of

ROOT = Path(__file__).resolve().parents[2]
CASES: dict[str, dict[str, Any]] = SETTINGS | {name: {"prune_share": 0.4} for name in ("lottery", "kd_ticket")}
LANES = 4


def trained(method: str, rank: int = 0, ranks: int = 1) -> dict[str, Any]:
    model = Net(seed=1 + rank).double()  # the first rank's values count
    optimizer = adam(model)
    sparsifier = rs.sparsify(model, method, optimizer, sparsity=0.7, steps=STEPS, values="reset", **CASES[method])
    share = LANES // ranks
    lanes = slice(rank * share, (rank + 1) * share)
    halves = slice(lanes.start, lanes.start + share // 2), slice(lanes.start + share // 2, lanes.stop)
    for _ in sparsifier.rounds():
        while sparsifier.steps_taken < STEPS:
            optimizer.zero_grad()
            step = sparsifier.steps_taken
            if step % 3:
                sparsifier.backward(loss_of(model, step, lanes))
            else:  # accumulated
                sparsifier.backward(loss_of(model, step, halves[0]) / 2, synchronise=False)
                sparsifier.backward(loss_of(model, step, halves[1]) / 2)
            sparsifier.step()
    return model.state_dict() | {"moved": torch.tensor(sparsifier.connections_moved)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both ranks have come to with each method."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("method", CASES)
def test_two_ranks_come_to_what_one_process_does(folder: Path, method: str) -> None:
    first, second = (torch.load(folder / f"{method}-{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = trained(method)
    assert first.keys() == second.keys() == alone.keys()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        if value.is_floating_point():
            torch.testing.assert_close(first[name], value, rtol=0, atol=1e-10, msg=name)
        else:
            assert torch.equal(first[name], value), name


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    for method in CASES:
        torch.save(trained(method, dist.get_rank(), dist.get_world_size()), folder / f"{method}-{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
