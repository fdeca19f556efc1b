"""`export`: write a model for use elsewhere."""

from __future__ import annotations

import argparse

from rnnsparse.storage.exports import export
from rnnsparse.training.build import restore
from rnnsparse.training.device import CPU


def run(arguments: argparse.Namespace) -> int:
    restored = restore(arguments.checkpoint, CPU)
    export(arguments.format, restored.model, restored.tokenizer, arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")
    return 0
