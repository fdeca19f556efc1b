"""Short vectors as values in numba code: one register of float32 or float64.

Numba alone turns `y[b] += v * x[c, b]` into loads and stores of y for every connection, which costs five to ten times
the arithmetic. These few intrinsics let a kernel hold its sums in registers. LLVM splits a vector where the processor
has narrower ones, so the code is right everywhere.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import PrimitiveModel, register_default
from numba.extending import intrinsic, overload

from rnnsparse.kernels.compiling import vector_bytes

VECTOR_BYTES = vector_bytes()
I32, I64 = ir.IntType(32), ir.IntType(64)


class Vector(types.Type):
    """The numba type of VECTOR_BYTES of one floating-point type."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        self.lanes = VECTOR_BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"Vector({dtype})")


@register_default(Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, _ir_type(kind))


def _ir_type(kind: Vector) -> ir.VectorType:
    return ir.VectorType(ir.FloatType() if kind.dtype.bitwidth == 32 else ir.DoubleType(), kind.lanes)


def _address(context: Any, builder: Any, kind: Any, array: Any, offset: Any, target: ir.Type) -> Any:
    start = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(start, [offset]), target.as_pointer())


@intrinsic
def load(typing: Any, array: Any, offset: Any) -> Any:
    """Return the vector that starts at element `offset` of a one-dimensional array; any alignment, no bounds check."""
    vector = Vector(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _address(context, builder, signature.args[0], arguments[0], arguments[1], _ir_type(vector))
        value = builder.load(place)
        value.align = array.dtype.bitwidth // 8
        return value

    return vector(array, types.int64), generate


@intrinsic
def store(typing: Any, array: Any, offset: Any, value: Any) -> Any:
    """Write a vector to a one-dimensional array from element `offset` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _address(context, builder, signature.args[0], arguments[0], arguments[1], arguments[2].type)
        builder.store(arguments[2], place).align = array.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.int64, value), generate


@intrinsic
def fill(typing: Any, number: Any) -> Any:
    """Return a vector with `number` in every lane."""
    vector = Vector(number)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        undefined = ir.Constant(_ir_type(vector), ir.Undefined)
        first = builder.insert_element(undefined, arguments[0], ir.Constant(I32, 0))
        everywhere = ir.Constant(ir.VectorType(I32, vector.lanes), [0] * vector.lanes)
        return builder.shuffle_vector(first, undefined, everywhere)

    return vector(number), generate


@intrinsic
def zero(typing: Any, array: Any) -> Any:
    """Return a vector of zeros of an array's type."""
    vector = Vector(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(_ir_type(vector), [0.0] * vector.lanes)

    return vector(array), generate


@intrinsic
def multiply_add(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, with one rounding where the processor can."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        product = builder.fmul(arguments[0], arguments[1], flags=("contract",))
        return builder.fadd(product, arguments[2], flags=("contract",))

    return a(a, b, c), generate


def _binary(instruction: str) -> Any:
    @intrinsic
    def apply(typing: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments, flags=("contract",))

        return a(a, b), generate

    return apply


def _overload_operator(symbol: Any, apply: Any) -> None:
    # Numba wants the outer function to have the very signature of the inner one, so neither is annotated.
    def choose(a, b):
        if isinstance(a, Vector) and isinstance(b, Vector):
            return lambda a, b: apply(a, b)
        return None

    overload(symbol)(choose)


_overload_operator(operator.add, _binary("fadd"))
_overload_operator(operator.sub, _binary("fsub"))
_overload_operator(operator.mul, _binary("fmul"))
_overload_operator(operator.truediv, _binary("fdiv"))


@intrinsic
def at(typing: Any, array: Any, offset: Any) -> Any:
    """Return element `offset` of a one-dimensional array, without the look for negative indices."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load(builder.gep(start, [arguments[1]]))

    return array.dtype(array, types.int64), generate


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
            kind = _ir_type(vector)

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


def _call(builder: Any, name: str, *arguments: Any) -> Any:
    kind = arguments[0].type
    suffix = f"v{kind.count}f{32 if isinstance(kind.element, ir.FloatType) else 64}"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind] * len(arguments)), f"llvm.{name}.{suffix}"
    )
    return builder.call(function, arguments)


class _Expression:
    """Builds straight-line vector code; `number` makes constants of the vector's type."""

    def __init__(self, builder: Any, kind: ir.VectorType) -> None:
        self.builder, self.kind = builder, kind

    def number(self, value: float) -> Any:
        return ir.Constant(self.kind, [value] * self.kind.count)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return _call(self.builder, "fma", a, b, c)

    def polynomial(self, x: Any, coefficients: tuple[float, ...]) -> Any:
        value = self.number(coefficients[0])
        for coefficient in coefficients[1:]:
            value = self.fma(value, x, self.number(coefficient))
        return value

    def select_less(self, a: Any, limit: float, yes: Any, no: Any) -> Any:
        # "unordered": a lane that is not a number takes `yes`, which keeps it so.
        return self.builder.select(self.builder.fcmp_unordered("<", a, self.number(limit)), yes, no)

    def exp(self, x: Any) -> Any:
        """e^x = 2^n * e^r with |r| <= ln(2)/2: range reduction in two steps, then a Taylor polynomial."""
        builder, single = self.builder, isinstance(self.kind.element, ir.FloatType)
        # Outside these the result would leave the normal numbers. Comparisons keep what is not a number.
        low, high = (-87.0, 88.0) if single else (-708.0, 709.0)
        x = builder.select(builder.fcmp_ordered("<", x, self.number(low)), self.number(low), x)
        x = builder.select(builder.fcmp_ordered(">", x, self.number(high)), self.number(high), x)
        n = _call(builder, "rint", builder.fmul(x, self.number(1.4426950408889634)))
        # ln(2) in two parts, the first with few enough bits that its product with n is exact.
        first, second = (
            (0.693359375, -2.1219444005469057e-4) if single else (0.6931471803691238, 1.9082149292705877e-10)
        )
        r = self.fma(n, self.number(-second), self.fma(n, self.number(-first), x))
        factorial, coefficients = 1.0, [1.0]
        for i in range(1, 8 if single else 14):
            factorial *= i
            coefficients.append(1 / factorial)
        p = self.polynomial(r, tuple(reversed(coefficients)))
        integer = ir.IntType(32 if single else 64)
        bias, mantissa = (127, 23) if single else (1023, 52)
        integers = ir.VectorType(integer, self.kind.count)

        def every(value: int) -> Any:
            return ir.Constant(integers, [value] * self.kind.count)

        power = builder.shl(builder.add(builder.fptosi(n, integers), every(bias)), every(mantissa))
        return builder.fmul(p, builder.bitcast(power, self.kind))

    def sigmoid(self, x: Any) -> Any:
        one = self.number(1.0)
        return self.builder.fdiv(one, self.builder.fadd(one, self.exp(self.builder.fneg(x))))

    def tanh(self, x: Any) -> Any:
        """(1 - e) / (1 + e) with e = e^(-2|x|); near zero, where that cancels, an odd Taylor polynomial."""
        builder = self.builder
        size = _call(builder, "fabs", x)
        e = self.exp(builder.fmul(size, self.number(-2.0)))
        one = self.number(1.0)
        far = builder.fdiv(builder.fsub(one, e), builder.fadd(one, e))
        square = builder.fmul(x, x)
        p = self.polynomial(square, _TANH_SERIES)
        near = self.fma(builder.fmul(p, square), size, size)
        return _call(builder, "copysign", self.select_less(size, 0.25, near, far), x)


# tanh(x) = x + x^3 * (-1/3 + 2/15 x^2 - ...), highest power first; at |x| < 0.25 the next term is below 1e-17.
_TANH_SERIES = tuple(
    reversed(
        (
            -1 / 3,
            2 / 15,
            -17 / 315,
            62 / 2835,
            -1382 / 155925,
            21844 / 6081075,
            -929569 / 638512875,
            6404582 / 10854718875,
            -443861162 / 1856156927625,
            18888466084 / 194896477400625,
            -113927491862 / 2900518163668125,
            58870668456604 / 3698160658676859375,
        )
    )
)


@intrinsic
def sigmoid(typing: Any, x: Any) -> Any:
    """Return 1 / (1 + e^-x) of every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _Expression(builder, arguments[0].type).sigmoid(arguments[0])

    return x(x), generate


@intrinsic
def tanh(typing: Any, x: Any) -> Any:
    """Return the hyperbolic tangent of every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _Expression(builder, arguments[0].type).tanh(arguments[0])

    return x(x), generate


@intrinsic
def meet(typing: Any, counter: Any, target: Any) -> Any:
    """Add one to `counter[0]` and wait until it reaches `target`: a barrier between threads that all run.

    Waits actively, because sleeping costs more than a time step; gives the processor away after a while, in case more
    threads want to run than there are cores.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        builder.atomic_rmw("add", place, ir.Constant(I64, 1), "acq_rel")
        yield_processor = cgutils.get_or_insert_function(builder.module, ir.FunctionType(I32, []), "sched_yield")
        entry = builder.block
        loop, wait, give = (builder.append_basic_block(name) for name in ("loop", "wait", "give"))
        done = builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        turns = builder.phi(I64)
        turns.add_incoming(ir.Constant(I64, 0), entry)
        arrived = builder.load_atomic(place, "acquire", 8)
        builder.cbranch(builder.icmp_signed(">=", arrived, arguments[1]), done, wait)
        builder.position_at_end(wait)
        more = builder.add(turns, ir.Constant(I64, 1))
        turns.add_incoming(more, wait)
        builder.cbranch(builder.icmp_signed(">", more, ir.Constant(I64, 4000)), give, loop)
        builder.position_at_end(give)
        builder.call(yield_processor, [])
        turns.add_incoming(more, give)
        builder.branch(loop)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(counter, types.int64), generate
