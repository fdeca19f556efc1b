from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from rnnsparse.config import parse_config
from rnnsparse.training.build import choose_execution, new_model
from rnnsparse.training.inspection import inspect, table

KEYS = {
    "blocks",
    "connections",
    "positions",
    "sparsity",
    "parameters",
    "flops_per_character",
    "dense_flops_per_character",
    "steps",
    "training_flops",
    "training_flops_vs_dense",
    "execution",
    "device",
    "memory_bytes",
}


def report_of(*overrides: str, vocab_size: int = 10, taught: bool = False, device: str = "cpu") -> dict[str, Any]:
    data: dict[str, Any] = {
        "model": {"embedding_dim": 4, "hidden_size": 6},
        "sparsity": {"sparsity": 0.5},
        "training": {"steps": 10, "batch_size": 2, "sequence_length": 5},
    }
    config = parse_config(data, "c.yaml", overrides)
    model, budgets = new_model(config, vocab_size, torch.device("cpu"))
    return inspect(config, model, budgets, model if taught else None, device=torch.device(device))


def test_blocks_are_listed_from_input_to_output_with_their_shapes() -> None:
    report = report_of("model.cell=lstm", "model.num_layers=2", "model.readout_dims=[3]")
    assert set(report) == KEYS
    gates = [f"rnn.{i}.{side}.{gate}" for i, side, gate in itertools.product((0, 1), ("input", "recurrent"), "ifgo")]
    assert [block["name"] for block in report["blocks"]] == ["embedding", *gates, "readout.0", "output"]
    shapes = {block["name"]: (block["rows"], block["cols"]) for block in report["blocks"]}
    assert shapes["embedding"] == (10, 4)
    assert shapes["rnn.0.input.f"] == (6, 4)
    assert shapes["rnn.1.input.f"] == (6, 6)
    assert shapes["readout.0"] == (3, 6)
    assert shapes["output"] == (10, 3)
    for block in report["blocks"]:
        assert set(block) == {"name", "rows", "cols", "connections", "density"}
        assert block["density"] == block["connections"] / (block["rows"] * block["cols"])


def test_what_normalised_layers_and_skip_connections_bring_is_counted() -> None:
    model = ["model.num_layers=2", "model.layer_norm=true", "model.skip_connections=true"]
    report = report_of(*model)
    positions = 10 * 4 + 18 * 4 + 18 * (6 + 4) + 2 * 18 * 6 + 10 * 2 * 6
    assert report["positions"] == positions
    assert report["connections"] == positions // 2
    assert report["parameters"] == positions // 2 + 2 * 2 * 18 + 10 + 2 * 2 * 6
    assert report["dense_flops_per_character"] == 2 * (positions - 10 * 4)


def test_totals_are_the_sums_of_the_blocks_and_meet_the_sparsity_exactly() -> None:
    report = report_of()
    assert report["positions"] == 10 * 4 + 3 * 6 * 4 + 3 * 6 * 6 + 10 * 6 == 280
    assert report["connections"] == sum(block["connections"] for block in report["blocks"]) == 140
    assert report["sparsity"] == 0.5
    assert report["parameters"] == 140 + 2 * 18 + 10


def test_blocks_that_are_dense_by_name_are_listed_but_not_counted() -> None:
    report = report_of("sparsity.dense=[embedding, output]")
    assert report["positions"] == 180
    assert report["connections"] == 90
    densities = {block["name"]: block["density"] for block in report["blocks"]}
    assert densities["embedding"] == densities["output"] == 1
    assert report["parameters"] == 90 + 40 + 60 + 2 * 18 + 10


def test_with_everything_dense_by_name_nothing_is_counted() -> None:
    report = report_of('sparsity.dense=["*"]')
    assert (report["connections"], report["positions"], report["sparsity"]) == (0, 0, 0)
    assert report["training_flops_vs_dense"] == 1


def test_a_dense_method_has_every_connection_and_costs_what_dense_costs() -> None:
    report = report_of("sparsity.method=dense")
    assert report["connections"] == report["positions"]
    assert report["sparsity"] == 0
    assert report["flops_per_character"] == report["dense_flops_per_character"]
    assert report["training_flops_vs_dense"] == 1


def test_a_tied_output_costs_flops_but_has_no_block_of_its_own() -> None:
    report = report_of("model.embedding_dim=6", "model.tie_embeddings=true")
    assert "output" not in [block["name"] for block in report["blocks"]]
    assert report["dense_flops_per_character"] == 2 * (18 * 6 + 18 * 6 + 10 * 6)


def test_flops_follow_the_connections() -> None:
    report = report_of("sparsity.method=static")
    connections = {block["name"]: block["connections"] for block in report["blocks"]}
    multiplied = sum(count for name, count in connections.items() if name != "embedding")
    assert report["flops_per_character"] == 2 * multiplied
    assert report["dense_flops_per_character"] == 2 * 240
    assert report["training_flops"] == 3 * 2 * multiplied * 10 * 2 * 5
    assert report_of("training.accumulate=3")["training_flops"] == 3 * report["training_flops"]


