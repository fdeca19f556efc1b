"""Which characters win connections while a network trains, and which lose them, as a moving picture.

It is for text what the picture of the input pixels that keep connections is for MNIST (Evci et al. 2020).
"""

from __future__ import annotations

import io
import math
from typing import Any, Literal

import matplotlib
from matplotlib.colors import to_hex
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from rnnsparse.reporting.pictures import Pictures
from rnnsparse.reporting.plots.labels import readable

Kind = Literal["webp", "gif", "png"]
ACROSS = 16  # symbols in a row
LEVELS = 32  # shades of the scale: few, so that frames are small
SECONDS, REST = 4.0, 2.5  # for all frames, and for the last one
SHADES = [to_hex(matplotlib.colormaps["cividis"](i / (LEVELS - 1))) for i in range(LEVELS)]
INK, PALE = "#222222", "#DDDDDD"


def animation(pictures: Pictures, width: int, kind: Kind, plays: int = 0) -> bytes:
    """Return an animated picture of all moments, so many pixels wide; it plays so often, 0 for without end.

    The first frame is the end as well: it is what paper shows, and whoever plays nothing.
    """
    frames = _frames(pictures, width)
    each, rest = max(40, round(1000 * SECONDS / len(frames))), round(1000 * REST)
    durations = [rest // 4, *(each for _ in frames[1:]), rest]
    frames.insert(0, frames[-1])
    # One palette for all, so that what stays the same costs nothing.
    ends = Image.new("RGB", (width, 2 * frames[0].height))
    ends.paste(frames[1])
    ends.paste(frames[-1], (0, frames[0].height))
    palette = ends.quantize(128, dither=Image.Dither.NONE)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    ground = frames[0].tobytes()[0]
    for frame in frames:  # the palette's white is a mean of whites, which a page around it would show
        colours = frame.getpalette() or []
        frame.putpalette([*colours[: 3 * ground], 255, 255, 255, *colours[3 * ground + 3 :]])
    options: dict[str, Any] = {"loop": plays}
    if kind == "webp":
        frames = [frame.convert("RGB") for frame in frames]
        options |= {"lossless": True, "method": 3, "minimize_size": True}
    elif kind == "gif" and plays:
        options = {"loop": plays - 1} if plays > 1 else {}  # it counts how often the picture is repeated
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], duration=durations, **options)
    return out.getvalue()


def _frames(pictures: Pictures, width: int) -> list[Image.Image]:
    names = [_label(symbol.symbol) for symbol in pictures.symbols]
    most = max(1, *(max(symbol.over_time) for symbol in pictures.symbols))
    cell, down = width // (ACROSS + 1), math.ceil(len(names) / ACROSS)
    margin = (width - ACROSS * cell) // 2
    size = (width, round((down + 2.6) * cell) + 2 * margin)
    small, large = (_font(round(share * cell)) for share in (0.45, 0.52))
    blank = Image.new("RGB", size, "white")
    _scale(ImageDraw.Draw(blank), margin, size[1] - margin - cell, cell, most, small)
    frames = []
    for moment, step in enumerate(pictures.steps):
        frame = blank.copy()
        draw = ImageDraw.Draw(frame)
        _progress(draw, margin, cell, step, pictures.steps[-1], small)
        for i, symbol in enumerate(pictures.symbols):
            share = symbol.over_time[moment] / most
            x, y = margin + i % ACROSS * cell, margin + round(1.2 * cell) + i // ACROSS * cell
            draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill=_shade(share))
            if names[i]:
                ink = "black" if share > 0.55 else "white"
                draw.text((x + cell / 2 - 1, y + cell / 2 - 1), names[i], fill=ink, font=large, anchor="mm")
        frames.append(frame)
    return frames


def _progress(
    draw: ImageDraw.ImageDraw, margin: int, cell: int, step: int, last: int, font: ImageFont.FreeTypeFont
) -> None:
    """Write how far training is, above a bar that says the same."""
    width = ACROSS * cell - 2
    draw.text((margin, margin), f"step {step:,} of {last:,}", fill=INK, font=font)
    top = margin + round(0.8 * cell)
    draw.rectangle((margin, top, margin + width, top + cell // 8), fill=PALE)
    draw.rectangle((margin, top, margin + round(width * step / max(1, last)), top + cell // 8), fill=INK)


def _scale(
    draw: ImageDraw.ImageDraw, margin: int, top: int, cell: int, most: int, font: ImageFont.FreeTypeFont
) -> None:
    """Say which shade is how many connections."""
    left, width = margin + round(9.6 * cell), 4 * cell
    draw.text((margin, top + cell // 2), "connections of each character", fill=INK, font=font, anchor="lm")
    draw.text((left - cell // 5, top + cell // 2), "0", fill=INK, font=font, anchor="rm")
    for level in range(LEVELS):
        x, end = (left + edge * width // LEVELS for edge in (level, level + 1))
        draw.rectangle((x, top + cell // 4, end, top + 3 * cell // 4), fill=SHADES[level])
    draw.text((left + width + cell // 5, top + cell // 2), str(most), fill=INK, font=font, anchor="lm")


def _shade(share: float) -> str:
    return SHADES[min(LEVELS - 1, int(share * LEVELS))]


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans")), max(6, size))


def _label(symbol: str) -> str:
    """Return what a cell says: a visible character; of a byte that is none, nothing."""
    label = readable(symbol)
    return label if len(label) == 1 or label.startswith("\\") else ""
