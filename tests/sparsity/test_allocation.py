"""Budgets are exact, follow the Erdos-Renyi rule, and are spent on random subsets."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from rnnsparse.errors import UserError
from rnnsparse.nn.language_model import CharLM
from rnnsparse.nn.weight import SparseWeight
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity.allocation import Budget, allocate, connect_randomly
from rnnsparse.sparsity.blocks import set_block_rows


def weights_of(**shape: Any) -> list[SparseWeight]:
    return list(CharLM(ModelConfig(**shape), vocab_size=256).sparse_weights().values())


def small(cell: str = "gru") -> list[SparseWeight]:
    return weights_of(cell=cell, embedding_dim=16, hidden_size=32)


def rigl_net() -> list[SparseWeight]:
    """The character model of RigL (Evci et al. 2020, appendix I)."""
    return weights_of(cell="gru", embedding_dim=128, hidden_size=512, readout_dims=(256, 128), tie_embeddings=True)


def matrix(name: str, rows: int, cols: int, gates: int = 1) -> SparseWeight:
    names = [f"{name}.{i}" for i in range(gates)] if gates > 1 else []
    return SparseWeight(name, rows * gates, cols, names)


def by_name(budgets: list[Budget]) -> dict[str, int]:
    return {b.group.name: b.connections for b in budgets}


def matrix_densities(budgets: list[Budget]) -> dict[str, float]:
    """Return the density of each weight matrix, whatever its groups."""
    connections: dict[str, int] = {}
    positions: dict[str, int] = {}
    for budget in budgets:
        name = budget.group.parts[0].weight.name
        connections[name] = connections.get(name, 0) + budget.connections
        positions[name] = positions.get(name, 0) + budget.group.positions
    return {name: connections[name] / positions[name] for name in connections}


@pytest.mark.parametrize("distribution", ["er", "erk"])
@pytest.mark.parametrize(
    ("sparsity", "granularity", "densities"),
    [
        (0.75, "matrix", (0.4989, 0.1535, 0.3454, 0.6908)),
        (0.75, "gate", (0.4557, 0.1823, 0.2734, 0.5469)),
        (0.9, "matrix", (0.1996, 0.0614, 0.1382, 0.2763)),
        (0.9, "gate", (0.1823, 0.0729, 0.1094, 0.2188)),
    ],
)
def test_erk_gives_the_reference_densities_to_four_digits(
    distribution: Any, sparsity: float, granularity: Any, densities: tuple[float, ...]
) -> None:
    config = BudgetConfig(sparsity=sparsity, distribution=distribution, granularity=granularity, dense=("embedding",))
    found = matrix_densities(allocate(rigl_net(), config))
    names = ("rnn.0.input", "rnn.0.recurrent", "readout.0", "readout.1")
    assert tuple(round(found[name], 4) for name in names) == densities
    assert found["embedding"] == 1


def test_gates_of_one_matrix_get_equal_budgets_under_erk() -> None:
    budgets = by_name(allocate(rigl_net(), BudgetConfig(sparsity=0.75)))
    for side in ("input", "recurrent"):
        counts = [budgets[f"rnn.0.{side}.{gate}"] for gate in "rzn"]
        assert max(counts) - min(counts) <= 1


def test_uniform_gives_every_group_the_same_density() -> None:
    budgets = allocate(rigl_net(), BudgetConfig(sparsity=0.75, distribution="uniform"))
    assert [4 * b.connections for b in budgets] == [b.group.positions for b in budgets]


@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4)), min_size=1, max_size=6),
    sparsity=st.decimals(0, "0.999", places=3).map(float),
    distribution=st.sampled_from(["uniform", "er", "erk"]),
    granularity=st.sampled_from(["gate", "matrix", "cell"]),
)
def test_budgets_add_up_exactly_and_follow_their_rule(
    shapes: list[tuple[int, int, int]], sparsity: float, distribution: Any, granularity: Any
) -> None:
    # Two neighbours w0.a and w0.b are the two sides of a cell when both have gates.
    weights = [matrix(f"w{i // 2}.{'ab'[i % 2]}", *shape) for i, shape in enumerate(shapes)]
    config = BudgetConfig(sparsity=sparsity, distribution=distribution, granularity=granularity)
    try:
        budgets = allocate(weights, config)
    except UserError:
        assume(False)
    N = sum(w.positions for w in weights)
    assert sum(b.group.positions for b in budgets) == N
    assert sum(b.connections for b in budgets) == N - floor(Fraction(str(sparsity)) * N)
    assert all(0 < b.connections <= b.group.positions for b in budgets)

    # One factor for all that are not full, up to rounding; what is full would have got at least as much.
    def size(budget: Budget) -> int:
        if distribution == "uniform":
            return budget.group.positions
        return sum(part.rows + part.weight.cols for part in budget.group.parts)

    partial = [b for b in budgets if b.connections < b.group.positions]
    if partial:
        factor = sum(b.connections for b in partial) / sum(map(size, partial))
        assert all(abs(b.connections - factor * size(b)) < 1 + 1e-9 for b in partial)
        full = [b for b in budgets if b.connections == b.group.positions]
        assert all(factor * size(b) > b.group.positions - 1 - 1e-9 for b in full)


@pytest.mark.parametrize(("sparsity", "connections"), [(0.9, 100), (0.7, 300), (0.1, 900), (0.999, 1)])
def test_the_decimal_the_user_wrote_is_the_sparsity(sparsity: float, connections: int) -> None:
    # 1 - 0.9 in binary is not a tenth; rounding it down or up would lose or add a connection.
    budgets = allocate([matrix("w", 25, 40)], BudgetConfig(sparsity=sparsity))
    assert [b.connections for b in budgets] == [connections]


def test_what_would_get_more_than_all_becomes_full_and_the_rest_share_what_is_left() -> None:
    # 20 x 20, 20 x 20, 2 x 2: budget 804 / 2 = 402 for sizes 40 + 40 + 4, so 2 x 2 would get 19 of its 4.
    weights = [matrix("a", 20, 20), matrix("b", 20, 20), matrix("c", 2, 2)]
    assert by_name(allocate(weights, BudgetConfig(sparsity=0.5))) == {"a": 199, "b": 199, "c": 4}


def test_all_that_attain_the_maximum_become_full_at_once() -> None:
    # Of 436 positions 218 remain; the four 3 x 3 are full (36), 182 are left for 20 x 20.
    weights = [matrix(f"c{i}", 3, 3) for i in range(4)] + [matrix("a", 20, 20)]
    assert by_name(allocate(weights, BudgetConfig(sparsity=0.5))) == dict.fromkeys(["c0", "c1", "c2", "c3"], 9) | {
        "a": 182
    }


def test_becoming_full_repeats_until_no_group_is_over() -> None:
    # 604 positions at sparsity 0.1: 544 connections. First 2 x 2 is full (4); then, of 540 for sizes 20 + 45,
    # 10 x 10 would get 166 of its 100, so it is full too; 440 are left for the last.
    weights = [matrix("c", 2, 2), matrix("b", 10, 10), matrix("a", 25, 20)]
    assert by_name(allocate(weights, BudgetConfig(sparsity=0.1))) == {"c": 4, "b": 100, "a": 440}


def test_sparsity_zero_keeps_everything() -> None:
    assert all(b.connections == b.group.positions for b in allocate(small(), BudgetConfig(sparsity=0)))


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_dense_and_overridden_blocks_leave_both_sums(distribution: Any) -> None:
    config = BudgetConfig(
        sparsity=0.8,
        distribution=distribution,
        dense=("output",),
        overrides={"embedding": 0.5, "rnn.0.input.n": 0.25},
    )
    budgets = {b.group.name: b for b in allocate(small(), config)}
    assert budgets["output"].dense
    assert budgets["output"].connections == 256 * 32
    assert budgets["embedding"].connections == 256 * 16 // 2
    assert budgets["rnn.0.input.n"].connections == 32 * 16 * 3 // 4
    assert not budgets["embedding"].dense
    rest = [b for name, b in budgets.items() if name not in ("output", "embedding", "rnn.0.input.n")]
    N = sum(b.group.positions for b in rest)
    assert sum(b.connections for b in rest) == N - floor(Fraction("0.8") * N)


def test_an_override_may_empty_a_block_or_fill_it_without_leaving_the_count() -> None:
    budgets = allocate(small(), BudgetConfig(overrides={"rnn.0.input": 1.0, "output": 0.0}))
    counts = {b.group.name: (b.connections, b.dense) for b in budgets}
    assert [counts[f"rnn.0.input.{gate}"] for gate in "rzn"] == [(0, False)] * 3
    assert counts["output"] == (256 * 32, False)


@pytest.mark.parametrize(
    ("pattern", "selected"),
    [
        ("embedding", {"embedding"}),
        ("rnn.0.input.r", {"rnn.0.input.r"}),
        ("rnn.0.input", {"rnn.0.input.r", "rnn.0.input.z", "rnn.0.input.n"}),
        ("rnn", {f"rnn.0.{side}.{gate}" for side in ("input", "recurrent") for gate in "rzn"}),
        ("*.z", {"rnn.0.input.z", "rnn.0.recurrent.z"}),
        ("rnn.?.recurrent.[rz]", {"rnn.0.recurrent.r", "rnn.0.recurrent.z"}),
        ("*.recurrent", {"rnn.0.recurrent.r", "rnn.0.recurrent.z", "rnn.0.recurrent.n"}),
        ("*put", {"output", "rnn.0.input.r", "rnn.0.input.z", "rnn.0.input.n"}),
    ],
)
def test_a_name_a_prefix_or_a_glob_selects_blocks(pattern: str, selected: set[str]) -> None:
    dense = allocate(small(), BudgetConfig(dense=(pattern,)))
    assert {b.group.name for b in dense if b.dense} == selected
    overridden = allocate(small(), BudgetConfig(sparsity=0.5, overrides={pattern: 0}))
    full = {b.group.name for b in overridden if b.connections == b.group.positions}
    assert full == selected


def test_a_prefix_ends_at_a_dot() -> None:
    weights = weights_of(embedding_dim=4, hidden_size=4, num_layers=11)
    budgets = allocate(weights, BudgetConfig(sparsity=0.5, dense=("rnn.1",)))
    assert {b.group.name.split(".")[1] for b in budgets if b.dense} == {"1"}


def test_later_overrides_win() -> None:
    overrides = {"rnn": 0.5, "rnn.0.input.r": 0.25}
    counts = by_name(allocate(small(), BudgetConfig(overrides=overrides)))
    assert counts["rnn.0.input.r"] == 32 * 16 * 3 // 4
    assert counts["rnn.0.input.z"] == 32 * 16 // 2


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"dense": ("embeding",)},
            ("sparsity.dense", "'embeding'", "did you mean 'embedding'?", "rnn.0.input.r"),
        ),
        ({"overrides": {"outptu": 0.5}}, ("sparsity.overrides.outptu", "did you mean 'output'?")),
        ({"dense": ("rnn.1.*",)}, ("sparsity.dense", "'rnn.1.*'", "rnn.0.input.z")),
        (
            {"dense": ("output",), "overrides": {"output": 0.5}},
            ("output", "sparsity.dense", "sparsity.overrides"),
        ),
        (
            {"granularity": "matrix", "dense": ("rnn.0.input.r",)},
            (
                "sparsity.dense",
                "rnn.0.input.r but",
                "not all of rnn.0.input",
                "granularity=matrix",
                "rnn.0.input.z",
            ),
        ),
        (
            {"granularity": "cell", "overrides": {"*.recurrent.*": 0.5}},
            ("sparsity.overrides", "not all of rnn.0", "granularity=cell"),
        ),
        (
            {"sparsity": 0.9999},
            ("sparsity.sparsity", "0.9999", "rnn.0.input.r", "without any connection", "lower"),
        ),
    ],
)
def test_mistakes_are_told_in_one_line_with_the_way_out(config: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        allocate(small(), BudgetConfig(**config))
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_naming_all_blocks_of_a_group_selects_it() -> None:
    # The way out that the error for a part of a group names.
    config = BudgetConfig(granularity="matrix", dense=("rnn.0.input.r", "rnn.0.input.z", "rnn.0.input.n"))
    assert {b.group.name for b in allocate(small(), config) if b.dense} == {"rnn.0.input"}


def test_granularity_decides_what_owns_a_budget() -> None:
    def names(granularity: Any) -> list[str]:
        return [b.group.name for b in allocate(small("lstm"), BudgetConfig(granularity=granularity))]

    gates = [f"rnn.0.{side}.{gate}" for side in ("input", "recurrent") for gate in "ifgo"]
    assert names("gate") == ["embedding", *gates, "output"]
    assert names("matrix") == ["embedding", "rnn.0.input", "rnn.0.recurrent", "output"]
    assert names("cell") == ["embedding", "rnn.0", "output"]


@pytest.mark.parametrize("granularity", ["gate", "matrix", "cell"])
def test_a_first_topology_has_exactly_the_budget_of_every_group(granularity: Any) -> None:
    weights = small("lstm")
    config = BudgetConfig(sparsity=0.83, granularity=granularity, dense=("embedding",), overrides={"output": 0.97})
    budgets = allocate(weights, config)
    for seed in range(5):
        connect_randomly(budgets, seed)
        assert [b.group.connections for b in budgets] == [b.connections for b in budgets]
        assert sum(w.connections for w in weights) == sum(b.connections for b in budgets)


def test_a_first_topology_may_have_more_than_the_budget() -> None:
    weights = small()
    budgets = allocate(weights, BudgetConfig(dense=("embedding",)))
    connect_randomly(budgets, 1, lambda budget: budget.connections + 3)
    assert [b.group.connections for b in budgets] == [b.connections + (0 if b.dense else 3) for b in budgets]
    connect_randomly(budgets, 1, lambda budget: budget.group.positions)
    assert all(w.is_full for w in weights)


def test_a_first_topology_depends_on_the_seed_and_on_the_name_alone() -> None:
    def topology(seed: int, **shape: Any) -> dict[str, list[int]]:
        weights = weights_of(embedding_dim=16, hidden_size=32, **shape)
        # One budget for all, that does not depend on the other weights.
        connect_randomly(allocate(weights, BudgetConfig(distribution="uniform", sparsity=0.5)), seed)
        return {w.name: w.indices.tolist() for w in weights}

    torch.rand(3)
    assert topology(1) == topology(1)
    first, other, deeper = topology(1), topology(2), topology(1, num_layers=2)
    assert all(first[name] != other[name] for name in first)
    assert all(first[name] == deeper[name] for name in first)
    gates = torch.tensor(first["rnn.0.recurrent"])
    r, z = (gates[gates // 1024 == i] % 1024 for i in (0, 1))
    assert r.tolist() != z.tolist(), "gates must not share one drawing"


def test_a_first_topology_is_a_uniform_random_subset() -> None:
    # 8 of 20 positions, 3,000 seeds: exact every time, and every position equally often.
    weight = matrix("w", 4, 5)
    budgets = allocate([weight], BudgetConfig(sparsity=0.6))
    seen = torch.zeros(20)
    for seed in range(3000):
        connect_randomly(budgets, seed)
        assert weight.connections == 8
        seen[weight.indices] += 1
    # Drawn without replacement, this follows chi-square with 19 degrees of freedom; its 99.9 % point is 43.8.
    statistic = ((seen - 1200) ** 2 / (3000 * 0.4 * 0.6)).sum() * 19 / 20
    assert statistic < 43.8


# ---- blocks of rows


def in_blocks_of(setting: int | dict[str, int], cell: str = "gru") -> list[SparseWeight]:
    weights = small(cell)
    set_block_rows(weights, setting)
    return weights


@given(
    sparsity=st.floats(0, 0.9),
    distribution=st.sampled_from(["uniform", "erk"]),
    granularity=st.sampled_from(["gate", "matrix", "cell"]),
    setting=st.sampled_from([4, 16, {"*": 2}, {"*": 16}, {"rnn": 8, "output": 4}, {"*": 2, "output": 16}]),
)
def test_budgets_are_exact_in_the_smallest_blocks(
    sparsity: float, distribution: Any, granularity: Any, setting: int | dict[str, int]
) -> None:
    weights = in_blocks_of(setting)
    budgets = allocate(weights, BudgetConfig(sparsity=sparsity, distribution=distribution, granularity=granularity))
    smallest = min(weight.block_rows for weight in weights)
    blocks = sum(weight.positions for weight in weights) // smallest
    assert sum(b.entries for b in budgets) == smallest * (blocks - floor(Fraction(str(sparsity)) * blocks))
    assert all(0 < b.connections <= b.group.positions for b in budgets)
    connect_randomly(budgets, seed=1)
    for budget in budgets:
        assert (budget.group.connections, budget.group.entries) == (budget.connections, budget.entries)
    for weight in weights:
        assert weight.connections == sum(b.entries for b in budgets if b.group.parts[0].weight is weight) or (
            granularity == "cell"
        )


@given(sparsity=st.floats(0, 0.9), setting=st.sampled_from([4, 16, {"rnn": 8, "output": 4}]))
def test_budgets_in_blocks_are_within_a_block_of_those_of_single_connections(
    sparsity: float, setting: int | dict[str, int]
) -> None:
    config = BudgetConfig(sparsity=sparsity)
    blocks, single = allocate(in_blocks_of(setting), config), allocate(small(), config)
    # Single connections take up what blocks leave, which are few groups here.
    for ours, theirs in zip(blocks, single, strict=True):
        slack = ours.group.block_rows if ours.group.block_rows > 1 else 3 * 16
        assert abs(ours.entries - theirs.connections) <= slack, ours.group.name


def test_full_matrices_of_one_seed_are_the_same_whatever_their_blocks() -> None:
    matrices = []
    for block_rows in (1, 8):
        model = CharLM(ModelConfig(cell="gru", embedding_dim=4, hidden_size=16), vocab_size=5)
        weights = list(model.sparse_weights().values())
        set_block_rows(weights, block_rows)
        connect_randomly(allocate(weights, BudgetConfig(sparsity=0.0)), seed=1)
        model.reset_parameters(1)
        matrices.append([weight.to_dense() for weight in weights])
    for one, other in zip(*matrices, strict=True):
        assert torch.equal(one, other)


def test_blocks_are_chosen_by_number_name_prefix_or_glob() -> None:
    def heights(setting: int | dict[str, int]) -> list[int]:
        return [weight.block_rows for weight in in_blocks_of(setting)]

    assert heights(8) == [1, 8, 8, 1]  # the recurrent layers
    assert heights({"rnn.0.recurrent": 4, "output": 2}) == [1, 1, 4, 2]
    assert heights({"*": 2, "rnn.0.input.*": 16}) == [2, 16, 2, 2]  # the last that fits


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"rmn": 4}, "sparsity.block_rows.rmn: no group is called 'rmn'"),
        ({"rnn.0.input.r": 4}, "sparsity.block_rows.rnn.0.input.r: selects rnn.0.input.r but not all gates of"),
    ],
)
def test_names_that_fit_no_weight_are_refused(setting: dict[str, int], said: str) -> None:
    with pytest.raises(UserError) as error:
        in_blocks_of(setting)
    assert said in str(error.value)


def test_blocks_that_do_not_divide_a_gate_are_refused_with_the_numbers_that_do() -> None:
    weights = weights_of(cell="lstm", hidden_size=100)
    with pytest.raises(UserError, match=r"sparsity.block_rows: rnn.0.input: .* 100, .* 1, 2 or 4 would"):
        set_block_rows(weights, 8)


def test_matrices_of_one_budget_have_blocks_of_one_height() -> None:
    with pytest.raises(UserError, match=r"1 and 4 rows cannot share the budget of rnn\.0"):
        allocate(in_blocks_of({"rnn.0.input": 4}), BudgetConfig(granularity="cell"))