def test_extended_training_is_counted_and_shown_with_the_steps_it_makes() -> None:
    report, extended = report_of("sparsity.method=rigl"), report_of("sparsity.method=rigl", "training.multiplier=2.5")
    assert (report["steps"], extended["steps"]) == (10, 25)
    # The interval is 250 instead of 100, so that a character costs a little less.
    sparse, dense = report["flops_per_character"], report["dense_flops_per_character"]
    assert extended["training_flops"] == pytest.approx((3 * sparse * 250 + 2 * sparse + dense) / 251 * 25 * 2 * 5)
    assert " in 25 steps, " in "\n".join(table(extended))


@pytest.mark.parametrize(
    ("method", "sparsity", "ratio", "tolerance"),
    [
        ("rigl", 0.75, 0.2525, 5e-5),
        ("rigl", 0.9, 0.103, 5e-4),
        ("snfs", 0.75, 0.5, 5e-5),
        ("snfs", 0.9, 0.4, 5e-5),
        ("set", 0.75, 0.25, 5e-5),
        ("static", 0.9, 0.1, 5e-5),
    ],
)
def test_training_flops_against_dense_are_those_of_the_papers(
    method: str, sparsity: float, ratio: float, tolerance: float
) -> None:
    overrides = [f"sparsity.method={method}", f"sparsity.sparsity={sparsity}", "sparsity.distribution=uniform"]
    report = report_of(*overrides, "model.hidden_size=40", "model.embedding_dim=40", vocab_size=100)
    assert report["training_flops_vs_dense"] == pytest.approx(ratio, abs=tolerance)


@pytest.mark.parametrize(("optimizer", "moments"), [("adam", 2), ("adamw", 2), ("sgd", 1), ("sntasgd", 2)])
def test_memory_counts_what_training_holds(optimizer: str, moments: int) -> None:
    memory = report_of(f"training.optimizer={optimizer}")["memory_bytes"]
    assert memory == {
        "parameters": 186 * 4,
        "indices": 140 * 8,
        "optimizer": 186 * 4 * moments,
        "dense_buffers": 2 * 40 * 4,  # sparse execution reads the embedding as a matrix, and makes its gradient
        "dense_gradients": 0,
        "probes": 0,
        "teacher": 0,
        "bases": 0,
    }


def test_memory_counts_a_step_count_per_connection() -> None:
    assert report_of("training.connection_steps=true")["memory_bytes"]["optimizer"] == 186 * 4 * 3
    sgd = ["training.optimizer=sgd", "training.connection_steps=true"]
    assert report_of(*sgd)["memory_bytes"]["optimizer"] == 186 * 4


def test_memory_depends_on_precision_and_on_dense_gradients() -> None:
    assert report_of("training.precision=fp64")["memory_bytes"]["parameters"] == 186 * 8
    masked = report_of("sparsity.method=rigl", "model.execution=masked")
    assert masked["memory_bytes"]["dense_gradients"] == 280 * 4
    averaging = report_of("sparsity.method=snfs", "model.execution=masked")
    assert averaging["memory_bytes"]["dense_gradients"] == 2 * 280 * 4


def test_memory_counts_positions_in_pools() -> None:
    report = report_of("sparsity.method=scout", "sparsity.pool=1", "sparsity.distribution=uniform")
    assert report["memory_bytes"]["probes"] == report["connections"] * 16
    everywhere = report_of("sparsity.method=scout", "sparsity.pool=null")
    assert everywhere["memory_bytes"]["probes"] == everywhere["positions"] * 16


@pytest.mark.parametrize("method", ["lottery", "kd_ticket"])
def test_a_recipe_needs_the_memory_of_its_dense_run(method: str) -> None:
    found, dense = report_of(f"sparsity.method={method}"), report_of("sparsity.method=dense")
    assert found["memory_bytes"] == dense["memory_bytes"]


def test_memory_counts_a_teacher() -> None:
    found, alone = report_of(taught=True), report_of()
    own = alone["memory_bytes"]
    assert found["memory_bytes"] == own | {"teacher": own["parameters"] + own["indices"]}
    assert "MB teacher, " in "".join(table(found))
    assert "MB teacher, " not in "".join(table(alone))


def test_sparse_execution_holds_one_tile_of_the_largest_weight() -> None:
    report = report_of("sparsity.method=rigl", "model.execution=sparse")
    rows_and_cols = {}
    for block in report["blocks"]:
        name = block["name"].rpartition(".")[0] if block["name"].startswith("rnn") else block["name"]
        rows, _ = rows_and_cols.get(name, (0, 0))
        rows_and_cols[name] = rows + block["rows"], block["cols"]
    assert report["memory_bytes"]["dense_gradients"] == max(rows * cols for rows, cols in rows_and_cols.values()) * 4


