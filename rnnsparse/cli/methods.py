"""`methods`: list the methods with their settings."""

from __future__ import annotations

import argparse
import json

import rnnsparse.sparsity.methods  # noqa: F401  (registers them)
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.settings.setting import settings_of
from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.group import make_groups
from rnnsparse.sparsity.method import METHODS, Method

_TENTH = Budget(make_groups([SparseWeight("w", 10, 10)], "matrix")[0], 10)  # of a matrix, to ask methods about


def run(arguments: argparse.Namespace) -> int:
    for name, method in sorted(METHODS.items()):
        print(name)
        print(f"    {(method.__doc__ or '').splitlines()[0]}" + (f" ({method.paper})" if method.paper else ""))
        print(f"    dense memory: {_dense_memory(method)}")
        for setting in settings_of(method).values():
            shown = setting.default if isinstance(setting.default, str) else json.dumps(setting.default)
            print(f"    {setting.name}: {shown}  # {setting.help}")
    return 0


def _dense_memory(method: type[Method]) -> str:
    """Return what a method needs of the size of whole matrices, with its settings as they are by default."""

    needs = []
    if method.stays_dense:
        needs.append("all connections throughout")
    elif method.recipe:
        needs.append("all connections in the first run")
    elif method().initial_connections(_TENTH) > _TENTH.connections:
        needs.append("up to all connections at first")
    if method.dense_gradient == "at updates":
        needs.append("gradients at updates, in sparse execution some rows at a time")
    elif method.dense_gradient == "always":
        needs.append("gradients and their averages at every step")
    return "; ".join(needs) or "none"
