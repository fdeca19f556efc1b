"""A training step of masked execution on a GPU that is not there: its tensors have shapes and a device, but no numbers.

PyTorch's FakeTensorMode refuses to mix devices, as CUDA does, and to tell a number, for which a real step would have to
wait. The device is one that PyTorch keeps free for others, as a build for CPUs has no CUDA to pretend.
"""

import itertools

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from rnnsparse.nn.gradients import DenseGradient
from rnnsparse.nn.language_model import CharLM
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.settings.training import TrainingConfig
from rnnsparse.sparsity.allocation import allocate, connect_randomly
from rnnsparse.training.step.loss import training_loss
from rnnsparse.training.step.optim import build_optimizer, clip_gradients

DEVICE = "fakegpu"
VOCABULARY, T, B = 17, 5, 4
# Not a GRU: PyTorch does not know the shapes that its cell for other devices returns.
SHAPES = {
    "one layer": ModelConfig(cell="lstm", embedding_dim=6, hidden_size=8),
    "layers, dropout, readout, ties": ModelConfig(
        cell="lstm", embedding_dim=6, hidden_size=8, num_layers=2, dropout=0.5, readout_dims=(6,), tie_embeddings=True
    ),
}


def sparse_model(shape: ModelConfig) -> CharLM:
    model = CharLM(shape, VOCABULARY)
    connect_randomly(allocate(list(model.sparse_weights().values()), BudgetConfig(sparsity=0.7)), seed=0)
    return model


def move_to_fake_gpu(model: CharLM) -> None:
    for module in model.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = torch.nn.Parameter(torch.empty(parameter.shape, device=DEVICE))
        for name, buffer in module._buffers.items():
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=DEVICE)


def step(model: CharLM, optimizer: torch.optim.Optimizer, tokens_TB: torch.Tensor, teacher: CharLM) -> None:
    logits_TBV, state = model(tokens_TB, model.initial_state(B))
    assert state.dtype == logits_TBV.dtype == (model.compute_dtype or torch.float32)
    taught_TBV = teacher(tokens_TB)[0].detach()
    loss, _ = training_loss(logits_TBV, tokens_TB, taught_TBV, weight=0.5, temperature=2.0)
    loss.backward()
    clip_gradients(model.parameters(), 1.0)
    optimizer.step()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.numel()
        assert (parameter.grad.dtype, parameter.grad.device) == (torch.float32, tokens_TB.device)


def refuses(mistake: object) -> bool:
    try:
        mistake()  # type: ignore[operator]
    except (RuntimeError, DataDependentOutputException):
        return True
    return False


def main() -> None:
    _setup_privateuseone_for_python_backend(DEVICE)
    for shape, precision, grows in itertools.product(SHAPES.values(), (None, torch.bfloat16), (False, True)):
        model, teacher = sparse_model(shape), sparse_model(shape)
        model.compute_dtype = precision
        with FakeTensorMode():
            move_to_fake_gpu(model)
            move_to_fake_gpu(teacher)
            for weight in model.sparse_weights().values() if grows else []:
                weight.dense_gradient = DenseGradient()
                weight.start_pool(torch.empty(3, dtype=torch.int64, device=DEVICE))
            optimizer = build_optimizer(TrainingConfig(optimizer="adamw"), model.parameters())
            tokens_TB = torch.empty((T, B), dtype=torch.int64, device=DEVICE)
            step(model, optimizer, tokens_TB, teacher)
            # What this relies on: both mistakes are noticed.
            assert refuses(lambda tokens=tokens_TB: tokens.sum().item())
            assert refuses(lambda tokens=tokens_TB: tokens + torch.empty((T, B), dtype=torch.int64))


if __name__ == "__main__":
    main()
