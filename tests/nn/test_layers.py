"""Layers that stand alone are PyTorch's with the same dense weights, in either execution, wherever they are taken.

Shape suffixes: T time, B batch, H hidden, L layers.
"""

from __future__ import annotations

import copy
import io
import pickle
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnnsparse as rs

F64 = torch.float64
STACKS = {"lstm": (rs.LSTM, nn.LSTM), "gru": (rs.GRU, nn.GRU), "rnn": (rs.RNN, nn.RNN)}
EXECUTIONS = ["masked", "sparse"]
INPUTS, H = 5, 7


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def stack(cell: str, execution: str = "masked", sparsity: float = 0.6, **arguments: Any) -> Any:
    torch.manual_seed(1)
    return STACKS[cell][0](INPUTS, H, sparsity=sparsity, execution=execution, dtype=F64, **arguments)


def gradients(module: nn.Module, outputs: list[Tensor], inputs: list[Tensor]) -> dict[str, Tensor]:
    """Return the gradients of all parameters, and of inputs, for arbitrary ones of the outputs."""
    torch.autograd.backward(outputs, [numbers(*y.shape, seed=9 + i) for i, y in enumerate(outputs)])
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return found | {f"input {i}": x.grad for i, x in enumerate(inputs) if x.grad is not None}


def flat(result: Any) -> list[Tensor]:
    y, state = result
    return [y, *(state if isinstance(state, tuple) else [state])]


