"""Sparse non-monotonically triggered averaged SGD."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from rnnsparse.training.step.uncompiled import SGD


class SNTASGD(SGD):
    """Plain SGD that averages each connection over its own life, once validation stops getting better.

    The trigger is that of NT-ASGD (Merity et al. 2018, algorithm 1), the average per connection that of Selfish-RNN
    (Liu et al. 2021): over all steps since the trigger, or since the connection was grown if that was later. Until
    its first such step a connection's average is its value. A dropped connection's average goes with it.

    Training goes on with the iterates. Inside `averages` the parameters are the averages instead, and the iterates
    wait in the state: a `state_dict` from inside belongs to a model saved inside, and one from outside to one saved
    outside. Either way load the model first; `load_state_dict` then gives the parameters the iterates.

    Args:
        parameters: one group.
        lr: learning rate.
        weight_decay: L2, part of the gradient.
        nonmonotone: how many evaluations before the present one the trigger leaves out (n in the paper).
    """

    def __init__(
        self, parameters: Iterable[Parameter], *, lr: float, weight_decay: float = 0.0, nonmonotone: int = 5
    ) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay)
        self.nonmonotone = nonmonotone
        self.evaluations: list[float] = []
        self.averaging = False

    def after_evaluation(self, loss: float) -> None:
        """Start averaging if `loss` is worse than the best of all earlier ones but the last `nonmonotone`."""
        earlier = self.evaluations[: max(0, len(self.evaluations) - self.nonmonotone)]
        self.averaging = self.averaging or loss > min(earlier, default=loss)
        self.evaluations.append(loss)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient, and then its average."""
        loss = super().step(closure)
        for parameter in self._parameters() if self.averaging else []:
            if parameter.grad is not None:
                state = self.state[parameter]
                if not state:
                    state.update(average=torch.zeros_like(parameter), average_steps=torch.zeros_like(parameter))
                state["average_steps"] += 1
                state["average"].lerp_(parameter, 1 / state["average_steps"])
        return loss

    @contextmanager
    def averages(self) -> Iterator[None]:
        """Give the parameters their averages inside a `with`, and the iterates again, bit for bit, after it."""
        for parameter in self._parameters():
            state = self.state.get(parameter)
            if state:
                values = parameter.data
                parameter.data = torch.where(state["average_steps"] > 0, state.pop("average"), values)
                state["iterate"] = values
        try:
            yield
        finally:
            self._return_to_iterates()

    def _return_to_iterates(self) -> None:
        for parameter in self._parameters():
            state = self.state.get(parameter, {})
            if "iterate" in state:
                state["average"], parameter.data = parameter.data, state.pop("iterate")

    def _parameters(self) -> Iterator[Tensor]:
        return (parameter for group in self.param_groups for parameter in group["params"])

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"evaluations": list(self.evaluations), "averaging": self.averaging}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(dict(state_dict))
        self.evaluations, self.averaging = list(state_dict["evaluations"]), state_dict["averaging"]
        self._return_to_iterates()
