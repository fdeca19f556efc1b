"""`export`: write a model for use elsewhere."""

from __future__ import annotations

import argparse

from rnnsparse.export import export_safetensors, export_torch
from rnnsparse.training.build import restore
from rnnsparse.training.device import CPU


def run(arguments: argparse.Namespace) -> int:
    restored = restore(arguments.checkpoint, CPU)
    if arguments.format == "torch":
        export_torch(restored.model, restored.tokenizer, arguments.out)
    else:
        export_safetensors(restored.model, restored.tokenizer.to_json(), arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")
    return 0
