"""The kernels of sparse execution on a CPU: compiled ones where numba is installed, PyTorch's elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rnnsparse.kernels import are_compiled

if TYPE_CHECKING or are_compiled():
    from rnnsparse.kernels import gru, lstm
    from rnnsparse.kernels.matrix import (
        Matrix,
        add_product,
        add_sampled_product,
        add_transposed_product,
        build_matrix,
        sum_by_symbol,
        tile_width,
    )
    from rnnsparse.kernels.recurrence import Input, OutputGradient
    from rnnsparse.kernels.sliced import VectorProduct
else:
    from rnnsparse.kernels.fallback import (
        Input,
        Matrix,
        OutputGradient,
        VectorProduct,
        add_product,
        add_sampled_product,
        add_transposed_product,
        build_matrix,
        gru,
        lstm,
        sum_by_symbol,
        tile_width,
    )

__all__ = [
    "Input",
    "Matrix",
    "OutputGradient",
    "VectorProduct",
    "add_product",
    "add_sampled_product",
    "add_transposed_product",
    "build_matrix",
    "gru",
    "lstm",
    "sum_by_symbol",
    "tile_width",
]
