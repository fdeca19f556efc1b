"""What a training step minimises: the cross-entropy of the next symbol, alone or with a teacher's predictions.

Shape suffixes: T time, B batch (lanes), V vocabulary, N = T * B positions; L, S, H as in the language model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rnnsparse.errors import UserError
from rnnsparse.nn.cross_entropy import at_least_fp32, cross_entropy
from rnnsparse.nn.language_model import CharLM

EXACT_NUMBERS = 1 << 20  # that are in memory in float64 at once


class Teacher:
    """A trained model that reads the same lanes as the one it teaches, with a recurrent state of its own.

    `sha256` tells its weights from those of any other.
    """

    def __init__(self, model: CharLM, sha256: str, lanes: int) -> None:
        self.model = model.eval()
        self.state_LSBH = model.initial_state(lanes)
        self._sha256 = sha256

    @torch.no_grad()
    def __call__(self, inputs_TB: Tensor) -> Tensor:
        """Return its logits [T, B, V] for the batch after the last one."""
        logits_TBV: Tensor
        logits_TBV, self.state_LSBH = self.model(inputs_TB, self.state_LSBH)
        return logits_TBV

    def state_dict(self) -> dict[str, Any]:
        return {"recurrent_state": self.state_LSBH, "sha256": self._sha256}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["sha256"] != self._sha256:
            raise UserError(
                "training.teacher: this is not the model that taught the run so far; bring that one back, or start a "
                "new run"
            )
        self.state_LSBH = state["recurrent_state"].to(self.state_LSBH)


def training_loss(
    logits_TBV: Tensor,
    targets_TB: Tensor,
    teacher_TBV: Tensor | None = None,
    *,
    weight: float = 0.0,
    temperature: float = 1.0,
    exact: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the loss, and the cross-entropy in it, both means over the positions in nats per symbol.

    With a teacher's logits the loss is a T^2 KL(teacher_T || model_T) + (1 - a) CE, a being the `weight` and T the
    `temperature` that divides the logits of both (Hinton et al. 2015, section 2; Ma et al. 2021). The gradient is
    computed in the precision of the logits, single at least.

    Args:
        exact: whether the value of the divergence, which is for people, is computed in float64, at twice the cost.
    """
    nats = cross_entropy(logits_TBV, targets_TB)
    if teacher_TBV is None:
        return nats, nats
    logits_NV = at_least_fp32(logits_TBV.flatten(0, 1))
    teacher_NV = at_least_fp32(teacher_TBV.flatten(0, 1))
    log_p_NV = F.log_softmax(teacher_NV / temperature, dim=-1)
    log_q_NV = F.log_softmax(logits_NV / temperature, dim=-1)
    # "batchmean" divides the sum by the positions; "mean" would divide by the vocabulary too.
    divergence = F.kl_div(log_q_NV, log_p_NV, reduction="batchmean", log_target=True)
    loss = weight * temperature**2 * divergence + (1 - weight) * nats
    if exact:
        divergence = exact_divergence(teacher_NV, logits_NV, temperature)
        value = weight * temperature**2 * divergence + (1 - weight) * nats.detach()
        loss = _WithValue.apply(loss, value.to(loss))
    return loss, nats


@torch.no_grad()
def exact_divergence(teacher_NV: Tensor, logits_NV: Tensor, temperature: float) -> Tensor:
    """Return the mean over the positions of KL(teacher_T || model_T), in float64.

    Its terms are of size 1/T and cancel to a sum of size 1/T^2, of which single precision leaves no digit at high T.
    """
    total = logits_NV.new_zeros((), dtype=torch.float64)
    rows = max(1, EXACT_NUMBERS // logits_NV.shape[1])
    for p_NV, q_NV in zip(teacher_NV.split(rows), logits_NV.split(rows), strict=True):
        log_p_NV = F.log_softmax(p_NV.double() / temperature, dim=-1)
        log_q_NV = F.log_softmax(q_NV.double() / temperature, dim=-1)
        total += F.kl_div(log_q_NV, log_p_NV, reduction="sum", log_target=True)
    return total / logits_NV.shape[0]


class _WithValue(torch.autograd.Function):
    """A number with the gradient of another one, which is the same up to rounding."""

    @staticmethod
    def forward(ctx: Any, differentiable: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def read_later(*numbers: Tensor) -> Callable[[], list[float]]:
    """Begin to copy scalars to the CPU; return a function that waits for them, but for no work given to a GPU since.

    Read after the backward pass has been given to it, a loss costs no time: the GPU is busy while the CPU goes on.
    """
    copies = torch.stack(numbers).detach().to("cpu", non_blocking=True)
    arrived = torch.cuda.current_stream().record_event() if numbers[0].is_cuda else None

    def read() -> list[float]:
        if arrived is not None:
            arrived.synchronize()
        values: list[float] = copies.tolist()
        return values

    return read
