"""Where a run computes, and with which numbers: what `training.device` and `training.precision` stand for."""

from __future__ import annotations

import torch

from rnnsparse.errors import UserError
from rnnsparse.settings.training import TrainingConfig

CPU = torch.device("cpu")
NOWHERE = torch.device("meta")  # PyTorch's device for shapes without numbers
# Parameters are fp32 but for these, and what is computed has their type but for those.
PARAMETER_TYPES = {"fp64": torch.float64}
COMPUTE_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
NEED_CUDA = {"tf32", *COMPUTE_TYPES}


def allow_tf32(allowed: bool) -> None:
    """Let CUDA's libraries round the factors of fp32 products to TF32, or not, in the whole process."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def choose_device(wanted: str = "auto") -> torch.device:
    """Return the device called `wanted`; "auto" is the first CUDA device, or the CPU where there is none.

    With CUDA, fp32 means fp32 from now on: by itself PyTorch lets cuDNN's recurrent layers round it to TF32.

    Raises:
        UserError: CUDA is wanted and not there.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device cuda: PyTorch finds none on this machine; use cpu or auto (training.device, or the option --device)"
        )
    if wanted == "cuda":
        allow_tf32(False)
    return torch.device(wanted)


def training_device(config: TrainingConfig) -> torch.device:
    """Return the device that a run trains on.

    Raises:
        UserError: it is not there, or it is no match for the precision.
    """
    device = choose_device(config.device)
    if config.precision in NEED_CUDA and device.type != "cuda":
        raise UserError(
            f"training.precision: {config.precision} needs a CUDA device, this run is on {device.type}; use "
            "training.precision=fp32"
        )
    allow_tf32(config.precision == "tf32")
    return device


def named_device(config: TrainingConfig) -> torch.device:
    """Return the device that a run is to train on, whether this machine has it or not."""
    return choose_device() if config.device == "auto" else torch.device(config.device)
