"""Which numbers a run computes with: what `training.precision` stands for."""

from __future__ import annotations

import torch

# Parameters are fp32 but for these, and what is computed has their type but for those.
PARAMETER_TYPES = {"fp64": torch.float64}
COMPUTE_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
NEED_CUDA = {"tf32", *COMPUTE_TYPES}


def allow_tf32(allowed: bool) -> None:
    """Let CUDA's libraries round the factors of fp32 products to TF32, or not, in the whole process."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
