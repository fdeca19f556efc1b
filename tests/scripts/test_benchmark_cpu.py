"""What scripts/benchmark_cpu.py has measured is measured once, and never mixed with what another machine measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def test_a_stopped_benchmark_goes_on_with_what_it_has(benchmark: Any, tmp_path: Path) -> None:
    kept, times = benchmark.Kept, benchmark.Times(1.0, 2.0, 0.5)
    first = kept(tmp_path / "kept.json", {"threads": 1})
    assert first.times("layer", lambda: {"dense": times}) == {"dense": times}
    again = kept(tmp_path / "kept.json", {"threads": 1})
    assert again.times("layer", lambda: pytest.fail("measured twice")) == {"dense": times}


@pytest.mark.parametrize("content", ["{", "[]", '{"conditions": {"threads": 2}, "results": {}}', None])
def test_what_is_not_its_own_is_refused_and_left_alone(
    benchmark: Any, content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kept.json"
    if content is None:
        path = tmp_path / "absent" / "kept.json"
    else:
        path.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        benchmark.Kept(path, {"threads": 1})("layer", lambda: 1)
    assert stopped.value.code == 2
    assert str(path) in capsys.readouterr().err
    assert content is None or path.read_text() == content
