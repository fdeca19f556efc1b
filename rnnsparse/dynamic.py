"""Dynamic evaluation: a network that learns from each segment of a text after it has been scored on it.

Krause et al. 2018, "Dynamic evaluation of neural sequence models", section 4: a step along the gradient of every
segment, scaled for each parameter by the root mean square of its gradients. The paper takes these from the training
text; here they are of the segments read so far, so that a checkpoint and a text are all that is needed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from rnnsparse.nn.language_model import CharLM

EPSILON = 1e-4  # keeps small what has hardly had a gradient


@dataclass(frozen=True, kw_only=True)
class Dynamic:
    """How a network adapts while it is evaluated.

    Attributes:
        rate: how far a step moves a parameter whose gradient has its usual size; 0 leaves all as it is.
        segment: symbols per lane between two steps.
        lanes: stretches of the text that are read side by side, one network learning from all; 1 is the paper's.
    """

    rate: float = 5e-4
    segment: int = 20
    lanes: int = 1


class Adapting:
    """A copy of a model whose values and biases learn, its connections and the model itself staying as they are.

    Attributes:
        model: the copy.
    """

    def __init__(self, model: CharLM, rate: float) -> None:
        self.model = copy.deepcopy(model).eval()
        for layer in self.model.recurrent_layers:
            layer.train()  # cuDNN gives gradients only then; dropout, which is between layers, is still left out
        self._rate, self._steps = rate, 0
        self._parameters = [p for p in self.model.parameters() if p.numel()]
        self._mean_squares = [torch.zeros_like(p) for p in self._parameters]

    def learn(self, loss: Tensor) -> None:
        """Take one step down the gradient of a segment's mean loss."""
        gradients = torch.autograd.grad(loss, self._parameters)
        self._steps += 1
        with torch.no_grad():
            for parameter, gradient, mean in zip(self._parameters, gradients, self._mean_squares, strict=True):
                mean.add_(gradient.square().sub_(mean), alpha=1 / self._steps)
                parameter.addcdiv_(gradient, mean.sqrt().add_(EPSILON), value=-self._rate)