@pytest.mark.parametrize("cell", STACKS)
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("arguments", [{}, {"num_layers": 3}, {"bias": False, "num_layers": 2}, {"batch_first": True}])
def test_a_stack_is_pytorchs_with_the_same_weights(cell: str, execution: str, arguments: dict[str, Any]) -> None:
    layer = stack(cell, execution, **arguments)
    dense = rs.to_dense(copy.deepcopy(layer))
    assert type(dense) is STACKS[cell][1]
    x, oracle_x = (numbers(4, 3, INPUTS).requires_grad_() for _ in range(2))
    batch = 4 if arguments.get("batch_first") else 3
    state = [numbers(layer.num_layers, batch, H, seed=2 + i) for i in range(layer.cell.states)]
    given = tuple(state) if len(state) > 1 else state[0]
    found, expected = flat(layer(x, given)), flat(dense(oracle_x, given))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    own, oracle = gradients(layer, found, [x]), gradients(dense, expected, [oracle_x])
    torch.testing.assert_close(own["input 0"], oracle["input 0"], rtol=1e-9, atol=1e-10)
    for i, one in enumerate(layer.layers):
        for name, weight in (("weight_ih", one.input), ("weight_hh", one.recurrent)):
            theirs = oracle[f"{name}_l{i}"].flatten()[weight.indices]
            torch.testing.assert_close(weight.values.grad, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("cell", STACKS)
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_one_sequence_without_a_batch_is_a_batch_of_one(cell: str, execution: str) -> None:
    layer = stack(cell, execution, num_layers=2)
    x = numbers(4, INPUTS)
    together = [each.squeeze(1) for each in flat(layer(x.unsqueeze(1)))]
    for alone, one in zip(flat(layer(x)), together, strict=True):
        assert torch.equal(alone, one)
    state = layer(x)[1]
    assert torch.equal(layer(x, state)[0], layer(x.unsqueeze(1), unsqueezed(state))[0].squeeze(1))


def unsqueezed(state: Any) -> Any:
    return tuple(each.unsqueeze(1) for each in state) if isinstance(state, tuple) else state.unsqueeze(1)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_outputs_are_one_block_of_memory_that_may_be_changed_in_place(execution: str) -> None:
    x = numbers(4, 3, INPUTS)
    for width in (1, H):
        torch.manual_seed(1)
        layer = rs.GRU(INPUTS, width, sparsity=0.6, execution=execution, dtype=F64)
        y = layer(x)[0]
        expected = gradients(layer, [y.relu()], [])
        layer.zero_grad()
        y = layer(x)[0]
        y.view(-1, width).relu_()
        assert all(torch.equal(grad, expected[name]) for name, grad in gradients(layer, [y], []).items())
        linear = rs.Linear(INPUTS, width, sparsity=0.6, execution=execution, dtype=F64)
        linear(x).view(-1, width).relu_().sum().backward()


def test_layers_are_called_by_the_names_of_pytorchs_arguments() -> None:
    layer, x, h = stack("gru"), numbers(4, 3, INPUTS), numbers(1, 3, H)
    assert torch.equal(layer(input=x, hx=h)[0], layer(x, h)[0])
    linear, embedding = rs.Linear(INPUTS, 2, dtype=F64), rs.Embedding(5, 2)
    assert torch.equal(linear(input=x), linear(x))
    assert torch.equal(embedding(input=torch.tensor([1])), embedding(torch.tensor([1])))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_biases_and_gains_are_taken_in_the_type_of_the_input(layer_norm: bool) -> None:
    masked, sparse = (stack("gru", execution, layer_norm=layer_norm).float() for execution in EXECUTIONS)
    for layer in (masked, sparse):
        for name, parameter in layer.named_parameters():
            if not name.endswith("values"):
                parameter.data = parameter.double()
    x = numbers(4, 3, INPUTS, dtype=torch.float32)
    torch.testing.assert_close(sparse(x)[0], masked(x)[0])
    assert gradients(sparse, [sparse(x)[0]], []).keys() == gradients(masked, [masked(x)[0]], []).keys()


def test_layers_are_made_copied_and_loaded_in_inference_mode() -> None:
    with torch.inference_mode():
        made = stack("lstm")
        copied = copy.deepcopy(made)
    x = numbers(4, 3, INPUTS)
    loaded = {execution: stack("lstm", execution, sparsity=0.3) for execution in EXECUTIONS}
    for layer in loaded.values():
        with torch.inference_mode():
            layer.load_state_dict(made.state_dict())
            expected = copied(x)[0]
        y = layer(x)[0]
        torch.testing.assert_close(y, expected)
        y.sum().backward()


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_dropout_acts_between_layers_while_training_only(execution: str) -> None:
    layer, without = stack("gru", execution, num_layers=2, dropout=0.5), stack("gru", execution, num_layers=2)
    x = numbers(4, 3, INPUTS)
    assert not torch.equal(layer(x)[0], without(x)[0])
    assert torch.equal(layer.eval()(x)[0], without(x)[0])


@pytest.mark.parametrize("cell", STACKS)
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(("norm", "skip"), [(True, False), (False, True), (True, True)])
def test_layers_are_normalised_and_skip_as_a_chain_of_pytorchs_would(
    cell: str, execution: str, norm: bool, skip: bool
) -> None:
    layer = stack(cell, execution, num_layers=3, layer_norm=norm, skip_connections=skip)
    widths = [INPUTS] + [H + INPUTS if skip else H] * 2
    chain = nn.ModuleList(STACKS[cell][1](width, H, dtype=F64) for width in widths)
    norms = nn.ModuleList(nn.LayerNorm(H, dtype=F64) if norm else nn.Identity() for _ in widths)
    for own, dense, normal in zip(layer.layers, chain, norms, strict=True):
        with torch.no_grad():
            dense.weight_ih_l0.copy_(own.input.to_dense())
            dense.weight_hh_l0.copy_(own.recurrent.to_dense())
            dense.bias_ih_l0.copy_(own.bias_ih)
            dense.bias_hh_l0.copy_(own.bias_hh)
            for i, theirs in enumerate(normal.parameters()):
                theirs.copy_(numbers(H, seed=3 + i))
            if norm:
                own.norm.load_state_dict(normal.state_dict())
    x, oracle_x = (numbers(4, 19, INPUTS).requires_grad_() for _ in range(2))
    found = flat(layer(x))
    y, outputs, states = oracle_x, [], []
    for i, (dense, normal) in enumerate(zip(chain, norms, strict=True)):
        y, state = dense(torch.cat([y, oracle_x], 2) if skip and i > 0 else y)
        y = normal(y)
        outputs.append(y)
        states.append(state if isinstance(state, tuple) else (state,))
    expected = [torch.cat(outputs, 2) if skip else y, *(torch.cat(each) for each in zip(*states, strict=True))]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    own, oracle = gradients(layer, found, [x]), gradients(chain, expected, [oracle_x])
    torch.testing.assert_close(own["input 0"], oracle["input 0"], rtol=1e-9, atol=1e-10)
    for i, one in enumerate(layer.layers):
        theirs = oracle[f"{i}.weight_ih_l0"].flatten()[one.input.indices]
        torch.testing.assert_close(one.input.values.grad, theirs, rtol=1e-9, atol=1e-10)
        for ours, theirs in zip(one.norm.parameters() if norm else (), norms[i].parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(INPUTS,), (3, INPUTS), (2, 19, INPUTS), (2, 3, 2, INPUTS)])
