"""Dot products of one row with several others at once: what the gradient of a row's connections is made of."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from rnnsparse.kernels.emit import REGISTERS, Emit, number

MANY = REGISTERS // 2  # dot products whose sums are held in registers


def _sums(emit: Emit, vectors: list[Any]) -> list[Any]:
    """Return vectors whose elements, one after another, are the sums over the elements of each of `vectors`."""
    if len(vectors) > emit.width:
        return _sums(emit, vectors[: emit.width]) + _sums(emit, vectors[emit.width :])
    count, add = len(vectors), emit.builder.fadd
    # Halves are added until a vector has as many elements as there are vectors.
    for half in (1 << i for i in reversed(range((emit.width // count).bit_length() - 1))):
        size = half * count
        vectors = [add(emit.shuffle(v, v, range(size)), emit.shuffle(v, v, range(size, 2 * size))) for v in vectors]
    # Then a tree: each of its levels halves the number of vectors. In each pair, groups of `size` elements of both are
    # laid side by side and added.
    size = 1
    while len(vectors) > 1:
        low = [side + base + j for base in range(0, count, 2 * size) for side in (0, count) for j in range(size)]
        high = [place + size for place in low]
        vectors = [
            add(emit.shuffle(a, b, low), emit.shuffle(a, b, high))
            for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
        size *= 2
    return vectors


def _make_add_dots(count: int) -> Any:
    @intrinsic
    def add_dots(
        typing: Any, row: Any, g: Any, g_0: Any, g_next: Any, x: Any, x_0: Any, x_next: Any, share: Any, neighbours: Any,
        k: Any, out: Any,
    ) -> Any:  # fmt: skip
        """Add to each of `count` elements of out, from k on, the dot product of a row of g and its neighbour, one of x.

        This is at one moment, and `share` times the same at a second one, so much further on.
        """
        offset = types.int64

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            emit = Emit(context, builder, signature, arguments, g.dtype)
            batch = len(row) * emit.width
            g_rows, x_rows = ([emit.start(i, arguments[i + 1])] for i in (1, 4))
            g_rows.append(emit.move(g_rows[0], arguments[3]))
            x_rows.append(emit.move(x_rows[0], arguments[6]))
            second = emit.everywhere(arguments[7])
            parts: list[tuple[Any, Any]] = []
            for moment, (g_row, x_row) in enumerate(zip(g_rows, x_rows, strict=True)):
                for v in range(0, batch, emit.width):
                    g_part = emit.read(emit.move(g_row, v))
                    parts.append((builder.fmul(g_part, second) if moment else g_part, emit.move(x_row, v)))
            sums = []
            for neighbour in emit.integers(emit.start(8, arguments[9]), count):
                place, total = builder.mul(neighbour, number(batch)), None
                for g_part, x_part in parts:
                    x_vector = emit.read(emit.move(x_part, place))
                    total = emit.multiply_add(g_part, x_vector, total) if total else builder.fmul(g_part, x_vector)
                sums.append(total)
            for i, dots in enumerate(_sums(emit, sums)):
                target = emit.start(10, builder.add(arguments[9], number(i * emit.width)))
                emit.write(target, builder.fadd(emit.read(target, dots.type.count), dots))
            return context.get_dummy_value()

        arguments = row, g, offset, offset, x, offset, offset, g.dtype, neighbours, offset, out
        return types.void(*arguments), generate

    return add_dots


add_many_dots, add_half_dots, add_quarter_dots, add_two_dots = map(_make_add_dots, (MANY, MANY // 2, MANY // 4, 2))
