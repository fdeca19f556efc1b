"""Write a checkpoint whose values are the mean of those of several, which must have the same connections.

Weights from different times of one training, or from runs that went on from the same one, are often better together
(Izmailov et al. 2018, Averaging weights leads to wider optima). The configuration is that of the last one.

With --fp16 they are rounded to 16 bits in the file, which takes two thirds of its size; one checkpoint will do.

    python scripts/average_checkpoints.py RUN_OR_CHECKPOINT... --out FOLDER [--fp16]
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from rnnsparse.errors import RunFailed, UserError
from rnnsparse.nn.basis import same_basis
from rnnsparse.storage import checkpoint
from rnnsparse.training.build import Restored, restore


def average(found: list[Restored], out: Path, *, halved: bool) -> None:
    """Write the mean to `out`, its values `halved` or not.

    Raises:
        UserError: models, symbols, connections or bases differ, `out` exists, or a value is too large for fp16.
        RunFailed: it cannot be written.
    """
    if out.exists():
        raise UserError(f"--out: {out}: exists; choose another folder")
    last = found[-1]
    for other in found[:-1]:
        ours, theirs = last.model.sparse_weights(), other.model.sparse_weights()
        models = [replace(one.config.model, execution="auto") for one in (last, other)]
        if models[0] != models[1] or other.saved.tokenizer_json != last.saved.tokenizer_json:
            raise UserError(f"{other.folder}: has another model or symbols than {last.folder}; name runs with the same")
        for name, weight in ours.items():
            if not same_basis(weight.basis, theirs[name].basis):
                raise UserError(
                    f"{other.folder}: its {name} is in another basis than that of {last.folder}; name runs in the same"
                )
            same_blocks = weight.block_rows == theirs[name].block_rows
            if not same_blocks or not torch.equal(weight.indices, theirs[name].indices):
                raise UserError(
                    f"{other.folder}: has other connections in {name} than {last.folder}; name runs with the same"
                )
    with torch.no_grad():
        for values in zip(*(one.model.parameters() for one in found), strict=True):
            values[-1].copy_(torch.stack(values).mean(0))
            if halved and not values[-1].half().isfinite().all():
                raise UserError(f"--fp16: {last.folder}: has values beyond 65,504; leave it out")
    checkpoint.save(
        out,
        step=last.step,
        model=last.model,
        tokenizer_json=last.saved.tokenizer_json,
        config_yaml=last.saved.config_yaml,
        training_state=None,
        text=last.saved.trained_text(),
        halved=halved,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--fp16", action="store_true", help="round values and biases to 16 bits")
    arguments = parser.parse_args()
    try:
        found = [restore(path, torch.device("cpu")) for path in arguments.checkpoints]
        average(found, arguments.out, halved=arguments.fp16)
    except (UserError, RunFailed) as error:
        print(f"average_checkpoints: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