def test_a_linear_layer_is_pytorchs_with_the_same_weights(execution: str, bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    layer = rs.Linear(INPUTS, H, bias, sparsity=0.5, execution=execution, dtype=F64)
    dense = rs.to_dense(copy.deepcopy(layer))
    assert type(dense) is nn.Linear
    x, oracle_x = (numbers(*shape).requires_grad_() for _ in range(2))
    found, expected = layer(x), dense(oracle_x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    own, oracle = gradients(layer, [found], [x]), gradients(dense, [expected], [oracle_x])
    torch.testing.assert_close(own["input 0"], oracle["input 0"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(own["values"], oracle["weight"].flatten()[layer.indices], rtol=1e-12, atol=1e-12)
    assert ("bias" in own) == bias
    if bias:
        torch.testing.assert_close(own["bias"], oracle["bias"], rtol=1e-12, atol=1e-12)


def test_an_embedding_is_pytorchs_with_the_same_table() -> None:
    layer = rs.Embedding(11, 4, sparsity=0.5)
    dense = rs.to_dense(copy.deepcopy(layer))
    assert type(dense) is nn.Embedding
    tokens = torch.tensor([[0, 10], [3, 3]])
    assert torch.equal(layer(tokens), dense(tokens))


def test_an_empty_input_gives_an_empty_output() -> None:
    layer = rs.Linear(INPUTS, H, sparsity=0.5, execution="sparse")
    assert layer(torch.zeros(0, INPUTS)).shape == (0, H)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_a_new_layer_has_just_the_connections_that_its_sparsity_leaves_in_every_gate(sparsity: float) -> None:
    layer = rs.LSTM(INPUTS, H, 2, sparsity=sparsity)
    for weight in layer.weights():
        for block in weight.gates:
            positions = H * weight.cols
            assert weight.connections_in(block) == positions - int(sparsity * 100) * positions // 100


def test_first_values_follow_pytorchs_random_numbers() -> None:
    torch.manual_seed(3)
    one = rs.GRU(INPUTS, H, sparsity=0.5)
    other = rs.GRU(INPUTS, H, sparsity=0.5)
    torch.manual_seed(3)
    again = rs.GRU(INPUTS, H, sparsity=0.5)
    first, second, third = (layer[0].recurrent for layer in (one, other, again))
    assert torch.equal(first.values, third.values)
    assert torch.equal(first.indices, third.indices)
    assert not torch.equal(first.values, second.values)
    row = first.indices // H
    bound = (H * row.bincount(minlength=3 * H)[row] / H).rsqrt()  # by the connections that the row has
    assert bool((first.values.detach().abs() <= bound).all())
    assert float((first.values.detach().abs() / bound).max()) > 0.9


def test_forget_gates_start_open() -> None:
    layer = rs.LSTM(INPUTS, H)[0]
    assert (layer.bias_ih[H : 2 * H] + layer.bias_hh[H : 2 * H]).tolist() == [1] * H


@pytest.mark.parametrize("execution", ["auto", "masked", "sparse"])
def test_auto_is_sparse_where_that_is_faster_and_possible(execution: str) -> None:
    seen = []

    class Spy(rs.Linear):
        pass

    for sparsity, dtype in ((0.95, torch.float32), (0.2, torch.float32), (0.95, torch.bfloat16)):
        layer = Spy(64, 64, sparsity=sparsity, execution=execution, dtype=dtype)
        try:
            layer(torch.zeros(2, 64, dtype=dtype))
            seen.append("sparse" if "matrix" in vars(layer.topology) else "masked")
        except ValueError as error:
            seen.append(str(error).partition(":")[0])
    assert (
        seen
        == {
            "auto": ["sparse", "masked", "masked"],
            "masked": ["masked"] * 3,
            "sparse": ["sparse", "sparse", "linear"],
        }[execution]
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: rs.LSTM(INPUTS, H, bidirectional=True), "LSTM: bidirectional=True is not supported"),
        (lambda: rs.LSTM(INPUTS, H, proj_size=3), "LSTM: proj_size=3 is not supported"),
        (lambda: rs.RNN(INPUTS, H, nonlinearity="relu"), "RNN: nonlinearity='relu' is not supported"),
        (lambda: rs.Embedding(9, 4, padding_idx=0), "Embedding: padding_idx=0 is not supported"),
        (lambda: rs.GRU(INPUTS, H, sparsity=1.0), "sparsity=1.0: must be at least 0 and below 1"),
        (lambda: rs.Linear(INPUTS, H, execution="fast"), "execution='fast': must be one of auto, masked, sparse"),
        (lambda: rs.GRU(INPUTS, 0), "hidden_size=0"),
        (lambda: rs.Linear(INPUTS, H)(torch.ones(2, INPUTS, dtype=torch.int64)), "must be floating-point"),
        (lambda: rs.GRU(INPUTS, H)(torch.ones(4, 3, INPUTS, dtype=torch.int64)), "must be floating-point"),
        (lambda: rs.GRU(INPUTS, H)(torch.zeros(4, 3, H)), r"must be \[T, B, 5\]"),
        (lambda: rs.GRU(INPUTS, H)(torch.zeros(4, 3, INPUTS), torch.zeros(1, 2, H)), r"does not fit \[1, 3, 7\]"),
        (lambda: rs.LSTM(INPUTS, H)(torch.zeros(4, 3, INPUTS), torch.zeros(1, 3, H)), "2 tensor"),
        (
            lambda: rs.GRU(INPUTS, H)(
                nn.utils.rnn.pack_padded_sequence(torch.zeros(4, 3, INPUTS), torch.tensor([4, 2, 1]))
            ),
            "PackedSequence",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_an_unknown_argument_is_refused_as_python_does() -> None:
    with pytest.raises(TypeError, match="there is no argument 'hidden'"):
        rs.GRU(INPUTS, H, hidden=3)


# ---- the topology travels with the values


def model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(rs.Embedding(11, INPUTS, sparsity=0.4), rs.GRU(INPUTS, H, sparsity=0.7), nn.Linear(H, 3))


def outputs(of: nn.Module) -> Tensor:
    tokens = torch.tensor([[1, 2, 3], [4, 5, 10]])
    y: Tensor = of[1](of[0](tokens))[0]  # type: ignore[index]
    return y


def through_a_file(of: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(of.state_dict(), file)
    file.seek(0)
    other = model(seed=5)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@pytest.mark.parametrize(
    "taken",
    [through_a_file, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m.double().float()],
    ids=["torch.save", "deepcopy", "pickle", "to"],
)
def test_connections_travel_with_the_values(taken: Any) -> None:
    one = model(seed=4)
    before = outputs(one)
    other = taken(one)
    assert torch.equal(outputs(other), before)
    assert not torch.equal(outputs(model(seed=5)), before)


def test_loading_keeps_the_parameters_that_an_optimizer_has() -> None:
    one, other = model(4), model(5)
    optimizer = torch.optim.Adam(other.parameters(), lr=0.1)
    other.load_state_dict(one.state_dict())
    outputs(other).sum().backward()
    optimizer.step()
    assert not torch.equal(outputs(other), outputs(one))


def test_a_state_with_an_impossible_topology_is_refused() -> None:
    state = model(4).state_dict()
    state["1.0.input.indices"] = state["1.0.input.indices"].flip(0)
    with pytest.raises(RuntimeError, match="positions are not sorted"):
        model(5).load_state_dict(state)


def test_a_state_without_a_topology_is_refused() -> None:
    state = model(4).state_dict()
    del state["1.0.input.indices"]
    with pytest.raises(RuntimeError, match=r"Missing key.*indices"):
        model(4).load_state_dict(state)


def test_a_state_of_another_shape_is_refused() -> None:
    for make, other in (
        (lambda: rs.Linear(8, 20), lambda: rs.Linear(16, 20)),
        (lambda: rs.LSTM(8, 4), lambda: rs.LSTM(16, 4)),
        (lambda: rs.Embedding(50, 32), lambda: rs.Embedding(32, 50)),
    ):
        with pytest.raises(RuntimeError, match=r"is \d+ x \d+, not \d+ x \d+"):
            other().load_state_dict(make().state_dict())


def test_values_without_positions_are_refused_unless_all_are_there() -> None:
    one, other = (rs.Linear(8, 4, sparsity=0.5) for _ in range(2))
    with pytest.raises(RuntimeError, match="values without indices"):
        other.load_state_dict(dict(one.named_parameters()), strict=False)
    full, again = rs.Linear(8, 4), rs.Linear(8, 4)
    again.load_state_dict(dict(full.named_parameters()), strict=False)
    assert torch.equal(again.values, full.values)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_pass_whose_connections_have_changed_fails_instead_of_mixing_them(execution: str) -> None:
    for layer, x in (
        (rs.Linear(INPUTS, H, sparsity=0.5, execution=execution, dtype=F64), numbers(3, INPUTS)),
        (stack("gru", execution), numbers(4, 3, INPUTS)),
    ):
        y = layer(x.requires_grad_())
        weight = next(m for m in layer.modules() if isinstance(m, rs.SparseWeight))
        weight.connect(weight.indices.flip(0).sub(weight.positions - 1).abs())
        with pytest.raises(RuntimeError, match=r"have changed since|modified by an inplace operation"):
            (y if isinstance(y, Tensor) else y[0]).sum().backward()


def test_sparse_execution_refuses_to_be_differentiated_twice() -> None:
    layer = rs.Linear(INPUTS, H, sparsity=0.5, execution="sparse", dtype=F64)
    x = numbers(3, INPUTS).requires_grad_()
    (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


def test_positions_that_others_change_in_place_are_noticed() -> None:
    layer, other = (rs.Linear(INPUTS, H, sparsity=0.5, execution="sparse") for _ in range(2))
    x = numbers(3, INPUTS, dtype=torch.float32)
    layer(x)
    for buffer, theirs in zip(layer.buffers(), other.buffers(), strict=True):
        buffer.detach().copy_(theirs)  # as averages of models do
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.to_dense(), layer.bias))
    assert layer.connections_in(layer.gates[0]) == layer.connections


def test_a_state_of_another_type_is_taken_as_in_masked_execution() -> None:
    masked, sparse = stack("lstm", "masked").float(), stack("lstm", "sparse").float()
    x, state = numbers(4, 3, INPUTS, dtype=torch.float32), (numbers(1, 3, H), numbers(1, 3, H, seed=1))
    torch.testing.assert_close(sparse(x, state)[0], masked(x, state)[0])


def test_what_models_do_with_pytorchs_modules_works() -> None:
    layer = rs.LSTM(INPUTS, H)
    layer.flatten_parameters()
    assert rs.Linear(2, 3, device=torch.device("cpu")).values.device.type == "cpu"
    with pytest.raises((RuntimeError, AssertionError)):
        rs.Linear(2, 3, device=99)


def test_a_change_of_counts_fails_no_backward_pass_while_an_output_is_alive() -> None:
    layer = rs.Linear(3, 4)
    kept = layer(torch.ones(2, 3))
    kept.sum().backward()
    layer.connect(torch.arange(5), torch.ones(5))
    layer(torch.ones(2, 3)).sum().backward()
    assert layer.values.grad is not None
    assert layer.values.grad.tolist() == [2] * 5
    assert kept.requires_grad


@pytest.mark.filterwarnings("ignore")  # within torch._dynamo
@pytest.mark.parametrize(
    ("stack", "backend"),
    [
        pytest.param(rs.LSTM, "inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="needs a compiler")),
        (rs.GRU, "eager"),
        (rs.RNN, "eager"),
    ],
)
def test_torch_compile_computes_what_recurrent_layers_do(stack: type[rs.LSTM], backend: str) -> None:
    layers = stack(INPUTS, H, sparsity=0.5, execution="masked")
    x = numbers(3, 2, INPUTS, dtype=torch.float32)
    found = []
    for of in (layers, torch.compile(layers, backend=backend)):
        layers.zero_grad()
        y, _ = of(x)
        y.square().sum().backward()
        found.append([y, *(weight.values.grad for weight in layers.weights())])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch._dynamo
@pytest.mark.parametrize("block_rows", [1, 2])
def test_torch_compile_computes_the_same_or_says_why_not(block_rows: int) -> None:
    layer = rs.Linear(INPUTS, 2 * H, sparsity=0.75, block_rows=block_rows)
    compiled = torch.compile(layer, backend="eager")
    x = numbers(3, INPUTS, dtype=torch.float32)
    torch.testing.assert_close(compiled(x), layer(x))
    layer.execution = "sparse"
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"torch\.compile cannot look into its kernels"):
        compiled(x)
