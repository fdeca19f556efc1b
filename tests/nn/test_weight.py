"""A sparse weight is its connections, and behaves under autograd as the dense matrix with zeros elsewhere."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rnnsparse.nn.gradients import STRIP_ROWS, DenseGradient, MatrixGradient
from rnnsparse.nn.materialise import materialise
from rnnsparse.nn.weight import SparseWeight


def weight_of(dense_RC: list[list[float]], gates: tuple[str, ...] = ()) -> SparseWeight:
    """Return a weight whose connections are the non-zero entries."""
    dense = torch.tensor(dense_RC)
    weight = SparseWeight("w", *dense.shape, gates)
    indices = dense.flatten().nonzero().squeeze(1)
    weight.connect(indices, dense.flatten()[indices])
    return weight


def random_weight(rows: int, cols: int, density: float, seed: int, name: str = "w") -> SparseWeight:
    generator = torch.Generator().manual_seed(seed)
    weight = SparseWeight(name, rows, cols).double()
    indices = torch.randperm(rows * cols, generator=generator)[: round(density * rows * cols)].sort().values
    weight.connect(indices, torch.randn(indices.shape, dtype=torch.float64, generator=generator))
    return weight


def test_a_new_weight_has_no_connections() -> None:
    weight = SparseWeight("w", 2, 3)
    assert (weight.connections, weight.positions) == (0, 6)
    assert torch.equal(weight.to_dense(), torch.zeros(2, 3))


def test_the_only_parameter_is_one_number_per_connection() -> None:
    weight = weight_of([[1, 0, 0, 2], [0, 0, 3, 0]])
    assert {name: p.shape for name, p in weight.named_parameters()} == {"values": (3,)}
    assert set(weight.state_dict()) == {"values", "indices", "shape"}


def test_to_dense_puts_values_at_their_positions() -> None:
    weight = SparseWeight("w", 2, 3)
    weight.connect(torch.tensor([1, 3, 5]), torch.tensor([10.0, 20.0, 30.0]))
    assert weight.to_dense().tolist() == [[0, 10, 0], [20, 0, 30]]
    assert not weight.to_dense().requires_grad


def test_connect_without_values_gives_zeros_that_are_connections() -> None:
    weight = SparseWeight("w", 2, 3)
    weight.connect(torch.tensor([0, 4]))
    assert weight.values.tolist() == [0, 0]
    assert weight.connections == 2


def test_connect_keeps_the_parameter_object_and_forgets_its_gradient() -> None:
    weight = weight_of([[1, 2], [0, 3]])
    parameter = weight.values
    weight.values.grad = torch.ones(3)
    weight.connect(torch.tensor([2]), torch.tensor([7.0]))
    assert weight.values is parameter
    assert parameter.tolist() == [7]
    assert parameter.requires_grad
    assert parameter.grad is None


def test_connect_keeps_the_dtype_of_the_weight() -> None:
    weight = SparseWeight("w", 2, 2).double()
    weight.connect(torch.tensor([1], dtype=torch.int32), torch.tensor([0.5]))
    assert weight.values.dtype == torch.float64
    assert weight.indices.dtype == torch.int64


def test_connect_copies_what_it_is_given() -> None:
    indices, values = torch.tensor([1, 3]), torch.tensor([1.0, 2.0])
    weight = SparseWeight("w", 2, 2)
    weight.connect(indices, values)
    with torch.no_grad():
        weight.values.add_(1)
    indices.zero_()
    assert values.tolist() == [1, 2]
    assert weight.indices.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("indices", "values", "reason"),
    [
        ([-1, 2], None, "outside"),
        ([0, 6], None, "outside"),
        ([2, 1], None, "sorted"),
        ([0, 100, 3], None, "sorted"),
        ([1, 1], None, "repeat"),
        ([0, 1], [1.0], "one value each"),
        ([[0, 1]], None, "one position"),
    ],
)
def test_connect_refuses_what_is_no_topology(indices: list[int], values: list[float] | None, reason: str) -> None:
    weight = SparseWeight("rnn.0.input", 2, 3)
    weight.connect(torch.tensor([5]), torch.tensor([4.0]))
    with pytest.raises(ValueError, match=reason) as error:
        weight.connect(torch.tensor(indices), None if values is None else torch.tensor(values))
    assert "rnn.0.input" in str(error.value)
    assert weight.to_dense().tolist() == [[0, 0, 0], [0, 0, 4]], "a refused topology must change nothing"


def test_gates_are_equal_ranges_of_rows_and_own_consecutive_connections() -> None:
    weight = weight_of([[1, 0], [0, 2], [0, 0], [0, 0], [3, 4], [5, 0]], ("a", "b", "c"))
    assert [(b.name, b.start_row, b.stop_row) for b in weight.gates] == [
        ("a", 0, 2),
        ("b", 2, 4),
        ("c", 4, 6),
    ]
    assert [weight.bounds(b.start_row, b.stop_row) for b in weight.gates] == [(0, 2), (2, 2), (2, 5)]
    assert [weight.connections_in(g) for g in weight.gates] == [2, 0, 3]


def test_gates_own_other_connections_in_a_new_topology() -> None:
    weight = SparseWeight("w", 4, 5, ["a", "b"])
    weight.connect(torch.tensor([0, 7, 9, 12]))
    assert [weight.connections_in(gate) for gate in weight.gates] == [3, 1]
    weight.connect(torch.tensor([2, 11, 15]))
    assert [weight.connections_in(gate) for gate in weight.gates] == [1, 2]


def test_a_weight_without_gate_names_is_one_gate_of_its_own_name() -> None:
    weight = weight_of([[1, 0], [0, 2]])
    assert [(b.name, b.start_row, b.stop_row) for b in weight.gates] == [("w", 0, 2)]


def test_a_weight_is_full_only_with_every_position() -> None:
    assert weight_of([[1, 2], [3, 4]]).is_full
    assert not weight_of([[1, 2], [3, 0]]).is_full


@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from([0, 0.3, 0.8, 1])),
        min_size=1,
        max_size=3,
    ),
    seed=st.integers(0, 99),
)
def test_materialised_matrices_and_their_gradients_are_those_of_dense_autograd(
    shapes: list[tuple[int, int, float]], seed: int
) -> None:
    weights = [random_weight(r, c, d, seed + i) for i, (r, c, d) in enumerate(shapes)]
    generator = torch.Generator().manual_seed(seed)
    biases = [torch.randn(r, dtype=torch.float64, generator=generator).requires_grad_() for r, _, _ in shapes]
    upstream = [torch.randn(r, c, dtype=torch.float64, generator=generator) for r, c, _ in shapes]

    def loss(matrices: list[Tensor], vectors: list[Tensor]) -> Tensor:
        terms = [
            (w.sin() * g).sum() + (w.sum(1) * b).sum() for w, b, g in zip(matrices, vectors, upstream, strict=True)
        ]
        return torch.stack(terms).sum()

    for weight in weights:
        weight.dense_gradient = DenseGradient()
    made = materialise(weights, biases)
    loss(made[: len(weights)], made[len(weights) :]).backward()

    dense = [w.to_dense().requires_grad_() for w in weights]
    plain = [b.detach().clone().requires_grad_() for b in biases]
    loss(dense, plain).backward()
    for weight, matrix, oracle in zip(weights, made, dense, strict=False):
        assert torch.equal(matrix, oracle)
        assert torch.equal(weight.values.grad, oracle.grad.flatten()[weight.indices])
        assert torch.equal(weight.dense_gradient.rows(0, weight.rows), oracle.grad)
    for bias, oracle in zip(biases, plain, strict=True):
        assert torch.equal(bias.grad, oracle.grad)


def test_everything_materialised_is_adjacent_in_one_buffer_in_the_order_given() -> None:
    weights = [random_weight(4, 3, 0.5, 0), random_weight(4, 2, 1, 1)]
    made = materialise(weights, [torch.ones(4).double(), torch.ones(4).double()])
    assert [tuple(t.shape) for t in made] == [(4, 3), (4, 2), (4,), (4,)]
    assert all(t.is_contiguous() for t in made)
    ends = [t.data_ptr() + t.numel() * t.element_size() for t in made]
    assert [t.data_ptr() for t in made[1:]] == ends[:-1]


def test_materialise_computes_in_the_dtype_asked_for_and_gradients_keep_the_parameters() -> None:
    weight = weight_of([[0.1, 0], [0, 2]])
    bias = torch.ones(2, requires_grad=True)
    weight.dense_gradient = DenseGradient()
    made = materialise([weight], [bias], torch.bfloat16)
    assert {t.dtype for t in made} == {torch.bfloat16}
    (made[0].sum() + made[1].sum()).backward()
    assert weight.values.grad.dtype == bias.grad.dtype == torch.float32
    assert weight.dense_gradient.rows(0, weight.rows).dtype == torch.float32


def test_a_full_weight_is_copied_not_aliased() -> None:
    weight = weight_of([[1, 2], [3, 4]])
    (dense,) = materialise([weight])
    assert dense.tolist() == [[1, 2], [3, 4]]
    assert dense.data_ptr() != weight.values.data_ptr()


def backward(weight: SparseWeight, upstream: list[list[float]]) -> None:
    (dense,) = materialise([weight])
    (dense * torch.tensor(upstream)).sum().backward()


def test_the_dense_gradient_is_the_signed_sum_over_all_backward_passes() -> None:
    weight = weight_of([[1, 0], [0, 2]])
    weight.dense_gradient = DenseGradient()
    backward(weight, [[1, 2], [3, 4]])
    backward(weight, [[10, -2], [-1, 40]])
    assert weight.dense_gradient.rows(0, weight.rows).tolist() == [[11, 0], [2, 44]]
    assert weight.values.grad.tolist() == [11, 44]


def test_the_dense_gradient_is_not_memory_of_autograd() -> None:
    weight = weight_of([[1, 2], [3, 4]])
    weight.dense_gradient = DenseGradient()
    backward(weight, [[1, 2], [3, 4]])
    weight.values.grad.zero_()
    assert weight.dense_gradient.rows(0, weight.rows).tolist() == [[1, 2], [3, 4]]


def test_no_dense_gradient_is_kept_unless_asked_for() -> None:
    weight = weight_of([[1, 0], [0, 2]])
    backward(weight, [[1, 2], [3, 4]])
    assert weight.dense_gradient is None


def test_starting_anew_forgets_the_dense_gradient_of_before() -> None:
    weight = weight_of([[1, 0], [0, 2]])
    weight.dense_gradient = DenseGradient()
    backward(weight, [[1, 2], [3, 4]])
    weight.dense_gradient = DenseGradient()
    backward(weight, [[0, 1], [0, 0]])
    assert weight.dense_gradient.rows(0, weight.rows).tolist() == [[0, 1], [0, 0]]
    weight.dense_gradient = None
    assert weight.dense_gradient is None


@pytest.mark.parametrize("rows", [(0, 1), (3, 3 + STRIP_ROWS), (0, STRIP_ROWS + 1), (5, 3 * STRIP_ROWS), (7, 7)])
def test_strips_cover_every_position_of_the_rows_once_and_in_order(rows: tuple[int, int]) -> None:
    matrix = torch.arange(3 * STRIP_ROWS * 2.0).view(-1, 2)
    strips = list(DenseGradient(MatrixGradient(matrix)).strips(*rows, cols=2))
    assert all(1 <= strip.gradient_RC.shape[0] <= STRIP_ROWS for strip in strips)
    # Every entry of the matrix is its own flat position.
    seen = [p for strip in strips for p in range(strip.start, strip.start + strip.gradient_RC.numel())]
    assert seen == list(range(rows[0] * 2, rows[1] * 2))
    assert [int(x) for strip in strips for x in strip.gradient_RC.flatten()] == seen


# ---- blocks of rows

heights = st.sampled_from([1, 2, 4, 8, 16])


def blocks_of(block_rows: int, gates: int, rows_of_blocks: int, cols: int, density: float, seed: int) -> SparseWeight:
    """Return a weight whose gates have so many rows of blocks."""
    generator = torch.Generator().manual_seed(seed)
    names = [f"w.{i}" for i in range(gates)]
    weight = SparseWeight("w", gates * rows_of_blocks * block_rows, cols, names, block_rows=block_rows).double()
    count = weight.topology.positions
    indices = torch.randperm(count, generator=generator)[: round(density * count)].sort().values
    shape = (len(indices), block_rows)[: 1 + (block_rows > 1)]
    weight.connect(indices, torch.randn(shape, dtype=torch.float64, generator=generator))
    return weight


def by_hand(weight: SparseWeight) -> Tensor:
    """Return the matrix, entry by entry."""
    dense = torch.zeros(weight.rows, weight.cols, dtype=torch.float64)
    numbers = weight.values.detach().view(len(weight.indices), weight.block_rows)
    for position, block in zip(weight.indices.tolist(), numbers.tolist(), strict=True):
        row, col = divmod(position, weight.cols)
        for i, value in enumerate(block):
            dense[row * weight.block_rows + i, col] = value
    return dense


blocks = st.builds(
    blocks_of, heights, st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.floats(0, 1), st.integers(0, 99)
)


@given(weight=blocks)
def test_a_block_is_consecutive_rows_that_share_a_column(weight: SparseWeight) -> None:
    assert torch.equal(weight.to_dense(), by_hand(weight))
    assert weight.connections == sum(map(weight.connections_in, weight.gates)) == weight.values.numel()
    for gate in weight.gates:
        start, stop = weight.bounds(gate.start_row, gate.stop_row)
        rows = weight.topology.entries[start:stop].flatten() // weight.cols
        assert bool(((rows >= gate.start_row) & (rows < gate.stop_row)).all())


@given(weight=blocks)
def test_numbers_sorted_by_row_find_the_entries_of_blocks(weight: SparseWeight) -> None:
    sorted_entries = weight.topology.entries.flatten().sort().values
    assert torch.equal(weight.topology.from_by_row(sorted_entries), weight.topology.entries)


@given(weight=blocks)
def test_the_gradient_of_blocks_is_gathered_from_that_of_the_matrix(weight: SparseWeight) -> None:
    x = torch.randn(weight.cols, 3, dtype=torch.float64)
    dense = by_hand(weight).requires_grad_()
    (dense @ x).sin().sum().backward()
    (materialise([weight])[0] @ x).sin().sum().backward()
    assert weight.values.grad is not None
    assert dense.grad is not None
    found = torch.zeros(weight.positions, dtype=torch.float64)
    found[weight.topology.entries.flatten()] = weight.values.grad.flatten()
    connected = torch.zeros(weight.positions, dtype=torch.float64)
    connected[weight.topology.entries.flatten()] = 1
    torch.testing.assert_close(found, dense.grad.flatten() * connected)


@given(weight=blocks)
def test_blocks_travel_with_states_copies_and_pickles(weight: SparseWeight) -> None:
    other = SparseWeight("w", weight.rows, weight.cols, [gate.name for gate in weight.gates]).double()
    other.load_state_dict(weight.state_dict())
    for twin in (other, copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert twin.block_rows == weight.block_rows
        assert torch.equal(twin.values, weight.values)
        assert torch.equal(twin.to_dense(), weight.to_dense())
    other.load_state_dict(SparseWeight("w", weight.rows, weight.cols).double().state_dict())
    assert (other.block_rows, other.connections) == (1, 0)


@given(height=heights, other=heights, seed=st.integers(0, 99))
def test_a_full_matrix_can_have_blocks_of_any_height(height: int, other: int, seed: int) -> None:
    weight = blocks_of(height, 2, 16 // height, 3, 1.0, seed)
    before = weight.to_dense()
    weight.set_block_rows(other)
    assert weight.is_full
    assert torch.equal(weight.to_dense(), before)


def test_blocks_that_do_not_fit_are_refused_with_those_that_would() -> None:
    with pytest.raises(ValueError, match=r"^w: block_rows=8: does not divide 12, the rows of a gate; 1, 2 or 4 would$"):
        SparseWeight("w", 24, 3, ["w.a", "w.b"], block_rows=8)
    with pytest.raises(ValueError, match="does not divide 9, the rows of a gate; 1 would"):
        SparseWeight("w", 9, 3, block_rows=2)
    with pytest.raises(ValueError, match=r"block_rows=3: must be one of 1, 2, 4, 8, 16"):
        SparseWeight("w", 9, 3, block_rows=3)
    weight = blocks_of(4, 1, 2, 3, 0.5, 0)
    with pytest.raises(ValueError, match="blocks of 4 rows, and cannot become 2"):
        weight.set_block_rows(2)
    with pytest.raises(ValueError, match="connections need 4 values each"):
        weight.connect(weight.indices, torch.zeros(weight.indices.shape))
    with pytest.raises(ValueError, match="lies outside 2 x 3"):
        weight.connect(torch.tensor([6]))


def test_a_state_of_other_blocks_that_does_not_fit_leaves_the_weight_as_it_was() -> None:
    weight = SparseWeight("w", 20, 8, block_rows=4)
    weight.connect(torch.tensor([1, 9]), torch.randn(2, 4))
    before = {key: value.clone() for key, value in weight.state_dict().items()}
    with pytest.raises(RuntimeError, match="does not divide 20"):
        weight.load_state_dict(before | {"block_rows": torch.tensor(16)})
    repeated = {"block_rows": torch.tensor(2), "indices": torch.tensor([5, 5]), "values": torch.randn(2, 2)}
    with pytest.raises(RuntimeError, match="sorted"):
        weight.load_state_dict(before | repeated)
    after = weight.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_values_of_one_row_of_blocks_lie_one_after_the_other() -> None:
    weight = SparseWeight("w", 8, 32, block_rows=8)
    weight.express(torch.randn(8, 32), None)
    assert weight.values.is_contiguous()
