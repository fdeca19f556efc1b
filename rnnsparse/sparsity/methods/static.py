"""A random topology that never changes: the lower yardstick."""

from dataclasses import dataclass

from rnnsparse.sparsity.method import Method, register


@register("static")
@dataclass(kw_only=True)
class Static(Method):
    """Keep the random topology drawn at the start."""

    paper = "Mocanu et al. 2016; baseline of Evci et al. 2020"
