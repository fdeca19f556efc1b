"""The rigged lottery."""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor
from typing_extensions import Doc

from rnnsparse.nn.weight import Tile
from rnnsparse.sparsity.drop_grow import DropGrow
from rnnsparse.sparsity.method import register


@register("rigl")
@dataclass(kw_only=True)
class RigL(DropGrow):
    """Grow where the dense gradient of one batch is largest; that batch makes no optimizer step."""

    paper = "Evci et al. 2020, algorithm 1"
    dense_gradient = "at updates"
    skip_optimizer_step: Annotated[bool, Doc("an update replaces its batch's optimizer step")] = True

    def grow_score(self, tile: Tile) -> Tensor:
        return tile.gradient_RC.abs()

    def training_flops(self, sparse: float, dense: float, steps: int) -> float:
        return (3 * sparse * self.interval + 2 * sparse + dense) / (self.interval + 1)
