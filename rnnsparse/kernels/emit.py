"""Writing LLVM code by hand: what the intrinsics of this package share.

Numba alone turns `y[b] += v * x[c, b]` into loads and stores of y for every connection, which costs five to ten times
the arithmetic. Intrinsics hold their sums in registers. LLVM splits a vector where the processor has narrower ones, so
the code is right everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types

from rnnsparse.kernels.compiling import vector_bytes

VECTOR_BYTES = vector_bytes()
REGISTERS = 32 if VECTOR_BYTES == 64 else 16
I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


def width_of(dtype: types.Float) -> int:
    """Return how many numbers one vector holds."""
    return VECTOR_BYTES * 8 // int(dtype.bitwidth)


def vector_type(dtype: types.Float, width: int | None = None) -> ir.VectorType:
    return ir.VectorType(ir.FloatType() if dtype.bitwidth == 32 else ir.DoubleType(), width or width_of(dtype))


def number(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


class Emit:
    """The code of one intrinsic on arrays whose numbers are of one type; `arguments` by position."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any, dtype: types.Float) -> None:
        self.context, self.builder, self.signature, self.arguments = context, builder, signature, arguments
        self.dtype, self.width = dtype, width_of(dtype)
        self.zero = self.constant(0.0)

    def scalar(self, value: float) -> ir.Constant:
        return ir.Constant(vector_type(self.dtype).element, value)

    def constant(self, value: float, width: int | None = None) -> ir.Constant:
        kind = vector_type(self.dtype, width)
        return ir.Constant(kind, [value] * kind.count)

    def start(self, array: int, offset: Any = 0) -> Any:
        """Return the address of an element of an array argument."""
        data = self.context.make_array(self.signature.args[array])(self.context, self.builder, self.arguments[array])
        return self.move(data.data, offset)

    def move(self, pointer: Any, *offsets: Any) -> Any:
        """Return an address so many elements further on."""
        for offset in offsets:
            if not isinstance(offset, int):
                pointer = self.builder.gep(pointer, [offset])
            elif offset:
                pointer = self.builder.gep(pointer, [number(offset)])
        return pointer

    def read(self, pointer: Any, width: int | None = None) -> Any:
        value = self.builder.load(self.builder.bitcast(pointer, vector_type(self.dtype, width).as_pointer()))
        value.align = self.dtype.bitwidth // 8
        return value

    def write(self, pointer: Any, value: Any) -> None:
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer())).align = (
            self.dtype.bitwidth // 8
        )

    def everywhere(self, scalar: Any, width: int | None = None) -> Any:
        """Return a vector with one number in every element."""
        undefined = ir.Constant(vector_type(self.dtype, width), ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
        return self.shuffle(first, undefined, [0] * undefined.type.count)

    def shuffle(self, a: Any, b: Any, places: Sequence[int]) -> Any:
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(places)), list(places)))

    def transposed(self, vectors: Sequence[Any]) -> list[Any]:
        """Return as many vectors as each has elements: element j of the i-th is element i of the j-th given."""
        rows, size = list(vectors), 1
        # Blocks of `size` x `size` change places with their mirror images, then blocks of twice that size.
        while size < len(rows):
            for i in (i for i in range(len(rows)) if not i & size):
                a, b, places = rows[i], rows[i + size], range(len(rows))
                rows[i] = self.shuffle(a, b, [len(rows) + j - size if j & size else j for j in places])
                rows[i + size] = self.shuffle(a, b, [len(rows) + j if j & size else j + size for j in places])
            size *= 2
        return rows

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """Return a * b + c, with one rounding where the processor can."""
        return self.builder.fadd(self.builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))

    def integers(self, pointer: Any, count: int) -> list[Any]:
        """Return as many unsigned integers in a row, as 64 bits each; 16-bit ones are read as one number."""
        element = pointer.type.pointee
        if element.width != 16 or count not in (2, 4):
            values = [self.builder.load(self.move(pointer, i)) for i in range(count)]
            return [self.builder.zext(v, I64) if element.width < 64 else v for v in values]
        several = self.builder.load(self.builder.bitcast(pointer, ir.IntType(16 * count).as_pointer()))
        several.align = 2
        several = self.builder.zext(several, I64) if count < 4 else several
        return [self.builder.and_(self.builder.lshr(several, number(16 * i)), number(0xFFFF)) for i in range(count)]

    def loop(
        self, start: Any, stop: Any, step: int, sums: Sequence[Any], body: Callable[[Any, list[Any]], Sequence[Any]]
    ) -> list[Any]:
        """Emit `while start < stop: sums = body(start, sums); start += step` and return the last sums."""
        builder, before = self.builder, self.builder.block
        head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        counter, carried = builder.phi(I64), [builder.phi(value.type) for value in sums]
        counter.add_incoming(start, before)
        for phi, value in zip(carried, sums, strict=True):
            phi.add_incoming(value, before)
        builder.cbranch(builder.icmp_signed("<", counter, stop), inside, after)
        builder.position_at_end(inside)
        following = body(counter, list(carried))
        counter.add_incoming(builder.add(counter, number(step)), builder.block)
        for phi, value in zip(carried, following, strict=True):
            phi.add_incoming(value, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return carried
