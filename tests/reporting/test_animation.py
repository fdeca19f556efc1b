from __future__ import annotations

import io

import pytest
from PIL import Image, ImageColor

from rnnsparse.reporting.pictures import BlockPicture, Histogram, Pictures, SymbolPicture
from rnnsparse.reporting.plots.animation import SHADES, Kind, animation
from rnnsparse.reporting.plots.network import _symbols_moving


def pictures(*rows: list[int]) -> Pictures:
    """Bytes from 0x80 on, which have no label, with so many connections at each moment."""
    bins = Histogram(start=0, width=1, counts=[1])
    moments = len(rows[0])
    block = BlockPicture(name="embedding", rows=2, cols=8, inputs=bins, outputs=bins, over_time=[9] * moments)
    symbols = [SymbolPicture(symbol=f"{0x80 + i:02x}", over_time=row) for i, row in enumerate(rows)]
    return Pictures(steps=[10 * i for i in range(moments)], embedding_dim=8, blocks=[block], units=[], symbols=symbols)


def frames(data: bytes) -> list[Image.Image]:
    found = Image.open(io.BytesIO(data))
    shown = []
    for number in range(getattr(found, "n_frames", 1)):
        found.seek(number)
        shown.append(found.convert("RGB"))
    return shown


@pytest.mark.parametrize("kind", ["webp", "gif", "png"])
def test_every_moment_is_a_frame_in_which_a_cell_is_as_bright_as_its_row_has_connections(kind: Kind) -> None:
    rows = [[1, 4, 8], [8, 4, 0], [8, 8, 8]]
    shown = frames(animation(pictures(*rows), 340, kind))
    assert [frame.size for frame in shown] == [shown[0].size] * 4
    cell, margin = 20, 10
    for moment, frame in zip([2, 0, 1, 2], shown, strict=True):  # the end first, for who plays nothing
        for i, row in enumerate(rows):
            level = min(len(SHADES) - 1, row[moment] * len(SHADES) // 8)
            seen = frame.getpixel((margin + i * cell + cell // 2, margin + 24 + cell // 2))
            assert isinstance(seen, tuple)
            wanted = ImageColor.getrgb(SHADES[level])
            assert max(abs(a - b) for a, b in zip(seen, wanted, strict=True)) <= 6, "but for the palette"
        assert frame.getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize(("kind", "loop"), [("webp", 3), ("png", 3), ("gif", 2)])
def test_it_plays_as_often_as_asked_and_by_default_without_end(kind: Kind, loop: int) -> None:
    few = pictures([1, 2], [2, 1])
    assert Image.open(io.BytesIO(animation(few, 170, kind, plays=3))).info["loop"] == loop
    assert Image.open(io.BytesIO(animation(few, 170, kind))).info["loop"] == 0
    if kind == "gif":
        assert "loop" not in Image.open(io.BytesIO(animation(few, 170, kind, plays=1))).info


def test_the_report_shows_only_what_moves_and_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _symbols_moving(pictures([3, 3], [1, 1])) is None
    moving = pictures([1, 2], [2, 1])
    plot = _symbols_moving(moving)
    assert plot is not None
    assert len(frames(plot.shown)) == 3
    monkeypatch.setattr("rnnsparse.reporting.plots.network.LARGEST_ANIMATION", len(plot.shown) - 1)
    assert _symbols_moving(moving) is None
