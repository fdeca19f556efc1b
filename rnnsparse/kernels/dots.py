"""Dot products of one row with several others at once: what the gradient of a row's connections is made of.

A vector of a block has elements of two of its rows, side by side. There is then less to add up within vectors at the
end, and what is read of the block serves more connections.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from rnnsparse.kernels.emit import REGISTERS, Emit, number

MANY = REGISTERS // 2  # vectors of sums that are held in registers
MOMENTS = 4  # over which dot products go
SIDE_BY_SIDE = 2  # rows in a vector of a block


def _sums(emit: Emit, vectors: list[Any], rows: int) -> list[Any]:
    """Return vectors of the sums over the elements of each of `rows` equal parts of each of `vectors`, in order."""
    if len(vectors) * rows > emit.width:
        half = len(vectors) // 2
        return _sums(emit, vectors[:half], rows) + _sums(emit, vectors[half:], rows)
    count, add = len(vectors), emit.builder.fadd
    # Halves of parts are added until a part has as many elements as there are vectors.
    for half in (1 << i for i in reversed(range((emit.width // rows // count).bit_length() - 1))):
        size = half * count
        low = [part + j for part in range(0, rows * 2 * size, 2 * size) for j in range(size)]
        high = [place + size for place in low]
        vectors = [add(emit.shuffle(v, v, low), emit.shuffle(v, v, high)) for v in vectors]
    # Then a tree: each of its levels halves the number of vectors. In each pair, groups of `size` elements of both are
    # laid side by side and added.
    size, width = 1, rows * count
    while len(vectors) > 1:
        low = [side + base + j for base in range(0, width, 2 * size) for side in (0, width) for j in range(size)]
        high = [place + size for place in low]
        vectors = [
            add(emit.shuffle(a, b, low), emit.shuffle(a, b, high))
            for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
        size *= 2
    # The first parts of all came first.
    (sums,) = vectors
    return [emit.shuffle(sums, sums, [row * count + i for i in range(count) for row in range(rows)])]


@intrinsic
def lay_side_by_side(
    typing: Any, row: Any, adds: Any, g: Any, g_0: Any, g_step: Any, moments: Any, room: Any, room_0: Any
) -> Any:
    """Write the rows of a block, at so many moments a step apart, to `room` as vectors of the block.

    Zeros stand in for what MOMENTS has more.
    """
    offset, height = types.int64, len(adds)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emit(context, builder, signature, arguments, g.dtype)
        g_step, moments = arguments[4:6]
        g_all, room_all = emit.start(2, arguments[3]), emit.start(6, arguments[7])
        batch, elements = len(row) * emit.width, emit.width // SIDE_BY_SIDE

        def copy(moment: Any, _: list[Any]) -> list[Any]:
            is_in = builder.icmp_signed("<", moment, moments)
            source = emit.move(g_all, builder.mul(builder.select(is_in, moment, number(0)), g_step))
            target = emit.move(room_all, builder.mul(moment, number(height * batch)))
            for b in range(0, batch, elements):
                for i in range(0, height, SIDE_BY_SIDE):
                    one, other = (emit.read(emit.move(source, j * batch + b), elements) for j in (i, i + 1))
                    both = builder.select(is_in, emit.shuffle(one, other, range(emit.width)), emit.zero)
                    emit.write(emit.move(target, b * height + i * elements), both)
            return []

        emit.loop(number(0), number(MOMENTS), 1, [], copy)
        return context.get_dummy_value()

    return types.void(row, adds, g, offset, offset, offset, room, offset), generate


def _make_add_dots(sums_at_once: int) -> Any:
    @intrinsic
    def add_dots(
        typing: Any, row: Any, adds: Any, g: Any, g_0: Any, g_step: Any, x: Any, x_0: Any, x_step: Any, moments: Any,
        neighbours: Any, k: Any, out: Any,
    ) -> Any:  # fmt: skip
        """Add to the gradients of connections from k on the dot products of their rows of g and neighbours, rows of x.

        There are `sums_at_once` vectors of sums, of so many connections as that makes, or of one. They are over
        `moments` moments, at least one and MOMENTS at most, which lie a step apart. Of blocks, g is what
        `lay_side_by_side` has written.
        """
        offset, rows = types.int64, min(len(adds), SIDE_BY_SIDE)
        vectors = len(adds) // rows
        count, together = max(1, sums_at_once // vectors), min(vectors, sums_at_once)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            emit = Emit(context, builder, signature, arguments, g.dtype)
            g_0, g_step, _, x_0, x_step, moments, _, k = arguments[3:11]
            batch, elements = len(row) * emit.width, emit.width // rows
            # What is beyond the last moment is the first again, times zero.
            inside = [builder.icmp_signed("<", number(moment), moments) for moment in range(MOMENTS)]
            which = [builder.select(is_in, number(moment), number(0)) for moment, is_in in enumerate(inside)]
            weights = [emit.everywhere(builder.select(is_in, emit.scalar(1.0), emit.scalar(0.0))) for is_in in inside]
            # Of a block, zeros are there for it.
            g_which = which if rows == 1 else [number(moment) for moment in range(MOMENTS)]
            g_rows = [emit.start(2, builder.add(g_0, builder.mul(moment, g_step))) for moment in g_which]
            x_rows = [emit.start(5, builder.add(x_0, builder.mul(moment, x_step))) for moment in which]
            places = [builder.mul(n, number(batch)) for n in emit.integers(emit.start(9, k), count)]
            for first in range(0, vectors, together):
                sums: list[Any] = [None] * (count * together)
                for moment in range(MOMENTS):
                    for b in range(0, batch, elements):
                        own = emit.move(g_rows[moment], b * len(adds) + first * emit.width)
                        g_parts = [emit.read(emit.move(own, i * emit.width)) for i in range(together)]
                        if moment and rows == 1:
                            g_parts = [builder.fmul(part, weights[moment]) for part in g_parts]
                        for i, place in enumerate(places):
                            x_part = emit.read(emit.move(x_rows[moment], b, place), elements)
                            x_part = emit.shuffle(x_part, x_part, [*range(elements)] * rows)
                            for j, g_part in enumerate(g_parts, i * together):
                                total = sums[j]
                                sums[j] = (
                                    emit.multiply_add(g_part, x_part, total) if total else builder.fmul(g_part, x_part)
                                )
                target = emit.start(11, builder.add(builder.mul(k, number(len(adds))), number(first * rows)))
                for i, dots in enumerate(_sums(emit, sums, rows)):
                    part = emit.move(target, i * emit.width)
                    emit.write(part, builder.fadd(emit.read(part, dots.type.count), dots))
            return context.get_dummy_value()

        arguments = row, adds, g, offset, offset, x, offset, offset, offset, neighbours, offset, out
        return types.void(*arguments), generate

    return add_dots


add_many_dots, add_half_dots, add_quarter_dots, add_few_dots = map(_make_add_dots, (MANY, MANY // 2, MANY // 4, 2))
