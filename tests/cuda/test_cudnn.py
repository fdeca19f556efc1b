"""Masked execution on a GPU: it is the textbook cell, in the precision asked for, and cuDNN gets what it wants.

That cuDNN warns of weights that are not in one piece would be an error here, as every warning is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rnnsparse.nn import reference
from rnnsparse.nn.gradients import DenseGradient
from rnnsparse.nn.language_model import CharLM
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.settings.training import TrainingConfig
from rnnsparse.sparsity.allocation import allocate, connect_randomly
from rnnsparse.training.device import allow_tf32, choose_device
from rnnsparse.training.step.optim import build_optimizer, clip_gradients
from tests.nn.test_recurrent import CELL_NAMES, Case, assert_equal, case, masked, textbook

pytestmark = pytest.mark.cuda

DEVICE = torch.device("cuda")
CPU = torch.device("cpu")
VOCABULARY, T, B = 40, 9, 8
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def defaults_of_pytorch() -> Iterator[None]:
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False


def on_device(one: Case) -> Case:
    tensors = {name: value.to(DEVICE) for name, value in vars(one).items() if isinstance(value, Tensor)}
    return replace(one, layer=one.layer.to(DEVICE), **tensors)


def language_model(cell: str, device: torch.device, dtype: torch.dtype = torch.float64, **shape: Any) -> CharLM:
    config = ModelConfig(**{"cell": cell, "embedding_dim": 16, "hidden_size": 32, **shape})
    model = CharLM(config, VOCABULARY).to(device, dtype)
    connect_randomly(allocate(list(model.sparse_weights().values()), BudgetConfig(sparsity=0.7)), seed=0)
    model.reset_parameters(seed=0)
    return model


def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (T, B), generator=torch.Generator().manual_seed(0))


def backward(model: CharLM) -> Tensor:
    """Return the logits [T, B, V]; every parameter gets a gradient, and every weight a dense one too."""
    for weight in model.sparse_weights().values():
        weight.dense_gradient = DenseGradient()
    tokens_TB = tokens().to(model.embedding.values.device)
    logits_TBV: Tensor = model(tokens_TB)[0]
    F.cross_entropy(logits_TBV.flatten(0, 1).double(), tokens_TB.flatten()).backward()
    return logits_TBV.detach()


class Seen(TorchDispatchMode):
    """Notes the types of all tensors that recurrent kernels get, by kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.types: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "_cudnn_rnn" or name.startswith("_thnn_fused"):
            tensors = [x for arg in args for x in (arg if isinstance(arg, list | tuple) else [arg])]
            self.types.setdefault(name, set()).update(x.dtype for x in tensors if isinstance(x, Tensor))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("cell", CELL_NAMES)
@pytest.mark.parametrize("density", [0, 0.05, 0.5, 1])
def test_cudnn_is_the_textbook_cell(cell: str, density: float) -> None:
    one = on_device(case(cell, density))
    assert_equal(masked(one), textbook(one), 1e-10)


@pytest.mark.parametrize("cell", CELL_NAMES)
def test_first_values_are_those_of_the_cpu_to_the_bit(cell: str) -> None:
    for dtype in (torch.float32, torch.float64):
        here, there = language_model(cell, DEVICE, dtype), language_model(cell, CPU, dtype)
        for own, other in zip(here.parameters(), there.parameters(), strict=True):
            assert torch.equal(own.cpu(), other)


