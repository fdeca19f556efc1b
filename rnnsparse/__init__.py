"""Sparse character-level recurrent language models, sparse from the first step to the last.

The public names are loaded when they are first used (`__init__.pyi` has their types), so that importing the package
costs nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "rnnsparse.nn.layers": ["Embedding", "Linear"],
    "rnnsparse.nn.recurrent": ["GRU", "LSTM", "RNN"],
    "rnnsparse.nn.language_model": ["CharLM"],
    "rnnsparse.nn.weight": ["SparseWeight"],
    "rnnsparse.nn.convert": ["convert", "to_dense"],
    "rnnsparse.settings.model": ["ModelConfig"],
    "rnnsparse.sparsity.sparsifier": ["Sparsifier"],
    "rnnsparse.sparsity.sparsify": ["sparsify"],
    "rnnsparse.sparsity.method": ["Method"],
    "rnnsparse.sparsity.methods.cht": ["CHT"],
    "rnnsparse.sparsity.methods.dense": ["Dense"],
    "rnnsparse.sparsity.methods.granet": ["GraNet"],
    "rnnsparse.sparsity.methods.gse": ["GSE"],
    "rnnsparse.sparsity.methods.kd_ticket": ["KDTicket"],
    "rnnsparse.sparsity.methods.lottery": ["Lottery"],
    "rnnsparse.sparsity.methods.mest": ["MEST"],
    "rnnsparse.sparsity.methods.prune": ["Prune"],
    "rnnsparse.sparsity.methods.rigl": ["RigL"],
    "rnnsparse.sparsity.methods.scout": ["Scout"],
    "rnnsparse.sparsity.methods.set": ["SET"],
    "rnnsparse.sparsity.methods.snfs": ["SNFS"],
    "rnnsparse.sparsity.methods.snip": ["SNIP"],
    "rnnsparse.sparsity.methods.srigl": ["SRigL"],
    "rnnsparse.sparsity.methods.static": ["Static"],
    "rnnsparse.trained": ["TrainedModel", "load"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted([*_HOME_OF, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'rnnsparse' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
