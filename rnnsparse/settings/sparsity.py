"""The section `sparsity`, as far as all methods have it: the fields of a method are its own part of the section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Lt
from pydantic import PlainValidator
from typing_extensions import Doc

from rnnsparse.errors import UserError
from rnnsparse.settings.marks import OfSparse, OnlyWith, OtherRun, PathName


def _block_rows(value: Any) -> int | dict[str, int]:
    heights = list(value.values()) if isinstance(value, dict) else [value]
    named = not isinstance(value, dict) or all(isinstance(name, str) for name in value)
    if not named or not all(type(height) is int and height in (1, 2, 4, 8, 16) for height in heights):
        raise ValueError("must be 1, 2, 4, 8 or 16, or such numbers by name, as in {rnn.0: 8, output: 4}")
    return value  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """How many connections there are, and how they are spread over the groups."""

    sparsity: Annotated[float, Ge(0), Lt(1), OfSparse, Doc("share of positions without a connection")] = 0.9
    distribution: Annotated[
        Literal["uniform", "er", "erk"],
        OfSparse,
        Doc("uniform: the same sparsity everywhere; er, erk: density by (rows + cols) / (rows * cols)"),
    ] = "erk"
    granularity: Annotated[
        Literal["gate", "matrix", "cell"],
        OfSparse,
        Doc("what owns a budget: a gate, a whole matrix, or a recurrent layer"),
    ] = "gate"
    dense: Annotated[tuple[str, ...], OfSparse, Doc("groups kept dense and not counted: names, prefixes or globs")] = ()
    overrides: Annotated[
        dict[str, Annotated[float, Ge(0), Le(1)]], OfSparse, Doc("sparsity of single groups, by name, prefix or glob")
    ] = field(default_factory=dict)
    block_rows: Annotated[
        int | dict[str, int],
        PlainValidator(_block_rows),
        OfSparse,
        Doc(
            "rows of a gate that are connected together (a block shares a column): a number for the recurrent layers, "
            "or by name, prefix or glob"
        ),
    ] = 1
    initial_scale: Annotated[
        Literal["neuron", "layer", "dense"],
        OfSparse,
        Doc("number of inputs that first values are scaled for: a neuron's own, its layer's mean, or all (dense)"),
    ] = "neuron"
    basis: Annotated[
        Literal["canonical", "dct", "svd"],
        Doc(
            "canonical: connections are entries of the matrices; else coefficients of each gate, at dense cost: of "
            "cosines (dct), or of the singular vectors of another run's gate (svd)"
        ),
    ] = "canonical"
    basis_from: Annotated[
        PathName | None,
        OtherRun,
        OnlyWith("basis", ("svd",)),
        Doc(
            "svd: run or checkpoint whose singular vectors are taken, or those that it is in itself; its values are "
            "not (start.weights)"
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.basis == "svd" and self.basis_from is None:
            raise UserError(
                "sparsity.basis: svd: there is no run to take singular vectors of; name a trained one in "
                "sparsity.basis_from, or use dct"
            )
