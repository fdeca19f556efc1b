"""What one connection after another adds to a product: the innermost loop, held in registers.

A row of activations is `row` vectors wide. A connection of a block has several values: it reads one row and adds to
several consecutive ones (`adds`), or, in the transpose, reads several (`reads`) and adds to one. All of this is known
when a kernel is compiled: these are tuples, and their lengths say it. Registers hold the rows of the block: their sums,
or, in the transpose, what is read of them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from numba import types
from numba.extending import intrinsic

from rnnsparse.kernels.emit import REGISTERS, Emit, number


def padding(block_rows: int) -> int:
    """Return of what the length of a run of connections is a multiple: one that the loop has no remainder of."""
    return 2 if block_rows <= 4 else 1


@intrinsic
def add_connections(
    typing: Any, row: Any, adds: Any, values: Any, neighbours: Any, start: Any, stop: Any, x: Any, x_0: Any, y: Any,
    y_0: Any,
) -> Any:  # fmt: skip
    """Add to rows of y, from element y_0 on, the sum over connections of value * row of x at its neighbour.

    Several sums at a time keep a processor busy that starts two multiply-adds a cycle and needs four cycles for each.
    """
    offset, vectors, height = types.int64, len(row), len(adds)
    pad = padding(height)
    # A power of two, as heights are: the loop over the rows of a block has no remainder.
    together = min(height, 1 << max(1, REGISTERS // 2 // vectors).bit_length() - 1)
    sets = 2 if pad > 1 and 2 * together * vectors <= REGISTERS * 3 // 4 else 1

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emit(context, builder, signature, arguments, y.dtype)
        start, stop = arguments[4:6]
        x_all, y_row, batch = emit.start(6, arguments[7]), emit.start(8, arguments[9]), vectors * emit.width

        def parts(rows: Any) -> list[Any]:
            return [emit.move(rows, v * emit.width) for v in range(vectors)]

        def add(k: Any, sums: list[Any], count: int, first: int) -> list[Any]:
            """Add what `count` connections from k on give to the rows from `first` on."""
            for j, neighbour in enumerate(emit.integers(emit.move(emit.start(3), k), count)):
                own = emit.move(emit.start(2), builder.mul(builder.add(k, number(j)), number(height)), first)
                x_row = emit.move(x_all, builder.mul(neighbour, number(batch)))
                x_parts = [emit.read(part) for part in parts(x_row)]
                at = j % sets * together * vectors
                for i in range(together):
                    value = emit.everywhere(builder.load(emit.move(own, i)))
                    for part in x_parts:
                        sums[at] = emit.multiply_add(value, part, sums[at])
                        at += 1
            return sums

        for first in range(0, height, together):
            places = [part for i in range(first, first + together) for part in parts(emit.move(y_row, i * batch))]
            sums = [emit.read(place) for place in places] + [emit.zero] * (len(places) * (sets - 1))
            at = start
            for count in (4, pad) if height == 1 else (pad,):
                end = stop
                if count > pad:
                    end = builder.add(at, builder.and_(builder.sub(stop, at), number(-count)))
                sums = emit.loop(at, end, count, sums, partial(add, count=count, first=first))
                at = end
            for i, place in enumerate(places):
                emit.write(place, sums[i] if sets == 1 else builder.fadd(sums[i], sums[len(places) + i]))
        return context.get_dummy_value()

    arguments = row, adds, values, neighbours, offset, offset, x, offset, y, offset
    return types.void(*arguments), generate


@intrinsic
def add_transposed_connections(
    typing: Any, row: Any, reads: Any, values: Any, neighbours: Any, start: Any, stop: Any, x: Any, x_0: Any, y: Any,
    y_0: Any,
) -> Any:  # fmt: skip
    """Add for each connection the sum over the rows of x, from element x_0 on, of value * row to its neighbour in y.

    The neighbours are different rows. Of what is read, registers hold as much as they can.
    """
    offset, vectors, height = types.int64, len(row), len(reads)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emit(context, builder, signature, arguments, y.dtype)
        start, stop = arguments[4:6]
        batch = vectors * emit.width
        x_row, y_all = emit.start(6, arguments[7]), emit.start(8, arguments[9])
        x_parts = [emit.read(emit.move(x_row, v * emit.width)) for v in range(height * vectors)]

        def add(k: Any, _: list[Any]) -> list[Any]:
            (neighbour,) = emit.integers(emit.move(emit.start(3), k), 1)
            own = emit.move(emit.start(2), builder.mul(k, number(height)))
            y_row = emit.move(y_all, builder.mul(neighbour, number(batch)))
            places = [emit.move(y_row, v * emit.width) for v in range(vectors)]
            sums = [emit.read(place) for place in places]
            for i in range(height):
                value = emit.everywhere(builder.load(emit.move(own, i)))
                for v in range(vectors):
                    sums[v] = emit.multiply_add(value, x_parts[i * vectors + v], sums[v])
            for place, total in zip(places, sums, strict=True):
                emit.write(place, total)
            return []

        emit.loop(start, stop, 1, [], add)
        return context.get_dummy_value()

    arguments = row, reads, values, neighbours, offset, offset, x, offset, y, offset
    return types.void(*arguments), generate


@intrinsic
def add_blocks(
    typing: Any, adds: Any, values: Any, neighbours: Any, start: Any, stop: Any, x: Any, y: Any, y_0: Any
) -> Any:
    """Add to `adds` numbers of y, from y_0 on, the sum over connections of values * the neighbour's x."""
    offset, height = types.int64, len(adds)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emit(context, builder, signature, arguments, y.dtype)
        start, stop = arguments[3:5]
        place, together = emit.start(6, arguments[7]), 4

        def add(k: Any, sums: list[Any]) -> list[Any]:
            for i, neighbour in enumerate(emit.integers(emit.move(emit.start(2), k), len(sums))):
                own = emit.read(
                    emit.move(emit.start(1), builder.mul(builder.add(k, number(i)), number(height))), height
                )
                x_part = emit.everywhere(builder.load(emit.start(5, neighbour)), height)
                sums[i] = emit.multiply_add(own, x_part, sums[i])
            return sums

        whole = builder.add(start, builder.and_(builder.sub(stop, start), number(-together)))
        sums = [emit.read(place, height)] + [emit.constant(0.0, height)] * (together - 1)
        sums = emit.loop(start, whole, together, sums, add)
        total = builder.fadd(builder.fadd(sums[0], sums[1]), builder.fadd(sums[2], sums[3]))
        (total,) = emit.loop(whole, stop, 1, [total], add)
        emit.write(place, total)
        return context.get_dummy_value()

    return types.void(adds, values, neighbours, offset, offset, x, y, offset), generate
