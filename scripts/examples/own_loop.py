"""Sparse from the first step to the last in a loop of your own: an LSTM that labels each step of a random walk."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import rnnsparse as rs

STEPS = 200
torch.manual_seed(0)


class Labeller(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = rs.LSTM(1, 48, batch_first=True)
        self.head = rs.Linear(48, 2)

    def forward(self, x_BTI: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x_BTI)[0])


def walks(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the steps of random walks, and for each moment whether the walk is above zero."""
    steps = torch.randn(batch, 30)
    return steps.unsqueeze(-1), (steps.cumsum(1) > 0).long()


model = Labeller()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
sparsifier = rs.sparsify(model, "rigl", optimizer, sparsity=0.9, steps=STEPS, interval=20)
for _ in range(STEPS):
    x, above = walks(batch=32)
    optimizer.zero_grad()
    sparsifier.backward(cross_entropy(model(x).flatten(0, 1), above.flatten()))
    sparsifier.step()
print(sparsifier)
x, above = walks(batch=500)
print(f"accuracy {(model(x).argmax(-1) == above).float().mean():.3f}")
