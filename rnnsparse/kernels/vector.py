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
        super().__init__(manager, kind, ir_type(kind))


def ir_type(kind: Vector) -> ir.VectorType:
    return ir.VectorType(ir.FloatType() if kind.dtype.bitwidth == 32 else ir.DoubleType(), kind.lanes)


def _address(context: Any, builder: Any, kind: Any, array: Any, offset: Any, target: ir.Type) -> Any:
    start = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(start, [offset]), target.as_pointer())


@intrinsic
def load(typing: Any, array: Any, offset: Any) -> Any:
    """Return the vector that starts at element `offset` of a one-dimensional array; any alignment, no bounds check."""
    vector = Vector(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _address(context, builder, signature.args[0], arguments[0], arguments[1], ir_type(vector))
        value = builder.load(place)
        value.align = array.dtype.bitwidth // 8
        return value

    return vector(array, types.int64), generate


@intrinsic
def gather(typing: Any, array: Any, places: Any, offset: Any) -> Any:
    """Return the vector of the elements of `array` at places[offset], places[offset + 1], ...; no bounds check."""
    vector = Vector(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def start(i: int) -> Any:
            return context.make_array(signature.args[i])(context, builder, arguments[i]).data

        def lanes(element: ir.Type) -> ir.VectorType:
            return ir.VectorType(element, vector.lanes)

        bits, size = signature.args[1].dtype.bitwidth, array.dtype.bitwidth // 8
        several = lanes(ir.IntType(bits)).as_pointer()
        numbers = builder.load(builder.bitcast(builder.gep(start(1), [arguments[2]]), several))
        numbers.align = bits // 8
        # Pointers are made by hand, because llvmlite has no vectors of offsets from one.
        wide = lanes(I64)
        offsets = builder.mul(
            builder.zext(numbers, wide) if bits < 64 else numbers, ir.Constant(wide, [size] * vector.lanes)
        )
        undefined = ir.Constant(wide, ir.Undefined)
        first = builder.insert_element(undefined, builder.ptrtoint(start(0), I64), ir.Constant(I32, 0))
        everywhere = builder.shuffle_vector(first, undefined, ir.Constant(lanes(I32), [0] * vector.lanes))
        kind, pointers = ir_type(vector), lanes(ir_type(vector).element.as_pointer())
        masks = lanes(ir.IntType(1))
        read = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(kind, [pointers, I32, masks, kind]),
            f"llvm.masked.gather.v{vector.lanes}f{size * 8}.v{vector.lanes}p0",
        )
        all_of_them = ir.Constant(masks, [1] * vector.lanes)
        where = builder.inttoptr(builder.add(everywhere, offsets), pointers)
        return builder.call(read, [where, ir.Constant(I32, size), all_of_them, ir.Constant(kind, ir.Undefined)])

    return vector(array, places, types.int64), generate


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
        undefined = ir.Constant(ir_type(vector), ir.Undefined)
        first = builder.insert_element(undefined, arguments[0], ir.Constant(I32, 0))
        everywhere = ir.Constant(ir.VectorType(I32, vector.lanes), [0] * vector.lanes)
        return builder.shuffle_vector(first, undefined, everywhere)

    return vector(number), generate


@intrinsic
def zero(typing: Any, array: Any) -> Any:
    """Return a vector of zeros of an array's type."""
    vector = Vector(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(ir_type(vector), [0.0] * vector.lanes)

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
