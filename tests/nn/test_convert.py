"""PyTorch's layers become sparse ones with all connections that compute the same, and go back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnnsparse as rs


class Tagger(nn.Module):
    """Every layer that can be converted, one in two places, and one that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.rnns = nn.ModuleList([nn.LSTM(6, 5, 2, batch_first=True), nn.GRU(5, 4, bias=False), nn.RNN(4, 4)])
        self.head = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.again = self.head[0]
        self.out = nn.Linear(4, 3, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.embedding(tokens))
        for rnn in self.rnns:
            x = rnn(x)[0]
        y: Tensor = self.out(self.again(self.head(x)))
        return y


TOKENS = torch.tensor([[1, 2, 3, 4], [10, 9, 8, 0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_converted_model_computes_what_it_did_and_goes_back(dtype: torch.dtype) -> None:
    dense = Tagger().to(dtype).eval()
    expected = dense(TOKENS)
    sparse = rs.convert(copy.deepcopy(dense))
    assert [type(m) for m in (sparse.embedding, *sparse.rnns, sparse.head[0], sparse.out)] == [
        rs.Embedding, rs.LSTM, rs.GRU, rs.RNN, rs.Linear, rs.Linear,
    ]  # fmt: skip
    assert sparse.again is sparse.head[0]
    assert type(sparse.norm) is nn.LayerNorm
    assert not any(module.training for module in sparse.modules())
    assert all(m.is_full for m in sparse.modules() if isinstance(m, rs.SparseWeight))
    torch.testing.assert_close(sparse(TOKENS), expected)
    back = rs.to_dense(sparse)
    assert torch.equal(back(TOKENS), expected)
    assert back.state_dict().keys() == dense.state_dict().keys()
    assert all(torch.equal(value, dense.state_dict()[name]) for name, value in back.state_dict().items())


def test_a_layer_by_itself_is_replaced_by_the_one_returned() -> None:
    dense = nn.GRU(3, 4)
    sparse = rs.convert(dense)
    assert type(sparse) is rs.GRU
    assert type(rs.to_dense(sparse)) is nn.GRU


def test_a_layer_that_is_there_twice_stays_one_layer() -> None:
    layer = nn.Linear(4, 4)
    sparse = rs.convert(nn.Sequential(layer, nn.ReLU(), layer))
    assert type(sparse[0]) is rs.Linear
    assert sparse[2] is sparse[0]
    back = rs.to_dense(sparse)
    assert type(back[0]) is nn.Linear
    assert back[2] is back[0]


@pytest.mark.parametrize("setting", ["layer_norm", "skip_connections"])
def test_what_pytorchs_layers_have_not_is_not_made_one_of_them(setting: str) -> None:
    model = nn.Sequential(rs.Linear(3, 3), rs.LSTM(3, 4, 2, **{setting: True}))
    with pytest.raises(ValueError, match=r"^1: torch\.nn\.LSTM has no layer_norm or skip_connections; make one of"):
        rs.to_dense(model)
    assert [type(m) for m in model] == [rs.Linear, rs.LSTM]


def test_subclasses_stay_as_they_are() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    model = rs.convert(nn.Sequential(nn.Linear(2, 3), normed))
    assert type(model[0]) is rs.Linear
    assert model[1] is normed


def test_frozen_parameters_stay_frozen() -> None:
    dense = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    dense[0].weight.requires_grad_(False)
    sparse = rs.convert(dense)
    assert [layer.values.requires_grad for layer in sparse] == [False, True]
    assert [layer.weight.requires_grad for layer in rs.to_dense(sparse)] == [False, True]


def tied() -> nn.Module:
    model = nn.ModuleDict({"encoder": nn.Embedding(5, 4), "decoder": nn.Linear(4, 5)})
    model["decoder"].weight = model["encoder"].weight
    return model


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4))
    model[0].register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 3, bidirectional=True)), "1: bidirectional=True"),
        (lambda: nn.LSTM(4, 3, proj_size=2), "LSTM: proj_size=2"),
        (lambda: nn.RNN(4, 3, nonlinearity="relu"), "RNN: nonlinearity='relu'"),
        (lambda: nn.Embedding(4, 3, padding_idx=1), "Embedding: padding_idx=1"),
        (tied, "encoder and decoder share a weight"),
        (hooked, "0: has hooks"),
        (lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2)), "0: reads the weights of its layers itself"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name_and_changes_nothing(make: Any, said: str) -> None:
    model = make()
    before = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=said):
        rs.convert(model)
    assert [type(m) for m in model.modules()] == before
