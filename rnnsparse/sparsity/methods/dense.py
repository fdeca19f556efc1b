"""Training with every connection: the upper yardstick."""

from dataclasses import dataclass

from rnnsparse.sparsity.method import Method, register


@register("dense")
@dataclass(kw_only=True)
class Dense(Method):
    """Keep every connection."""

    stays_dense = True
    mostly_dense = True

    def training_flops(self, sparse: float, dense: float, steps: int) -> float:
        return 3 * dense
