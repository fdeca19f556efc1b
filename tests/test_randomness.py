import subprocess
import sys
from pathlib import Path

import torch

from rnnsparse.randomness import generator_for


def draw(*purpose: str | int, seed: int = 0) -> list[float]:
    return torch.rand(4, generator=generator_for(seed, *purpose)).tolist()


def test_the_same_seed_and_purpose_give_the_same_numbers_whatever_was_drawn_before() -> None:
    first = draw("grow", 3, "embedding")
    torch.rand(7)
    draw("drop", 3, "embedding")
    assert draw("grow", 3, "embedding") == first


def test_another_seed_or_purpose_gives_other_numbers() -> None:
    purposes = [(), ("a",), ("b",), ("a", "b"), ("ab",), ("a", 1), ("a", "1"), (1,), ("1",), (-1,)]
    draws = {tuple(draw(*purpose, seed=seed)) for purpose in purposes for seed in (0, 1, 2**63 - 1)}
    assert len(draws) == 3 * len(purposes)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    draw("a")
    assert torch.equal(torch.get_rng_state(), before)


def test_another_process_draws_the_same_numbers() -> None:
    # hash() of a string differs between processes; the seed must not depend on it.
    code = "from rnnsparse.randomness import generator_for as g; print(g(5, 'a', 1).initial_seed())"
    root = Path(__file__).parent.parent
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert int(result.stdout) == generator_for(5, "a", 1).initial_seed()
