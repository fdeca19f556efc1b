"""Short vectors as values in numba code: one register of float32 or float64."""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import PrimitiveModel, register_default
from numba.extending import intrinsic, overload

from rnnsparse.kernels.emit import I32, I64, Emit, number, vector_type, width_of


class Vector(types.Type):
    """The numba type of one vector of numbers of one floating-point type."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype, self.width = dtype, width_of(dtype)
        super().__init__(name=f"Vector({dtype})")


@register_default(Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, vector_type(kind.dtype))


@intrinsic
def load(typing: Any, array: Any, offset: Any) -> Any:
    """Return the vector that starts at element `offset` of a one-dimensional array; any alignment, no bounds check."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emit(context, builder, signature, arguments, array.dtype)
        return emit.read(emit.start(0, arguments[1]))

    return Vector(array.dtype)(array, types.int64), generate


@intrinsic
def look_up(
    typing: Any, table: Any, step: Any, first: Any, numbers: Any, offset: Any, out: Any, place: Any, batch: Any
) -> Any:  # fmt: skip
    """Write a square of a transposed table: as many rows of `out`, `batch` apart, as a vector is wide.

    Lane j of row i is table[numbers[offset + j], first + i]; rows of the table are `step` apart. No bounds checks.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emit(context, builder, signature, arguments, table.dtype)
        _, step, first, _, offset, _, place, batch = arguments
        rows = [emit.move(emit.start(0, builder.mul(n, step)), first) for n in _numbers(emit, 3, offset)]
        for i, row in enumerate(emit.transposed([emit.read(row) for row in rows])):
            emit.write(emit.start(5, builder.add(place, builder.mul(batch, number(i)))), row)
        return context.get_dummy_value()

    offset = types.int64
    return types.void(table, offset, offset, numbers, offset, out, offset, offset), generate


@intrinsic
def add_up(typing: Any, rows: Any, place: Any, batch: Any, numbers: Any, offset: Any, sums: Any, start: Any) -> Any:
    """Add a square of `rows`, transposed, to sums by number: of as many rows, `batch` apart, as a vector is wide.

    Lane i of the vector at sums[start + width * numbers[offset + j]] gets lane j of row i. No bounds checks.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emit(context, builder, signature, arguments, rows.dtype)
        _, place, batch, _, offset, _, start = arguments
        square = [
            emit.read(emit.start(0, builder.add(place, builder.mul(batch, number(i))))) for i in range(emit.width)
        ]
        for n, lanes in zip(_numbers(emit, 3, offset), emit.transposed(square), strict=True):
            total = emit.move(emit.start(5, start), builder.mul(n, number(emit.width)))
            emit.write(total, builder.fadd(emit.read(total), lanes))
        return context.get_dummy_value()

    offset = types.int64
    return types.void(rows, offset, offset, numbers, offset, sums, offset), generate


def _numbers(emit: Emit, array: int, offset: Any) -> list[Any]:
    """Return the whole numbers of an array argument from `offset` on, for each lane one, as 64 bits."""
    return emit.integers(emit.start(array, offset), emit.width)


@intrinsic
def gather(typing: Any, array: Any, places: Any, offset: Any) -> Any:
    """Return the vector of the elements of `array` at places[offset], places[offset + 1], ...; no bounds check."""
    vector = Vector(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def start(i: int) -> Any:
            return context.make_array(signature.args[i])(context, builder, arguments[i]).data

        def several(element: ir.Type) -> ir.VectorType:
            return ir.VectorType(element, vector.width)

        bits, size = signature.args[1].dtype.bitwidth, array.dtype.bitwidth // 8
        numbers = builder.load(
            builder.bitcast(builder.gep(start(1), [arguments[2]]), several(ir.IntType(bits)).as_pointer())
        )
        numbers.align = bits // 8
        # Pointers are made by hand, because llvmlite has no vectors of offsets from one.
        wide = several(I64)
        offsets = builder.mul(
            builder.zext(numbers, wide) if bits < 64 else numbers, ir.Constant(wide, [size] * vector.width)
        )
        everywhere = _everywhere(builder, builder.ptrtoint(start(0), I64), vector.width)
        return _gathered(builder, array, builder.add(everywhere, offsets))

    return vector(array, places, types.int64), generate


def _everywhere(builder: Any, number: Any, width: int) -> Any:
    """Return a vector with one 64-bit number in every element."""
    undefined = ir.Constant(ir.VectorType(I64, width), ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, width), [0] * width))


def _gathered(builder: Any, array: Any, addresses: Any) -> Any:
    """Return the vector of the numbers at a vector of addresses."""
    kind, width = vector_type(array.dtype), addresses.type.count
    pointers, masks = ir.VectorType(kind.element.as_pointer(), width), ir.VectorType(ir.IntType(1), width)
    read = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(kind, [pointers, I32, masks, kind]),
        f"llvm.masked.gather.v{width}f{array.dtype.bitwidth}.v{width}p0",
    )
    size, all_of_them = ir.Constant(I32, array.dtype.bitwidth // 8), ir.Constant(masks, [1] * width)
    where = builder.inttoptr(addresses, pointers)
    return builder.call(read, [where, size, all_of_them, ir.Constant(kind, ir.Undefined)])


@intrinsic
def store(typing: Any, array: Any, offset: Any, value: Any) -> Any:
    """Write a vector to a one-dimensional array from element `offset` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emit(context, builder, signature, arguments, array.dtype)
        emit.write(emit.start(0, arguments[1]), arguments[2])
        return context.get_dummy_value()

    return types.void(array, types.int64, value), generate


@intrinsic
def add_elements(typing: Any, vector: Any, array: Any, places: Any, start: Any, stop: Any) -> Any:
    """Add the elements of a vector, one each, to those of `array` at places[start], ..., places[stop - 1]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emit(context, builder, signature, arguments, array.dtype)
        room = cgutils.alloca_once_value(builder, arguments[0])
        first = builder.bitcast(room, vector_type(array.dtype).element.as_pointer())
        with cgutils.for_range(builder, builder.sub(arguments[4], arguments[3])) as element:
            place = emit.start(1, builder.load(emit.start(2, builder.add(arguments[3], element.index))))
            value = builder.load(emit.move(first, element.index))
            builder.store(builder.fadd(builder.load(place), value), place)
        return context.get_dummy_value()

    return types.void(vector, array, places, types.int64, types.int64), generate


@intrinsic
def prefetch(typing: Any, array: Any, offset: Any) -> Any:
    """Ask for the part of the memory around element `offset`, which is soon read; it may lie outside the array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emit(context, builder, signature, arguments, array.dtype)
        place = builder.bitcast(emit.start(0, arguments[1]), ir.IntType(8).as_pointer())
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [place.type, I32, I32, I32]), "llvm.prefetch.p0"
        )
        # For reading, into the nearest cache, of data.
        builder.call(function, [place, *(ir.Constant(I32, value) for value in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@intrinsic
def fill(typing: Any, number: Any) -> Any:
    """Return a vector with `number` in every element."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return Emit(context, builder, signature, arguments, number).everywhere(arguments[0])

    return Vector(number)(number), generate


@intrinsic
def zero(typing: Any, array: Any) -> Any:
    """Return a vector of zeros of an array's type."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return Emit(context, builder, signature, arguments, array.dtype).zero

    return Vector(array.dtype)(array), generate


@intrinsic
def multiply_add(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, with one rounding where the processor can."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return Emit(context, builder, signature, arguments, a.dtype).multiply_add(*arguments)

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
