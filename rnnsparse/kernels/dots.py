"""Dot products of one row with several others at once: what the gradient of a row's connections is made of."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rnnsparse.kernels.vector import I32, I64, Vector, ir_type


def _sums(builder: Any, vectors: list[Any]) -> Any:
    """Return one vector whose lane i is the sum over the lanes of `vectors[i]`; there are as many as lanes.

    A tree of shuffles and additions: each of its log2(lanes) levels halves the number of vectors.
    """
    lanes = len(vectors)
    width = 1
    while len(vectors) > 1:
        # In each pair, groups of `width` lanes of both members are laid side by side and added.
        low = [side + base + j for base in range(0, lanes, 2 * width) for side in (0, lanes) for j in range(width)]
        masks = [ir.Constant(ir.VectorType(I32, lanes), mask) for mask in (low, [lane + width for lane in low])]
        vectors = [
            builder.fadd(*(builder.shuffle_vector(a, b, mask) for mask in masks))
            for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
        width *= 2
    return vectors[0]


def _make_add_dots(together: int | None) -> Any:
    @intrinsic
    def add_dots(
        typing: Any, g: Any, g_0: Any, g_step: Any, x: Any, x_0: Any, x_step: Any, batch: Any, times: Any, columns: Any,
        k: Any, count: Any, out: Any,
    ) -> Any:  # fmt: skip
        """For the `count` connections from k on, add to out[k] the dot product of a row of g and row columns[k] of x.

        A row is `batch` numbers (whole vectors) at each of `times` moments, `g_step` and `x_step` apart.
        """
        vector = Vector(g.dtype)
        lanes = vector.lanes
        many = together or lanes
        offset = types.int64

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = ir_type(vector)

            def start(i: int) -> Any:
                return context.make_array(signature.args[i])(context, builder, arguments[i]).data

            def read(pointer: Any) -> Any:
                value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
                value.align = g.dtype.bitwidth // 8
                return value

            def number(value: int) -> Any:
                return ir.Constant(I64, value)

            _, g_0, g_step, _, x_0, x_step, batch, times, _, k, count, _ = arguments
            g_row, x_all = builder.gep(start(0), [g_0]), builder.gep(start(3), [x_0])
            out_k, columns_k = builder.gep(start(11), [k]), builder.gep(start(8), [k])
            rows = []
            for i in range(many):
                # Beyond the last connection the first stands in; its sum is not stored.
                inside = builder.icmp_signed("<", number(i), count)
                column = builder.load(builder.gep(columns_k, [builder.select(inside, number(i), number(0))]))
                column = builder.zext(column, I64) if column.type.width < 64 else column
                rows.append(builder.gep(x_all, [builder.mul(column, batch)]))
            zero = ir.Constant(kind, [0.0] * lanes)
            totals = [cgutils.alloca_once_value(builder, zero) for _ in range(many)]
            with cgutils.for_range(builder, times) as moment:
                g_t, x_t = builder.mul(moment.index, g_step), builder.mul(moment.index, x_step)
                with cgutils.for_range_slice(builder, number(0), batch, number(lanes), I64) as (b, _):
                    g_b = read(builder.gep(g_row, [builder.add(g_t, b)]))
                    for row, total in zip(rows, totals, strict=True):
                        x_b = read(builder.gep(row, [builder.add(x_t, b)]))
                        product = builder.fmul(g_b, x_b, flags=("contract",))
                        builder.store(builder.fadd(product, builder.load(total), flags=("contract",)), total)
            result = _sums(builder, [builder.load(total) for total in totals] + [zero] * (lanes - many))
            place = cgutils.alloca_once_value(builder, result)
            first = builder.bitcast(place, kind.element.as_pointer())
            with cgutils.for_range(builder, count) as connection:
                target = builder.gep(out_k, [connection.index])
                dot = builder.load(builder.gep(first, [connection.index]))
                builder.store(builder.fadd(builder.load(target), dot), target)
            return context.get_dummy_value()

        signature = types.void(g, offset, offset, x, offset, offset, offset, offset, columns, offset, offset, out)
        return signature, generate

    return add_dots


add_dots = _make_add_dots(None)  # up to as many connections as a vector has lanes
add_few_dots = _make_add_dots(4)
