"""Prune a trained nn.LSTM: make it sparse with all connections, let most of them go while it learns on, and go back."""

import torch
from torch import nn
from torch.nn.functional import mse_loss

import rnnsparse as rs

torch.manual_seed(0)


class Forecaster(nn.Module):
    """The next value of a series."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(1, 32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, x_BTI: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x_BTI)[0])


def series(batch: int) -> torch.Tensor:
    phases, times = 6.3 * torch.rand(batch, 2, 1), torch.arange(41) / 4
    return (torch.sin(times + phases[:, 0]) + 0.5 * torch.sin(2.7 * times + phases[:, 1])).unsqueeze(-1)


def error(model: nn.Module, batch: int = 32) -> torch.Tensor:
    x = series(batch)
    return mse_loss(model(x[:, :-1]), x[:, 1:])


model = Forecaster()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for _ in range(150):
    optimizer.zero_grad()
    error(model).backward()
    optimizer.step()
print(f"dense: error {error(model, 500).item():.4f}")

model = rs.convert(model)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
pruning = rs.sparsify(model, "prune", optimizer, sparsity=0.9, steps=150, interval=10)
for _ in range(150):
    optimizer.zero_grad()
    pruning.backward(error(model))
    pruning.step()
print(f"with a tenth of the weights: error {error(model, 500).item():.4f}")

dense = rs.to_dense(model)  # nn.LSTM and nn.Linear again, with zeros
print(f"as {type(dense.rnn).__name__} of PyTorch: error {error(dense, 500).item():.4f}")
