from __future__ import annotations

import pytest
import torch

from rnnsparse.nn.language_model import CharLM
from rnnsparse.settings.model import ModelConfig
from rnnsparse.training.run.connectivity import connection_counts

SHAPES: list[ModelConfig] = [
    ModelConfig(cell="lstm", embedding_dim=3, hidden_size=4, num_layers=2),
    ModelConfig(cell="gru", embedding_dim=3, hidden_size=4, readout_dims=(5,)),
    ModelConfig(cell="gru", embedding_dim=4, hidden_size=4, tie_embeddings=True),
    ModelConfig(cell="lstm", embedding_dim=3, hidden_size=4, num_layers=2, skip_connections=True),
]


@pytest.mark.parametrize("config", SHAPES)
def test_counts_are_those_of_the_masks(config: ModelConfig) -> None:
    model = CharLM(config, vocab_size=7)
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for name, weight in model.sparse_weights().items():
        masks[name] = torch.rand(weight.rows, weight.cols, generator=generator) < 0.4
        indices = masks[name].flatten().nonzero().flatten()
        weight.connect(indices, torch.ones(len(indices)))
    counts = connection_counts(model)

    assert counts["embedding"] == masks["embedding"].sum(1).tolist()
    blocks = {
        f"rnn.{i}.{part}.{gate}": int(rows.sum())
        for i in range(config.num_layers)
        for part in ("input", "recurrent")
        for gate, rows in zip(
            "ifgo" if config.cell == "lstm" else "rzn", masks[f"rnn.{i}.{part}"].split(4), strict=True
        )
    }
    blocks |= {name: int(mask.sum()) for name, mask in masks.items() if not name.startswith("rnn.")}
    assert counts["blocks"] == blocks

    readers = (
        ["rnn.1.input", "output"] if config.num_layers == 2 else ["readout.0" if config.readout_dims else "embedding"]
    )
    for i, reader in enumerate(readers):
        below, own = masks[f"rnn.{i}.input"], masks[f"rnn.{i}.recurrent"]
        inputs = [int(below[unit::4].sum() + own[unit::4].sum()) for unit in range(4)]
        outputs = [int(own[:, unit].sum() + masks[reader][:, unit].sum()) for unit in range(4)]
        if config.skip_connections:
            second = masks["output"][:, 4 * i :]
            first = masks["rnn.1.input"] if i == 0 else torch.zeros(1, 4)
            outputs = [int(own[:, u].sum() + first[:, u].sum() + second[:, u].sum()) for u in range(4)]
        assert counts["units"][f"rnn.{i}"] == {"in": inputs, "out": outputs}


def test_a_block_counts_as_the_weights_in_it() -> None:
    counts = []
    for block_rows in (4, 1):
        model = CharLM(ModelConfig(cell="gru", embedding_dim=3, hidden_size=8), vocab_size=7)
        generator = torch.Generator().manual_seed(0)
        for name, weight in model.sparse_weights().items():
            height = 4 if name.startswith("rnn") else 1
            mask = (torch.rand(weight.rows // height, weight.cols, generator=generator) < 0.4).repeat_interleave(
                height if block_rows == 1 else 1, 0
            )
            weight.set_block_rows(min(height, block_rows))
            weight.connect(mask.flatten().nonzero().flatten())
        counts.append(connection_counts(model))
    assert counts[0] == counts[1]
