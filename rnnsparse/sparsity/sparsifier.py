"""A method in anybody's training loop: two lines stand for `loss.backward()` and `optimizer.step()`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from rnnsparse.nn.weight import SparseWeight
from rnnsparse.sparsity.allocation import Budget
from rnnsparse.sparsity.method import Method
from rnnsparse.sparsity.updater import Updater


class Sparsifier(Updater):
    """What `rnnsparse.sparsify` returns: topology updates in the steps of a loop of one's own.

        sparsifier.backward(loss)   # loss.backward(); several accumulate
        sparsifier.step()           # optimizer.step()

    What stands between the two, such as clipping, sees the gradients of the connections that exist. Zeroing gradients
    stays with the loop. After `steps` optimizer steps the topology stays as it is, and training may go on. Where
    `torch.distributed` has several ranks, `backward` averages the gradients over them; the model is not wrapped.
    `print` shows the connections of every group, and what has none.

    Attributes:
        steps_taken: optimizer steps so far.
        left_out: the layers with parameters that are not sparsified, by name, and what they are.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        budgets: Sequence[Budget],
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        steps: int,
        scaler: torch.amp.GradScaler | None = None,
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        self._ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        reduce = self._average if self._ranks > 1 else None
        super().__init__(method, budgets, optimizer, seed=seed, total_steps=steps, reduce=reduce)
        self._model = model
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.left_out = dict(left_out or {})
        self.steps_taken = 0
        self._is_armed = False
        self._watch_factors(1)  # before the forward pass; `backward` arms what backward passes need

    @property
    def teacher(self) -> nn.Module | None:
        """In the last round of kd_ticket the trained dense model, for a loss that learns from it; otherwise None."""
        return None

    def rounds(self) -> Iterator[int]:
        """Yield the numbers of the rounds of training that the method takes: one, but for lottery and kd_ticket.

            for number in sparsifier.rounds():
                while sparsifier.steps_taken < sparsifier.total_steps:
                    ...

        These train all connections first, in round 0. Each further round begins without the smallest of them, and
        with model, optimizer (its learning rates too) and scaler as they were after the step to rewind to in round 0,
        which `steps_taken` then is: text, schedulers and random numbers are the loop's own to take back there.

        Raises:
            RuntimeError: a round has not taken all its steps, or too many.
        """
        yield 0

    def backward(self, loss: Tensor, *, synchronise: bool = True) -> None:
        """Add the gradients of a loss, as `loss.backward()` does; with a scaler, of the scaled loss.

        Args:
            synchronise: whether to average gradients over all ranks now; False for all but the last of several losses
                that are accumulated saves communication.
        """
        if not self._is_armed:
            self.before_backward(self.steps_taken + 1)
        # Until it has come to its end: what it began is then forgotten by the next one.
        self._is_armed = False
        (self._scaler.scale(loss) if self._scaler else loss).backward()
        self._is_armed = True
        if synchronise and self._ranks > 1:
            average_gradients(self._model.parameters(), self._average)

    def step(self) -> None:
        """Let gradients change values and topology, as `optimizer.step()` does; with a scaler, also update that.

        Gradients that overflowed because of the scale leave the step out, as the scaler does.

        Raises:
            RuntimeError: there was no `backward`, or without a scaler gradients are not finite; nothing has changed.
        """
        if not self._is_armed:
            raise RuntimeError("step: there are no gradients; call backward(loss) first")
        step, scaler = self.steps_taken + 1, self._scaler
        scale = float(scaler.get_scale()) if scaler else 1.0
        if scaler:
            with suppress(RuntimeError):  # it was done already, so that gradients could be clipped
                scaler.unscale_(self._optimizer)
        gradients = [parameter.grad for parameter in self._model.parameters() if parameter.grad is not None]
        gradients = [grad.coalesce().values() if grad.is_sparse else grad for grad in gradients]
        is_finite = bool(get_total_norm(gradients).isfinite())
        if not is_finite and not scaler:
            self._is_armed = False  # so that the next batch forgets this one
            raise RuntimeError(f"step {step}: the gradients are not finite, so nothing was changed; lower the rate")
        if is_finite and self.after_backward(step, scale):
            scaler.step(self._optimizer) if scaler else self._optimizer.step()
        if is_finite:
            self.after_step(step)
        if step == self.total_steps:
            self.finish()
        if scaler:
            scaler.update()
        self.steps_taken, self._is_armed = step, False
        self._watch_factors(step + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on besides the states of model and optimizer, as plain data and tensors."""
        return super().state_dict() | {"steps_taken": self.steps_taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another one was; load the states of model and optimizer as well."""
        super().load_state_dict(state)
        self.steps_taken = state["steps_taken"]
        self._watch_factors(self.steps_taken + 1)

    def __str__(self) -> str:
        rows = []
        for budget in self.budgets:
            group = budget.group
            density = group.entries / group.matrix_entries
            blocks = f"  in blocks of {group.block_rows} rows" if group.block_rows > 1 else ""
            rows.append(f"{group.name:<32} {group.entries:>12,} of {group.matrix_entries:>13,}  {density:8.4f}{blocks}")
        connections = sum(budget.group.entries for budget in self.budgets if not budget.dense)
        positions = sum(budget.group.matrix_entries for budget in self.budgets if not budget.dense)
        if positions:
            rows.append(f"{'in all':<32} {connections:>12,} of {positions:>13,}  {connections / positions:8.4f}")
        rows += [f"not sparsified: {name} ({what})" for name, what in self.left_out.items()]
        return "\n".join(rows)

    def _average(self, tensor: Tensor) -> None:
        contiguous = tensor.contiguous()
        dist.all_reduce(contiguous)
        torch.div(contiguous, self._ranks, out=tensor)


def average_gradients(parameters: Iterable[Tensor], average: Callable[[Tensor], object]) -> None:
    """Let `average` see all gradients in one flat bucket, in place; afterwards they are views of it."""
    updated = [parameter for parameter in parameters if parameter.grad is not None]
    bucket = torch.cat([parameter.grad.flatten() for parameter in updated if parameter.grad is not None])
    average(bucket)
    for parameter, piece in zip(updated, bucket.split([p.numel() for p in updated]), strict=True):
        parameter.grad = piece.view_as(parameter)


def left_out_of(model: nn.Module, weights: Sequence[SparseWeight]) -> dict[str, str]:
    """Return the modules of a model that have parameters of their own but none of these weights, and what they are."""
    chosen = set(weights)
    own_layers = {id(m) for m in model.modules() if any(w in chosen for w in m.children())} | {id(w) for w in chosen}
    found = {}
    for name, module in model.named_modules():
        count = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if count and id(module) not in own_layers:
            found[name or "the model itself"] = f"{type(module).__name__}, {count:,} parameters"
    return found
