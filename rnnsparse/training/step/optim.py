"""The optimizer, its learning rate at any step, and gradient clipping.

Nothing here remembers a step: `learning_rate` is a function of it, so a resumed run needs no scheduler state.
A parameter's data and its per-element optimizer state may be swapped for tensors of another length between
two steps (pruning, redistribution): PyTorch's optimizers read both anew at every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from rnnsparse.settings.training import TrainingConfig
from rnnsparse.training.step.connection_adam import ConnectionAdam
from rnnsparse.training.step.sntasgd import SNTASGD
from rnnsparse.training.step.uncompiled import SGD, Adam


def build_optimizer(config: TrainingConfig, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
    """Return the configured optimizer over `parameters`, all in one group.

    `adam` (Kingma & Ba 2015) adds weight_decay * parameter to the gradient, `adamw` shrinks the parameter
    itself (Loshchilov & Hutter 2019, algorithm 2), `sgd` is Polyak momentum with L2, `sntasgd` averages plain SGD
    (sntasgd.py). An update reads one element at a time, without atomics or reductions, hence is bit-identical from
    run to run.
    """
    if config.optimizer == "sgd":
        # Not fused: that kernel leaves the velocity uninitialised if the very first step overflows in fp16.
        return SGD(parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay)
    if config.optimizer == "sntasgd":
        return SNTASGD(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay, nonmonotone=config.nonmonotone
        )
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "eps": config.epsilon,
        "weight_decay": config.weight_decay,
        "decoupled_weight_decay": config.optimizer == "adamw",
    }
    if config.connection_steps:
        return ConnectionAdam(parameters, connection_warmup=config.connection_warmup, **settings)
    # Fused: one pass over memory; the same on CPU and CUDA, so that checkpoints can change device.
    return Adam(parameters, fused=True, **settings)


def averaged(optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
    """Return a context in which parameters are what to evaluate and save: their averages, if the optimizer has any."""
    return optimizer.averages() if isinstance(optimizer, SNTASGD) else nullcontext()


def after_evaluation(optimizer: torch.optim.Optimizer, loss: float) -> None:
    """Tell an optimizer that averages the validation loss of an evaluation while training."""
    if isinstance(optimizer, SNTASGD):
        optimizer.after_evaluation(loss)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0.

    Linear warm-up that reaches the peak with step `warmup`, then constant or half a cosine down to
    final_learning_rate * learning_rate at step `steps`, where it stays (Loshchilov & Hutter 2017, section 3).
    """
    if step < config.warmup:
        return config.learning_rate * (step + 1) / (config.warmup + 1)
    if config.lr_schedule == "constant":
        return config.learning_rate
    progress = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    final = config.final_learning_rate
    return config.learning_rate * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))


def with_settings(state: dict[str, Any], was: TrainingConfig, config: TrainingConfig) -> dict[str, Any]:
    """Return a training state whose optimizer has the weight decay of `config` in the place of the one that it had."""
    if was.weight_decay == config.weight_decay:
        return state
    groups = [
        {**group, "weight_decay": config.weight_decay} if group["weight_decay"] == was.weight_decay else group
        for group in state["optimizer"]["param_groups"]
    ]
    return state | {"optimizer": state["optimizer"] | {"param_groups": groups}}


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every parameter group the learning rate `value`."""
    for group in optimizer.param_groups:
        group["lr"] = value


def clip_gradients(parameters: Iterable[Parameter], max_norm: float | None) -> Tensor:
    """Scale all gradients together so that their joint 2-norm is at most `max_norm`; None leaves them alone.

    Returns the norm before clipping, a scalar on the gradients' device. Parameters without a gradient are
    passed over. A norm that is not finite is returned as it is and leaves the gradients alone: check it.
    """
    parameters = list(parameters)
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if max_norm is not None:
        # A norm of zero clips nothing; to ask whether it is finite, a GPU would have to be waited for.
        clip_grads_with_norm_(parameters, max_norm, norm.nan_to_num(nan=0.0, posinf=0.0))
    return norm
