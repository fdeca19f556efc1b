"""Orthogonal bases in which the connections of a weight are coefficients, instead of entries of its matrix.

The rows W [R, C] of a gate are A X B^T with fixed orthogonal A and B. What is sparse, trained, pruned and grown is X
(the generalised lottery ticket, Alabdulmohsin et al. 2021). The product with W is a dense one, however sparse X is.

Shape suffixes: K gates of a weight, R rows of a gate, C columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Basis:
    """A and B of every gate of a weight.

    Attributes:
        left_KRR, right_KCC: A and B of each gate, or of all, with K = 1.
        derived: whether they follow from the weight's shape, so that no file has to hold them.
    """

    left_KRR: Tensor
    right_KCC: Tensor
    derived: bool = False

    @classmethod
    def dct(cls, rows: int, cols: int) -> Basis:
        """Return the basis of the two-dimensional discrete cosine transform (DCT-II) of every gate."""
        return cls(_cosines(rows)[None], _cosines(cols)[None], derived=True)

    @classmethod
    def svd(cls, matrix: Tensor, gates: int) -> Basis:
        """Return the singular vectors of each gate of a matrix [K*R, C], whose own coefficients are diagonal."""
        left_KRR, _, right_KCC = torch.linalg.svd(matrix.double().unflatten(0, (gates, -1)))
        # As they come back from a file: products of another memory layout round in another way.
        return cls(left_KRR.contiguous(), right_KCC.mT.contiguous())

    @classmethod
    def blank(cls, gates: int, rows: int, cols: int) -> Basis:
        """Return the place of a basis that a file or another run has yet to give: the canonical one."""
        return cls(torch.eye(rows).expand(gates, -1, -1), torch.eye(cols).expand(gates, -1, -1))

    def to_matrix(self, coefficients: Tensor) -> Tensor:
        """Return A X B^T of every gate, for coefficients [K*R, C]."""
        return self._by_gate(self.left_KRR, coefficients, self.right_KCC.mT)

    def to_coefficients(self, matrix: Tensor) -> Tensor:
        """Return A^T W B of every gate, for a matrix [K*R, C] or the gradient of one."""
        return self._by_gate(self.left_KRR.mT, matrix, self.right_KCC)

    def _by_gate(self, left_KRR: Tensor, matrix: Tensor, right_KCC: Tensor) -> Tensor:
        gates_KRC = matrix.view(-1, left_KRR.shape[1], matrix.shape[1])
        return (left_KRR @ gates_KRC @ right_KCC).flatten(0, 1)

    def to(self, like: Tensor) -> Basis:
        """Return the same basis on the device and in the type of a tensor."""
        return Basis(self.left_KRR.to(like), self.right_KCC.to(like), self.derived)


def same_basis(one: Basis | None, other: Basis | None) -> bool:
    """Return whether coefficients in the one are, bit for bit, coefficients in the other; None is the canonical one."""
    if one is None or other is None:
        return one is other
    pairs = [(one.left_KRR, other.left_KRR), (one.right_KCC, other.right_KCC)]
    return all(torch.equal(a, b.to(a.device)) for a, b in pairs)


def _cosines(size: int) -> Tensor:
    """Return the orthonormal vectors of the DCT-II as columns [size, size], from the lowest frequency up."""
    n = torch.arange(size, dtype=torch.float64)
    columns = torch.cos(torch.pi / size * (n[:, None] + 0.5) * n) * math.sqrt(2 / size)
    columns[:, 0] /= math.sqrt(2)
    return columns
