"""RigL in a network that also has layers of PyTorch's: they stay dense, and what is not sparsified is said."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import rnnsparse as rs

STEPS = 150
torch.manual_seed(0)


class Tagger(nn.Module):
    """Tells for each token of a sequence whether it came before."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 16)
        self.convolution = nn.Conv1d(16, 32, 3, padding=1)
        self.rnn = rs.GRU(32, 48, num_layers=2, batch_first=True, dropout=0.1)
        self.norm = nn.LayerNorm(48)
        self.head = rs.Linear(48, 2)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        x = self.convolution(self.embedding(tokens_BT).transpose(1, 2)).transpose(1, 2)
        return self.head(self.norm(self.rnn(x)[0]))


def sequences(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(12, (batch, 16))
    earlier = (tokens[:, :, None] == tokens[:, None, :]).tril(-1)
    return tokens, earlier.any(-1).long()


model = Tagger()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
sparsifier = rs.sparsify(
    model, rs.RigL(interval=20, drop_fraction=0.5), optimizer, sparsity=0.8, steps=STEPS, exclude=["head"]
)
print(sparsifier)
for _ in range(STEPS):
    optimizer.zero_grad()
    for _half in range(2):  # two batches make a step
        tokens, seen = sequences(batch=16)
        sparsifier.backward(cross_entropy(model(tokens).flatten(0, 1), seen.flatten()) / 2)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    sparsifier.step()
model.eval()
tokens, seen = sequences(batch=500)
accuracy = (model(tokens).argmax(-1) == seen).float().mean()
print(f"{sparsifier.connections_moved:,} connections moved; accuracy {accuracy:.3f}")
