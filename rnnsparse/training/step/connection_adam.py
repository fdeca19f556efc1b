"""Adam and AdamW with a step count per connection, so that what is grown later does not start cold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from rnnsparse.training.step.uncompiled import Adam

PER_CONNECTION = ("connection_steps", "exp_avg", "exp_avg_sq")


class ConnectionAdam(Adam):
    """Adam whose bias correction knows the age of each connection (SMET, arXiv 2606.00888).

    Adam divides the moments by what they lack after so many steps. A connection grown late has the moments of a
    beginner; corrected by the run's step count its first step is (1 - beta1) / sqrt(1 - beta2) learning rates long,
    3.2 by default. Here it is corrected by its own count and starts with one learning rate, as at the start of a run.

    Connections that were there at the parameter's first step are updated by torch's fused kernel alone, so they, and
    all while none is new, are bit for bit what torch.optim.Adam makes of them (AdamW with `decoupled_weight_decay`).

    The state of a parameter has `connection_steps` of its shape and type (exact up to 2**24 steps in fp32, far beyond
    where corrections vanish). Whoever grows a connection gives it zeros in all state of that shape.

    Args:
        parameters: one group.
        connection_warmup: steps over which a connection grown later rises linearly to its full step. Like the
            learning rate's warm-up it begins with 1 / (connection_warmup + 1); weight decay is not held back.
        settings: those of torch.optim.Adam.
    """

    def __init__(self, parameters: Iterable[Parameter], *, connection_warmup: int = 0, **settings: Any) -> None:
        super().__init__(parameters, fused=True, **settings)
        # A gradient scaler must leave out overflown steps itself: here is more to leave out than the kernel knows.
        self._step_supports_amp_scaling = False
        self.connection_warmup = connection_warmup

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("closure: gradients come from a backward pass before the step")
        updated = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        grown = [self._grown(parameter) for _, parameter in updated]
        super().step()
        for (group, parameter), (places, values) in zip(updated, grown, strict=True):
            state = self.state[parameter]
            if "connection_steps" not in state:
                state["connection_steps"] = torch.zeros_like(parameter)
            state["connection_steps"] += 1
            if values.numel():
                # Moments are the same at any age; only the step that the kernel made of them is not.
                parameter[places] = self._stepped(values, {key: state[key][places] for key in PER_CONNECTION}, group)

    def _grown(self, parameter: Parameter) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return where the connections are that came after the first step, and a copy of their values."""
        state = self.state.get(parameter)
        if not state:
            return (), parameter.new_empty(0)
        places = (state["connection_steps"] < state["step"]).nonzero(as_tuple=True)
        return places, parameter[places]

    def _stepped(self, values: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
        """Return the values of grown connections after their step, from their part of the state."""
        beta1, beta2 = group["betas"]
        ages = state["connection_steps"].double()  # the differences to 1 would lose most digits in fp32
        step_sizes = group["lr"] * (ages / (self.connection_warmup + 1)).clamp(max=1) / (1 - beta1**ages)
        roots = state["exp_avg_sq"].sqrt() / (1 - beta2**ages).sqrt().to(values.dtype)
        if group["decoupled_weight_decay"]:
            values = values * (1 - group["lr"] * group["weight_decay"])
        stepped: Tensor = values - step_sizes.to(values.dtype) * state["exp_avg"] / (roots + group["eps"])
        return stepped
