"""Which runs of a sweep are trained together, as one pack in one process."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import islice

from rnnsparse.errors import UserError
from rnnsparse.recipes.sweep import Run, needs
from rnnsparse.settings.data import DataConfig
from rnnsparse.training.pack import pack_key


class Packing:
    """Puts runs of one shape together, at most `size` of them; `vocab_sizes` has the symbols of each text."""

    def __init__(self, runs: Sequence[Run], size: int, vocab_sizes: Mapping[DataConfig, int]) -> None:
        self._size = size
        self._keys = {run.name: _key(run, vocab_sizes) for run in runs} if size > 1 else {}

    def together(self, first: Run, others: Iterable[Run]) -> list[Run]:
        """Return `first` and those of `others` that join it, in their order."""
        key = self._keys.get(first.name)
        alike = (run for run in others if self._keys[run.name] == key) if key is not None else ()
        return [first, *islice(alike, self._size - 1)]

    def all(self, runs: Iterable[Run]) -> list[list[Run]]:
        """Return all packs, those of one run too."""
        packs, left = [], list(runs)
        while left:
            packs.append(self.together(left[0], (run for run in left[1:] if not needs(run, left))))
            left = [run for run in left if run not in packs[-1]]
        return packs


def _key(run: Run, vocab_sizes: Mapping[DataConfig, int]) -> Hashable | None:
    try:
        return pack_key(run.config, vocab_sizes[run.config.data])
    except UserError:
        return None  # no such network with these symbols, which the run tells when it is trained
