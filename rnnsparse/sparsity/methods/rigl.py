"""The rigged lottery."""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor
from typing_extensions import Doc

from rnnsparse.sparsity.drop_grow import DropGrowByGradient
from rnnsparse.sparsity.method import register


@register("rigl")
@dataclass(kw_only=True)
class RigL(DropGrowByGradient):
    """Grow where the dense gradient of one batch is largest; that batch makes no optimizer step."""

    paper = "Evci et al. 2020, algorithm 1"
    dense_gradient = "at updates"
    skip_optimizer_step: Annotated[bool, Doc("an update replaces its batch's optimizer step")] = True

    def grow_score(self, gradient_RC: Tensor) -> Tensor:
        return gradient_RC.abs()

    def training_flops(self, sparse: float, dense: float, steps: int) -> float:
        return (3 * sparse * self.interval + 2 * sparse + dense) / (self.interval + 1)
