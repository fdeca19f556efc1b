"""Several ranks: processes, on one machine or many, that torchrun starts to train one model on different lanes.

Every rank has the whole model and a part of the lanes. After the backward passes gradients are averaged in one flat
bucket, by hand: a wrapper such as DDP fixes shapes at the start, and here they may change. All that follows is
computed by every rank from the same numbers, so values and topologies stay the same; only the first rank writes.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rnnsparse.errors import RunFailed, UserError
from rnnsparse.nn.language_model import CharLM
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.randomness import generator_for
from rnnsparse.sparsity.sparsifier import average_gradients

# Ranks wait for one that writes a checkpoint or a sample, or validates alone; a lost one is noticed at once.
TIMEOUT = timedelta(hours=2)


class Ranks:
    """This process among all that train one model; by default it is the only one.

    Methods are called by all ranks in the same order, and give all the same. They raise RunFailed if a rank is lost.

    Attributes:
        communicated: bytes of gradients and growth that each rank has given to be averaged, over the whole run.
        steps: how often gradients were averaged, over the whole run.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.communicated = self.steps = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.world_size > 1

    # ---- numbers

    def average(self, tensor: Tensor) -> None:
        """Average a tensor of gradients over all ranks, in place."""
        if self.several:
            contiguous = tensor.contiguous()
            with _connected():
                dist.all_reduce(contiguous)
            torch.div(contiguous, self.world_size, out=tensor)
            self.communicated += tensor.nbytes

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Average all gradients in one bucket; afterwards they are views of it."""
        if not self.several:
            return
        average_gradients(parameters, self.average)
        self.steps += 1

    def total(self, *numbers: float) -> list[float]:
        """Return the sum over all ranks of each number."""
        if not self.several:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64)
        with _connected():
            dist.all_reduce(sums)
        result: list[float] = sums.tolist()
        return result

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true on any rank."""
        return self.total(flag) != [0]

    def wait(self) -> None:
        """Return when every rank has come here."""
        self.any(False)

    def gather(self, own: Any) -> list[Any]:
        """Return what each rank has, plain data and tensors on the CPU, in order of rank."""
        everyones = [own] * self.world_size
        if self.several:
            with _connected():
                dist.all_gather_object(everyones, own)
        return everyones

    def first(self, own: Any) -> Any:
        """Return what the first rank has."""
        return self.gather(own)[0]

    def seed_dropout(self, seed: int, step: int) -> None:
        """Let each rank drop other units, the same ones whenever this step is made by so many ranks."""
        if self.several:
            torch.manual_seed(generator_for(seed, "dropout", step, self.rank).initial_seed())

    # ---- topologies

    def require_same_topology(self, model: CharLM) -> None:
        """Compare a hash of the topology of each weight.

        Raises:
            RunFailed: ranks differ.
        """
        if not self.several:
            return
        first, *others = self.gather({name: _topology_hash(w) for name, w in model.sparse_weights().items()})
        for rank, other in enumerate(others, start=1):
            for name in first:
                if first[name] != other[name]:
                    raise RunFailed(
                        f"{name}: ranks 0 and {rank} have different topologies, so their machines compute differently; "
                        "train again with --resume on machines of one kind with the same versions"
                    )

    # ---- checkpoints

    def gather_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the training state of all ranks, with which any number of ranks can go on.

        In recurrent states [L, S, B, H] are all lanes, and each total of a pool has one row per rank.
        """
        state = state | {"communication": (self.communicated, self.steps)}
        if self.several:
            state = _with_lanes(state, lambda own: torch.cat(self.gather(own.cpu()), dim=2))
            state = _with_totals(state, lambda own: torch.stack(self.gather(own.cpu())))
        return state

    def own_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return what concerns this rank of a training state of all, which may have been of another number."""
        self.communicated, self.steps = state.get("communication", (0, 0))

        def own_total(total: Tensor) -> Tensor:
            rows: Tensor = torch.atleast_2d(total)
            # Totals are averaged in the end, so for other ranks the mean stands for what each of these had.
            return rows[self.rank] if len(rows) == self.world_size else rows.mean(0)

        state = _with_lanes(state, lambda all_: all_.chunk(self.world_size, dim=2)[self.rank].clone())
        return _with_totals(state, own_total)

    # ---- reports

    def line(self, model: CharLM) -> str:
        """Return for the banner how many train, and what they send at every step."""
        if not self.several:
            return "1"
        sent, dense = self.bytes_per_step(model)
        return (
            f"{self.world_size}; each gives {sent / 1e6:,.2f} MB of gradients to be averaged at every step, "
            f"{sent / dense:.4f} of dense data parallelism, growth not counted"
        )

    def bytes_per_step(self, model: CharLM) -> tuple[int, int]:
        """Return the bytes of all gradients of a model, and of those of a dense one of its shape."""
        numbers = sum(parameter.numel() for parameter in model.parameters())
        absent = sum(weight.positions - weight.connections for weight in model.sparse_weights().values())
        size = model.embedding.values.element_size()
        return numbers * size, (numbers + absent) * size

    def report(self, model: CharLM) -> dict[str, Any]:
        """Return for the summary what each rank gave to be averaged, growth included."""
        per_step = self.communicated / self.steps if self.steps else 0.0
        return {
            "ranks": self.world_size,
            "communicated_bytes_per_step": per_step,
            "communicated_vs_dense": per_step / self.bytes_per_step(model)[1],
        }


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Join the ranks that torchrun has started, if it has started this process, until the end of the `with`.

    If ranks fail, for the same reason or because one is lost, the first to fail raises its error; the others exit with
    the same code and without a word.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield Ranks()
        return
    # The default arguments of this module, which optimizers import, are the group that exists when it is imported. They
    # must be none: ours would outlive its end below, and its threads, ending with the process, now and then abort it.
    import_module("torch.distributed.nn")
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    store, rank, world_size = next(rendezvous("env://", timeout=TIMEOUT))
    # What ranks told each other before a restart must not be taken for news.
    store = PrefixStore(f"attempt_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_cuda else "gloo", store=store, rank=rank, world_size=world_size, timeout=TIMEOUT
    )
    try:
        yield Ranks(rank, world_size)
    except (UserError, RunFailed, OSError) as error:
        code = 2 if isinstance(error, UserError) else 1
        told = f"{rank} {code}"
        with suppress(RuntimeError):  # whoever kept the store may be lost too
            told = store.compare_set("failed", "", told).decode()
        teller, code = map(int, told.split())
        if teller != rank:
            raise SystemExit(code) from error
        raise
    # Not after a failure: it would wait for ranks that are lost.
    dist.destroy_process_group()


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RunFailed(
            f"another rank has ended ({str(error).splitlines()[0]}); torchrun tells which and how; train again with "
            "--resume, or let torchrun do so by its option --max-restarts"
        ) from error


def _with_lanes(state: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Return a training state with other recurrent states, that of a teacher too."""
    state = state | {"recurrent_state": change(state["recurrent_state"])}
    if state.get("teacher"):
        taught = change(state["teacher"]["recurrent_state"])
        state["teacher"] = state["teacher"] | {"recurrent_state": taught}
    return state


def _with_totals(state: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Return a training state with other totals of pools."""
    sparsifier = state["sparsifier"]
    probes = {name: (positions, change(total)) for name, (positions, total) in sparsifier["probes"].items()}
    return state | {"sparsifier": sparsifier | {"probes": probes}}


def _topology_hash(weight: SparseWeight) -> int:
    """Return a number that depends on every position; it wraps around, on every device alike."""
    factors = torch.arange(1, 2 * len(weight.indices), 2, device=weight.indices.device)
    return int((weight.indices * factors).sum())


def torchrun() -> str | None:
    """Return a name of the torchrun process that has started this one; it stays the same when torchrun restarts it."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if run is None else f"{run} on {socket.gethostname()}, process {os.getppid()}"
