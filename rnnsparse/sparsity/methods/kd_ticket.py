"""Lottery tickets that learn from the dense run they were found in."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Lt
from typing_extensions import Doc

from rnnsparse.sparsity.method import register
from rnnsparse.sparsity.methods.lottery import Lottery


@register("kd_ticket")
@dataclass(kw_only=True)
class KDTicket(Lottery):
    """Find a lottery ticket, and train it with the trained dense model as its teacher."""

    paper = "Ma et al. 2021"
    provides = frozenset({"training.teacher"})
    rewind: Annotated[
        float,
        Ge(0),
        Lt(1),
        Doc("share of training after which a round takes the dense run up again; 0: initial values"),
    ] = 0.0

    def training_flops(self, sparse: float, dense: float, steps: int) -> float:
        return (3 * sparse + dense) * (steps - self.rewind_step(steps)) / steps