@pytest.mark.parametrize("cell", CELL_NAMES)
@pytest.mark.parametrize("shape", [{}, {"num_layers": 2, "readout_dims": (16,), "tie_embeddings": True}])
def test_logits_and_gradients_are_those_of_the_cpu(cell: str, shape: dict[str, Any]) -> None:
    here, there = language_model(cell, DEVICE, **shape), language_model(cell, CPU, **shape)
    torch.testing.assert_close(backward(here).cpu(), backward(there), rtol=1e-10, atol=1e-10)
    for own, other in zip(here.parameters(), there.parameters(), strict=True):
        assert own.grad is not None
        torch.testing.assert_close(own.grad.cpu(), other.grad, rtol=1e-9, atol=1e-12)
    for own_weight, other_weight in zip(here.sparse_weights().values(), there.sparse_weights().values(), strict=True):
        assert own_weight.dense_gradient is not None
        assert other_weight.dense_gradient is not None
        own_dense, other_dense = (w.dense_gradient.rows(0, w.rows).cpu() for w in (own_weight, other_weight))
        torch.testing.assert_close(own_dense, other_dense, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cell", CELL_NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("inputs", "hidden"), [(16, 32), (128, 512), (5, 17), (3, 2)])
def test_cudnn_takes_the_weights_where_they_are(cell: str, dtype: torch.dtype, inputs: int, hidden: int) -> None:
    """It warns at forward and copies them, if they do not lie as it expects."""
    model = language_model(cell, DEVICE, torch.float32, embedding_dim=inputs, hidden_size=hidden)
    model.compute_dtype = dtype
    with Seen() as seen:
        backward(model)
    assert seen.types.keys() == {"_cudnn_rnn"}


@pytest.mark.parametrize("cell", CELL_NAMES)
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_the_one_asked_for(cell: str, dtype: torch.dtype) -> None:
    """autocast would run recurrent layers in fp16, whatever is asked."""
    model = language_model(cell, DEVICE, torch.float32)
    exact = copy.deepcopy(model).double()
    model.compute_dtype = dtype
    with Seen() as seen:
        logits_TBV = backward(model)
    # cuDNN has bf16 from 9.13 on, and PyTorch kernels of its own before.
    assert {"_cudnn_rnn"} == seen.types.keys() or torch.backends.cudnn.version() < 91300
    assert set().union(*seen.types.values()) == {dtype}
    assert logits_TBV.dtype == model.initial_state(B).dtype == dtype
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}
    expected = backward(exact)
    error = (logits_TBV.double() - expected).norm() / expected.norm()
    # As exact as the type, and no more exact than that.
    assert torch.finfo(dtype).eps / 30 < error < 10 * torch.finfo(dtype).eps


@pytest.mark.parametrize("cell", CELL_NAMES)
def test_fp32_is_not_rounded_to_tf32(cell: str) -> None:
    allow_tf32(True)
    choose_device("cuda")
    model = language_model(cell, DEVICE, torch.float32, embedding_dim=128, hidden_size=512)
    found, expected = backward(model), backward(copy.deepcopy(model).double())
    assert (found - expected).norm() / expected.norm() < 2e-6


@pytest.mark.parametrize("cell", CELL_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "sntasgd"])
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_step_does_not_wait_for_the_gpu(
    cell: str, dtype: torch.dtype, optimizer: Literal["adam", "sgd", "sntasgd"]
) -> None:
    model = language_model(cell, DEVICE, torch.float32)
    model.compute_dtype = dtype
    steps = build_optimizer(TrainingConfig(optimizer=optimizer), model.parameters())
    tokens_TB = tokens().to(DEVICE)

    def step() -> None:
        F.cross_entropy(model(tokens_TB)[0].flatten(0, 1).float(), tokens_TB.flatten()).backward()
        clip_gradients(model.parameters(), 1.0)
        steps.step()
        steps.zero_grad()

    step()  # libraries start
    try:
        # Inside: it warns, once, that it is a prototype, after it has taken effect.
        torch.cuda.set_sync_debug_mode("error")
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("cell", CELL_NAMES)
def test_one_step_is_the_textbook_step_on_a_gpu(cell: str) -> None:
    one = on_device(case(cell, T=1))
    with torch.no_grad():
        state = one.layer.cell.fused_step(one.x_TBI[0], one.state_SBH, one.layer.dense())
    weights = one.layer.input.to_dense(), one.layer.recurrent.to_dense(), one.layer.bias_ih, one.layer.bias_hh
    torch.testing.assert_close(state, reference.run(cell, one.x_TBI, one.state_SBH, *weights)[1].detach())
