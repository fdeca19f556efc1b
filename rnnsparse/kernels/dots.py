"""Dot products of one row with several others at once: what the gradient of a row's connections is made of."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from rnnsparse.kernels.emit import REGISTERS, Emit, number

MANY = REGISTERS // 2  # dot products whose sums are held in registers
MOMENTS = 4  # over which they go


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


def _make_add_dots(sums_at_once: int) -> Any:
    @intrinsic
    def add_dots(
        typing: Any, row: Any, adds: Any, g: Any, g_0: Any, g_step: Any, x: Any, x_0: Any, x_step: Any, moments: Any,
        neighbours: Any, k: Any, out: Any,
    ) -> Any:  # fmt: skip
        """Add to the gradients of connections from k on the dot products of their rows of g and neighbours, rows of x.

        There are `sums_at_once` dot products, of so many connections as that makes, or of one. Each is over `moments`
        moments, at least one and MOMENTS at most, which lie a step apart.
        """
        offset, height = types.int64, len(adds)
        count, together = max(1, sums_at_once // height), min(height, sums_at_once)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            emit = Emit(context, builder, signature, arguments, g.dtype)
            g_0, g_step, _, x_0, x_step, moments, _, k = arguments[3:11]
            batch = len(row) * emit.width
            # What is beyond the last moment is the first again, times zero.
            inside = [builder.icmp_signed("<", number(moment), moments) for moment in range(MOMENTS)]
            which = [builder.select(is_in, number(moment), number(0)) for moment, is_in in enumerate(inside)]
            weights = [emit.everywhere(builder.select(is_in, emit.scalar(1.0), emit.scalar(0.0))) for is_in in inside]
            g_rows = [emit.start(2, builder.add(g_0, builder.mul(moment, g_step))) for moment in which]
            x_rows = [emit.start(5, builder.add(x_0, builder.mul(moment, x_step))) for moment in which]
            places = [builder.mul(n, number(batch)) for n in emit.integers(emit.start(9, k), count)]
            for first in range(0, height, together):
                sums: list[Any] = [None] * (count * together)
                for moment in range(MOMENTS):
                    for v in range(0, batch, emit.width):
                        g_parts = [
                            emit.read(emit.move(g_rows[moment], i * batch + v)) for i in range(first, first + together)
                        ]
                        if moment:
                            g_parts = [builder.fmul(part, weights[moment]) for part in g_parts]
                        for i, place in enumerate(places):
                            x_part = emit.read(emit.move(x_rows[moment], v, place))
                            for j, g_part in enumerate(g_parts, i * together):
                                total = sums[j]
                                sums[j] = (
                                    emit.multiply_add(g_part, x_part, total) if total else builder.fmul(g_part, x_part)
                                )
                target = emit.start(11, builder.add(builder.mul(k, number(height)), number(first)))
                for i, dots in enumerate(_sums(emit, sums)):
                    part = emit.move(target, i * emit.width)
                    emit.write(part, builder.fadd(emit.read(part, dots.type.count), dots))
            return context.get_dummy_value()

        arguments = row, adds, g, offset, offset, x, offset, offset, offset, neighbours, offset, out
        return types.void(*arguments), generate

    return add_dots


add_many_dots, add_half_dots, add_quarter_dots, add_few_dots = map(_make_add_dots, (MANY, MANY // 2, MANY // 4, 2))
