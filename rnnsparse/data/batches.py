"""Lanes: batches for truncated backpropagation through time; each sequence continues the one before it.

Shape suffixes: B batch (lanes), T time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnnsparse.errors import UserError


def to_device(batch: Tensor, device: torch.device) -> Tensor:
    """Return a batch on a device, without waiting for what a GPU still has to do."""
    if device.type == "cuda":
        # From other memory the copy would wait for the GPU.
        batch = batch.pin_memory()
    return batch.to(device, non_blocking=True)


class Lanes:
    """An endless iterator of (inputs_TB, targets_TB): int64, contiguous, targets one symbol ahead of inputs.

    Lane b starts at symbol b * len(tokens) // batch_size and reads on around the text as around a circle, so
    the recurrent state of one batch always fits the next and every symbol is read equally often. `position`,
    the symbols that each lane has read, is all there is to resume.

    With several ranks `batch_size` is that of all together, and each rank has `batch_size // world_size`
    adjacent lanes.
    """

    def __init__(
        self,
        tokens: NDArray[Any],
        batch_size: int,
        sequence_length: int,
        position: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Raise a UserError for sizes that do not fit each other, or a text too short for one batch."""
        if min(batch_size, sequence_length) < 1:
            raise UserError(
                f"training.batch_size={batch_size}, training.sequence_length={sequence_length}: both must be at least 1"
            )
        if batch_size % world_size:
            raise UserError(
                f"training.batch_size={batch_size}: does not divide among {world_size} ranks; "
                f"use {batch_size - batch_size % world_size or world_size}"
            )
        if len(tokens) < (least := max(sequence_length + 1, batch_size)):
            raise UserError(
                f"the training text has {len(tokens)} symbols and must have at least {least} for "
                f"training.sequence_length={sequence_length} and training.batch_size={batch_size}; "
                "lower these, or use more text (a larger data.limit, if that is set)"
            )
        if not 0 <= rank < world_size or position < 0:
            raise ValueError(f"rank {rank} of {world_size} cannot read from position {position}")
        self.position = position
        self._tokens = np.asarray(tokens)  # drops the memmap class, which costs time at every look-up
        self._sequence_length = sequence_length
        lanes_B = np.arange(batch_size, dtype=np.int64).reshape(world_size, -1)[rank]
        self._starts_B = lanes_B * len(tokens) // batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Return the next batch. Inputs and targets overlap in memory: copy before writing to either."""
        symbols = len(self._tokens)
        offsets_T = np.arange(self._sequence_length + 1)
        indices_TB = (self._starts_B[None, :] + self.position % symbols + offsets_T[:, None]) % symbols
        window_TB = torch.from_numpy(self._tokens[indices_TB].astype(np.int64))
        self.position += self._sequence_length
        return window_TB[:-1], window_TB[1:]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]
