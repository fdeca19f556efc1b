"""PyTorch's dense layers as sparse ones with all connections, and back: the same outputs from the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from rnnsparse.cells.cell import CELLS
from rnnsparse.nn.layers import Embedding, Linear
from rnnsparse.nn.recurrent import STACKS, Recurrent
from rnnsparse.nn.weight import SparseWeight

M = TypeVar("M", bound=nn.Module)
DENSE = (nn.Linear, nn.Embedding, *(cell.module for cell in CELLS.values()))


def convert(module: nn.Module) -> Any:
    """Put sparse layers with all connections in the place of every nn.LSTM, nn.GRU, nn.RNN, nn.Linear and nn.Embedding.

    The module computes what it did, and is ready for pruning, tickets and SNIP from its trained weights. It is changed
    in place and returned; one that is such a layer itself is replaced by the one returned. Make the optimizer
    afterwards: parameters are new ones. Subclasses of these layers (parametrized ones among them) stay as
    they are.

    Raises:
        ValueError: a layer uses what sparse layers have not (bidirectional, proj_size, padding_idx, ...), has hooks,
            or shares its weights with another one; nothing has changed then.
    """
    return _replaced(module, _sparse_of, lambda m: type(m) in DENSE, _require_convertible)


def to_dense(module: nn.Module) -> Any:
    """Undo `convert`: put PyTorch's layers in the place of sparse ones, with zeros where there are no connections.

    The module is changed in place and returned; one that is a sparse layer itself is replaced by the one returned.

    Raises:
        ValueError: recurrent layers have layer_norm or skip_connections, which PyTorch's have not; nothing has changed
            then.
    """
    return _replaced(module, _dense_of, lambda m: isinstance(m, Linear | Embedding | Recurrent), _require_plain)


def _replaced(
    module: nn.Module,
    make: Callable[[nn.Module], nn.Module],
    is_one: Callable[[nn.Module], bool],
    check: Callable[[nn.Module], None] = lambda module: None,
) -> nn.Module:
    check(module)
    made: dict[int, nn.Module] = {}  # a layer in several places stays one layer
    if is_one(module):
        return make(module)
    for parent in list(module.modules()):
        if is_one(parent):
            continue
        for name, child in list(parent._modules.items()):  # with those that are there twice
            if child is not None and is_one(child):
                if id(child) not in made:
                    made[id(child)] = make(child)
                setattr(parent, name, made[id(child)])
    return module


# ---- what can be converted


def _require_convertible(module: nn.Module) -> None:
    owners: dict[int, str] = {}
    for name, layer in module.named_modules():
        called = name or type(layer).__name__
        if isinstance(layer, nn.TransformerEncoderLayer):
            raise ValueError(f"{called}: reads the weights of its layers itself; convert the other parts one by one")
        if type(layer) in DENSE:
            _require_supported(called, layer)
        for parameter in layer.parameters(recurse=False):
            first = owners.setdefault(id(parameter), called)
            if first != called and (type(layer) in DENSE or type(module.get_submodule(first)) in DENSE):
                raise ValueError(
                    f"{first} and {called} share a weight, which sparse layers cannot; give each its own, such as "
                    f"{called}.weight = nn.Parameter({called}.weight.detach().clone())"
                )


def _require_supported(called: str, layer: nn.Module) -> None:
    if any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)):
        raise ValueError(f"{called}: has hooks, which would be lost; remove them first")
    refused: dict[str, Any] = {}
    if isinstance(layer, nn.RNNBase):
        refused = {"bidirectional": False, "proj_size": 0, "nonlinearity": "tanh"}
    elif isinstance(layer, nn.Embedding):
        refused = {"padding_idx": None, "max_norm": None, "scale_grad_by_freq": False, "sparse": False}
    for name, supported in refused.items():
        if (value := getattr(layer, name, supported)) != supported:
            raise ValueError(f"{called}: {name}={value!r} is not supported by sparse layers; convert the others alone")


def _require_plain(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, Recurrent) and (layer.skips or any(each.norm for each in layer.layers)):
            raise ValueError(
                f"{name or type(layer).__name__}: torch.nn.{layer.cell.module.__name__} has no layer_norm or "
                "skip_connections; make one of each layer, and what is between them by hand"
            )


# ---- each layer


def _fill(weight: SparseWeight, matrix_RC: Tensor) -> None:
    weight.express(matrix_RC.detach(), None)
    weight.values.requires_grad_(matrix_RC.requires_grad)


def _copy(target: Tensor | None, source: Tensor | None) -> None:
    if target is not None and source is not None:
        target.data.copy_(source.detach())
        target.requires_grad_(source.requires_grad)


def _sparse_of(dense: nn.Module) -> nn.Module:
    like = next(dense.parameters())
    place: dict[str, Any] = {"sparsity": None, "device": like.device, "dtype": like.dtype}
    sparse: nn.Module
    if isinstance(dense, nn.Linear):
        sparse = Linear(dense.in_features, dense.out_features, dense.bias is not None, **place)
        _fill(sparse, dense.weight)
        _copy(sparse.bias, dense.bias)
    elif isinstance(dense, nn.Embedding):
        sparse = Embedding(dense.num_embeddings, dense.embedding_dim, **place)
        _fill(sparse, dense.weight)
    else:
        assert isinstance(dense, nn.RNNBase)
        cell = next(cell for cell in CELLS.values() if cell.module is type(dense))
        sparse = STACKS[cell.name](
            dense.input_size, dense.hidden_size, dense.num_layers, dense.bias, dense.batch_first, dense.dropout, **place
        )
        for i, layer in enumerate(sparse.layers):
            _fill(layer.input, getattr(dense, f"weight_ih_l{i}"))
            _fill(layer.recurrent, getattr(dense, f"weight_hh_l{i}"))
            _copy(layer.bias_ih, getattr(dense, f"bias_ih_l{i}", None))
            _copy(layer.bias_hh, getattr(dense, f"bias_hh_l{i}", None))
    return sparse.train(dense.training)


def _dense_of(sparse: nn.Module) -> nn.Module:
    like = next(sparse.parameters())
    place: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    dense: nn.Module
    if isinstance(sparse, Linear):
        dense = nn.Linear(sparse.in_features, sparse.out_features, sparse.bias is not None, **place)
        _copy(dense.weight, sparse.to_dense().requires_grad_(sparse.values.requires_grad))
        _copy(dense.bias, sparse.bias)
    elif isinstance(sparse, Embedding):
        dense = nn.Embedding(sparse.num_embeddings, sparse.embedding_dim, **place)
        _copy(dense.weight, sparse.to_dense().requires_grad_(sparse.values.requires_grad))
    else:
        assert isinstance(sparse, Recurrent)
        make: Callable[..., nn.Module] = sparse.cell.module
        dense = make(
            sparse.input_size, sparse.hidden_size, sparse.num_layers, bias=sparse.bias, batch_first=sparse.batch_first,
            dropout=sparse.dropout, **place,
        )  # fmt: skip
        for i, layer in enumerate(sparse.layers):
            for name, weight in (("weight_ih", layer.input), ("weight_hh", layer.recurrent)):
                matrix_RC = weight.to_dense().requires_grad_(weight.values.requires_grad)
                _copy(getattr(dense, f"{name}_l{i}"), matrix_RC)
            _copy(getattr(dense, f"bias_ih_l{i}", None), layer.bias_ih)
            _copy(getattr(dense, f"bias_hh_l{i}", None), layer.bias_hh)
    return dense.train(sparse.training)