def test_memory_counts_the_matrices_that_masked_execution_makes() -> None:
    masked = report_of("model.execution=masked")
    assert (masked["execution"], masked["device"]) == ("masked", "cpu")
    matrices, biases, layer = 280, 2 * 18 + 10, 3 * 6 * (4 + 6)
    assert masked["memory_bytes"]["dense_buffers"] == (matrices + biases + layer) * 4
    # Gradients that are kept for growth are counted as such.
    rigl = report_of("model.execution=masked", "sparsity.method=rigl")["memory_bytes"]
    assert (rigl["dense_buffers"], rigl["dense_gradients"]) == ((matrices + biases) * 4, matrices * 4)


def test_memory_is_counted_for_the_device_that_a_run_asks_for() -> None:
    cpu = report_of("sparsity.method=rigl")
    assert (cpu["execution"], cpu["device"]) == ("sparse", "cpu")
    cuda = report_of("sparsity.method=rigl", device="cuda")
    masked = report_of("sparsity.method=rigl", "model.execution=masked")
    assert cuda == masked | {"device": "cuda"}
    half = report_of("sparsity.method=rigl", "training.precision=bf16", device="cuda")
    assert half["memory_bytes"]["dense_buffers"] * 2 == cuda["memory_bytes"]["dense_buffers"]
    assert "memory on cpu, sparse execution: " in table(cpu)[-1]
    assert "memory on cuda, masked execution: " in table(cuda)[-1]


def test_half_precision_is_inspected_on_any_machine() -> None:
    assert report_of("training.precision=bf16") == report_of()


def test_the_table_has_a_line_per_block_and_the_totals() -> None:
    lines = table(report_of())
    assert lines[0].split() == ["block", "shape", "connections", "density"]
    assert lines[1].split()[:4] == ["embedding", "10", "x", "4"]
    assert [line.split()[0] for line in lines[1:9]] == [block["name"] for block in report_of()["blocks"]]
    assert lines[9].startswith("connections 140 of 280 positions (sparsity 0.5000); 186 parameters")
    assert lines[10].startswith("FLOPs per character ")
    assert lines[11].startswith("memory ")
    assert len(lines) == 12


@pytest.mark.parametrize(
    ("cell", "sparsity", "execution"),
    [("lstm", 0.4, "masked"), ("lstm", 0.5, "sparse"), ("gru", 0.4, "masked"), ("gru", 0.5, "sparse")],
)
def test_execution_is_chosen_by_what_each_cell_gains(cell: str, sparsity: float, execution: str) -> None:
    data = {"model": {"cell": cell}, "sparsity": {"sparsity": sparsity}}
    assert choose_execution(parse_config(data, "c.yaml"), torch.device("cpu"))[0] == execution


def test_the_memory_and_flops_of_bases_are_counted() -> None:
    plain = report_of()
    assert plain["memory_bytes"]["bases"] == 0
    assert "bases" not in "\n".join(table(plain))
    # Of the embedding, a gate's input and recurrent weights, and the output.
    outer, gate = 10**2 + 4**2 + 10**2 + 6**2, 6**2 + 4**2 + 6**2 + 6**2
    for numbers, *settings in (
        (outer + gate, "sparsity.basis=dct"),
        (outer + 3 * gate, "sparsity.basis=svd", "sparsity.basis_from=x"),
    ):
        report = report_of(*settings)
        assert (report["connections"], report["sparsity"]) == (140, 0.5)
        assert report["flops_per_character"] == report["dense_flops_per_character"]
        assert report["training_flops_vs_dense"] > 1
        assert report["memory_bytes"]["bases"] == 4 * numbers
        assert "0.0 MB bases" in table(report)[-1]


@pytest.mark.parametrize("method", ["rigl", "scout", "prune", "dense"])
def test_blocks_of_connections_are_reported_as_the_weights_in_them(method: str) -> None:
    config = parse_config(
        {
            "model": {"embedding_dim": 4, "hidden_size": 16},
            "sparsity": {"method": method, "sparsity": 0.5, "block_rows": 8},
            "training": {"steps": 10, "batch_size": 2, "sequence_length": 5},
        },
        "c.yaml",
    )
    model, budgets = new_model(config, 10, torch.device("cpu"))
    report = inspect(config, model, budgets)
    matrices = {name: (weight.to_dense() != 0).sum() for name, weight in model.sparse_weights().items()}
    assert report["connections"] == sum(matrices.values())
    assert report["positions"] == 10 * 4 + 48 * 4 + 48 * 16 + 10 * 16
    assert report["sparsity"] == (0.5 if method in ("rigl", "scout") else 0)
    assert report["flops_per_character"] == 2 * (sum(matrices.values()) - matrices["embedding"])
    assert all(block["connections"] % 8 == 0 for block in report["blocks"] if block["name"].startswith("rnn"))
    alike = report_of(f"sparsity.method={method}", "model.hidden_size=16")
    assert report["training_flops_vs_dense"] == pytest.approx(alike["training_flops_vs_dense"], rel=0.05)
