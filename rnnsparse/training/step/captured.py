"""Forward and backward pass as one CUDA graph: all of their kernels given to the GPU in one launch.

A small recurrent network takes a GPU less time to compute than it takes Python to ask for its kernels, some of them for
each time step.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rnnsparse.nn.language_model import CharLM

# (inputs_TB, targets_TB, state) -> (state, loss, nats), which adds gradients to the parameters.
Pass = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class CapturedPass:
    """Does what `compute` does, for batches and states of one shape, to the bit.

    The first pass with some connections is an ordinary one, the second is captured, and all others are replayed; new
    connections or a new pool begin anew. A pass whose gradients somebody watches is always an ordinary one. A graph
    keeps the memory of its pass, so there is none where the GPU has no room for that.
    """

    def __init__(self, compute: Pass, model: CharLM) -> None:
        self.compute = compute
        self._weights = list(model.sparse_weights().values())
        self._parameters = list(model.parameters())
        self._stream = torch.cuda.Stream(self._parameters[0].device)
        self._seen: list[Any] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._is_captured = False
        self._arguments: list[Tensor] = []
        self._results: list[Tensor] = []
        self._gradients: list[Tensor | None] = []

    def __call__(self, inputs_TB: Tensor, targets_TB: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        arguments = (inputs_TB, targets_TB, state)
        if any(weight.dense_gradient is not None or weight.marginals is not None for weight in self._weights):
            return self.compute(*arguments)
        if not self._has_seen_this():
            self._is_captured = False
            return self.compute(*arguments)
        if not self._is_captured:
            accumulates = any(parameter.grad is not None for parameter in self._parameters)
            if accumulates or not self._has_room():
                return self.compute(*arguments)
            self._graph, self._is_captured = self._capture(arguments), True
        for place, argument in zip(self._arguments, arguments, strict=True):
            place.copy_(argument)
        assert self._graph is not None
        self._graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            if gradient is not None and parameter.grad is not None:
                parameter.grad += gradient
            elif gradient is not None:  # a copy: the next replay overwrites it
                parameter.grad = gradient.clone()
        after, loss, nats = self._results
        return after.clone(), loss, nats

    def _has_seen_this(self) -> bool:
        """Return whether the last pass read and wrote the same memory, and remember what this one does."""
        known = self._seen
        self._seen = [each for weight in self._weights for each in (weight.topology, weight.pool)]
        self._seen += [parameter.data_ptr() for parameter in self._parameters]
        return len(known) == len(self._seen) and all(
            a == b if isinstance(b, int) else a is b for a, b in zip(known, self._seen, strict=True)
        )

    def _has_room(self) -> bool:
        """Return whether all that passes and evaluations have needed so far is free once more."""
        needed = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
        free, _ = torch.cuda.mem_get_info()
        return free > needed

    def _capture(self, arguments: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph:
        self._arguments = [argument.clone() for argument in arguments]
        self._results, self._gradients = [], []  # the new graph takes their memory, which the old one keeps until then
        memory = self._graph.pool() if self._graph else None
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream), _no_garbage_collected():
            graph.capture_begin(pool=memory)
            try:
                self._results = [result.detach() for result in self.compute(*self._arguments)]
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        self._gradients = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None  # nothing has been computed yet
        return graph


@contextmanager
def _no_garbage_collected() -> Iterator[None]:
    """Keep what is unreachable, such as graphs of an earlier training: freeing one may break the capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
