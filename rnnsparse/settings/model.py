"""The section `model`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MaxLen
from typing_extensions import Doc

from rnnsparse.cells.cell import CELLS
from rnnsparse.errors import UserError
from rnnsparse.settings.marks import OnlyWith

if TYPE_CHECKING:
    CellName = str
else:
    CellName = Literal[tuple(sorted(CELLS))]
# A limit far beyond any memory, so that a slip of the finger is an error and not an overflow.
Size = Annotated[int, Gt(0), Le(1 << 20)]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a CharLM."""

    cell: Annotated[CellName, Doc("recurrent cell")] = "gru"
    embedding_dim: Annotated[Size, Doc("numbers per symbol")] = 64
    hidden_size: Annotated[Size, Doc("units per recurrent layer")] = 256
    num_layers: Annotated[int, Gt(0), Le(1000), Doc("recurrent layers")] = 1
    readout_dims: Annotated[
        tuple[Size, ...],
        MaxLen(1000),
        Doc("widths of the layers between the last recurrent one and the output"),
    ] = ()
    readout_activation: Annotated[
        Literal["identity", "relu", "tanh"], OnlyWith("readout_dims"), Doc("after each readout layer")
    ] = "relu"
    layer_norm: Annotated[bool, Doc("normalise what each recurrent layer puts out, with a learned gain and bias")] = (
        False
    )
    skip_connections: Annotated[
        bool,
        OnlyWith("num_layers", range(2, sys.maxsize), "with one layer: it reads the embedding anyway"),
        Doc("every recurrent layer also reads the embedding, and readout or output reads all recurrent layers"),
    ] = False
    tie_embeddings: Annotated[bool, Doc("use the embedding as output weight too")] = False
    dropout: Annotated[
        float,
        Ge(0),
        Lt(1),
        OnlyWith("num_layers", range(2, sys.maxsize), "with one layer: it acts between recurrent layers"),
        Doc("share of units dropped between recurrent layers"),
    ] = 0.0
    output_dropout: Annotated[
        float,
        Ge(0),
        Lt(1),
        Doc("share of units of the last recurrent layer dropped, for each lane the same throughout a training step"),
    ] = 0.0
    execution: Annotated[
        Literal["auto", "masked", "sparse"],
        Doc("masked: fused dense kernels; sparse: only the connections, on CPU; auto: what is likely faster"),
    ] = "auto"

    def __post_init__(self) -> None:
        if self.tie_embeddings and self.output_features != self.embedding_dim:
            last = "readout_dims[-1]" if self.readout_dims else "hidden_size"
            if self.recurrent_features > self.hidden_size and not self.readout_dims:
                last += f" times its {self.num_layers} layers, with skip_connections"
            raise UserError(
                f"model.tie_embeddings: the output reuses the embedding, so model.{last} ({self.output_features}) must "
                f"equal model.embedding_dim ({self.embedding_dim}); change one, or set model.tie_embeddings=false"
            )

    @property
    def recurrent_features(self) -> int:
        """Width of what the recurrent layers hand on: the last one, or all of them."""
        return self.hidden_size * (self.num_layers if self.skip_connections else 1)

    @property
    def output_features(self) -> int:
        """Width of what the output layer reads."""
        return self.readout_dims[-1] if self.readout_dims else self.recurrent_features
