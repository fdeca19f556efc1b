"""Sparse evolutionary training."""

from dataclasses import dataclass

from rnnsparse.sparsity.drop_grow import DropGrow
from rnnsparse.sparsity.method import register


@register("set")
@dataclass(kw_only=True)
class SET(DropGrow):
    """Grow at random."""

    paper = "Mocanu et al. 2018"
