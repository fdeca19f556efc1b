"""Models computed together give what each gives alone: logits, states, gradients, and all that growth looks at.

Shape suffixes: M models, T time, B batch, V vocabulary; L, S, H as in the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rnnsparse.nn import packed
from rnnsparse.nn.basis import Basis
from rnnsparse.nn.gradients import DenseGradient
from rnnsparse.nn.language_model import CharLM
from rnnsparse.randomness import OwnRandomNumbers
from rnnsparse.settings.model import ModelConfig

V = 7
CLOSE = {"rtol": 1e-11, "atol": 1e-12}
CPU = torch.device("cpu")


def some_models(count: int, **shape: Any) -> list[CharLM]:
    """Models of one shape with connections and numbers of their own, from one connection in ten to all."""
    config = ModelConfig(**{"embedding_dim": 3, "hidden_size": 5, **shape})
    models = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        model = CharLM(config, V).double()
        for weight in model.sparse_weights().values():
            kept = weight.positions * (1 + 9 * seed // max(1, count - 1)) // 10
            weight.connect(torch.randperm(weight.positions, generator=generator)[:kept].sort().values)
        model.reset_parameters(seed)
        models.append(model)
    return models


def some_text(models: Sequence[CharLM], times: int, batch: int) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    tokens_MTB = torch.randint(V, (len(models), times, batch), generator=generator)
    shape = models[0].initial_state(batch).shape
    return tokens_MTB, [torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5 for _ in models]


def no_random_numbers(models: Sequence[CharLM]) -> list[AbstractContextManager[None]]:
    return [nullcontext() for _ in models]


def backward(logits: Tensor) -> None:
    """Start from a gradient that is different at all [T, B, V], and the same for each of several models."""
    weights_TBV = torch.linspace(-1, 1, logits.shape[-3:].numel(), dtype=torch.float64).view(logits.shape[-3:])
    (logits * weights_TBV).sum().backward()


def gradients(model: CharLM) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert len(found) == len(list(model.parameters()))
    return found


@given(
    cell=st.sampled_from(["lstm", "gru"]),
    count=st.integers(1, 4),
    times=st.integers(1, 6),
    batch=st.integers(1, 3),
    num_layers=st.integers(1, 3),
    readout_dims=st.sampled_from([(), (4,), (6, 3)]),
    activation=st.sampled_from(["identity", "relu", "tanh"]),
    tied=st.booleans(),
)
def test_each_of_a_pack_computes_what_it_computes_alone(
    cell: str,
    count: int,
    times: int,
    batch: int,
    num_layers: int,
    readout_dims: tuple[int, ...],
    activation: str,
    tied: bool,
) -> None:
    last = readout_dims[-1] if readout_dims else 5
    models = some_models(
        count,
        cell=cell,
        num_layers=num_layers,
        readout_dims=readout_dims,
        readout_activation=activation,
        tie_embeddings=tied,
        embedding_dim=last if tied else 3,
    )
    tokens_MTB, states = some_text(models, times, batch)
    logits_MTBV, states_MLSBH = packed.forward(models, tokens_MTB, states, no_random_numbers(models))
    backward(logits_MTBV)
    together = [gradients(model) for model in models]
    for i, model in enumerate(models):
        logits_TBV, state_LSBH = model(tokens_MTB[i], states[i])
        torch.testing.assert_close(logits_MTBV[i], logits_TBV, **CLOSE)
        torch.testing.assert_close(states_MLSBH[i], state_LSBH, **CLOSE)
        backward(logits_TBV)
        torch.testing.assert_close(together[i], gradients(model), **CLOSE)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_growth_sees_the_gradients_that_it_sees_alone(cell: str) -> None:
    models = some_models(3, cell=cell, num_layers=2)
    tokens_MTB, states = some_text(models, 4, 2)

    def watch(model: CharLM, collect: bool) -> None:
        for weight in model.sparse_weights().values():
            weight.dense_gradient = DenseGradient() if collect else None
            if not collect:
                weight.start_pool(torch.arange(0, weight.positions, 3))

    def seen(model: CharLM) -> dict[str, Tensor]:
        found = {}
        for name, weight in model.sparse_weights().items():
            assert (weight.dense_gradient is None) != (weight.pool is None)
            found[name] = weight.dense_gradient.rows(0, weight.rows) if weight.dense_gradient else weight.pool.gradient
        return found

    collects = [True, False, True]  # one model's method has nothing to do with another's
    for model, collect in zip(models, collects, strict=True):
        watch(model, collect)
    for _ in range(2):  # two batches that add up
        backward(packed.forward(models, tokens_MTB, states, no_random_numbers(models))[0])
    together = [seen(model) for model in models]
    for i, model in enumerate(models):
        watch(model, collects[i])
        for _ in range(2):
            backward(model(tokens_MTB[i], states[i])[0])
        torch.testing.assert_close(together[i], seen(model), **CLOSE)


def test_values_may_be_coefficients_in_a_basis() -> None:
    models = some_models(2)
    for weight in models[1].sparse_weights().values():
        weight.basis = Basis.dct(weight.rows // len(weight.gates), weight.cols).to(weight.values)
    tokens_MTB, states = some_text(models, 3, 2)
    backward(packed.forward(models, tokens_MTB, states, no_random_numbers(models))[0])
    together = [gradients(model) for model in models]
    for i, model in enumerate(models):
        backward(model(tokens_MTB[i], states[i])[0])
        torch.testing.assert_close(together[i], gradients(model), **CLOSE)


def test_each_drops_the_units_that_it_drops_alone() -> None:
    models = some_models(3, num_layers=3, dropout=0.4)
    tokens_MTB, states = some_text(models, 4, 2)

    def seeded() -> list[OwnRandomNumbers]:
        numbers = [OwnRandomNumbers(CPU) for _ in models]
        for seed, own in enumerate(numbers):
            with own:
                torch.manual_seed(seed)
        return numbers

    before = torch.get_rng_state()
    own_numbers = seeded()
    logits_MTBV, _ = packed.forward(models, tokens_MTB, states, own_numbers)
    again_MTBV, _ = packed.forward(models, tokens_MTB, states, own_numbers)
    backward(logits_MTBV + again_MTBV)
    assert torch.equal(torch.get_rng_state(), before)
    together = [gradients(model) for model in models]
    for i, (model, own) in enumerate(zip(models, seeded(), strict=True)):
        with own:
            first_TBV, second_TBV = model(tokens_MTB[i], states[i])[0], model(tokens_MTB[i], states[i])[0]
        torch.testing.assert_close((logits_MTBV[i], again_MTBV[i]), (first_TBV, second_TBV), **CLOSE)
        backward(first_TBV + second_TBV)
        torch.testing.assert_close(together[i], gradients(model), **CLOSE)
    assert not torch.equal(logits_MTBV, again_MTBV)
    for model in models:
        model.eval()
    logits_MTBV, _ = packed.forward(models, tokens_MTB, states, own_numbers)
    torch.testing.assert_close(logits_MTBV[0], models[0](tokens_MTB[0], states[0])[0], **CLOSE)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_what_is_not_a_number_in_one_model_stays_there(cell: str) -> None:
    models = some_models(3, cell=cell)
    models[1].recurrent_layers[0].recurrent.values.data.fill_(float("nan"))
    tokens_MTB, states = some_text(models, 3, 2)
    logits_MTBV, _ = packed.forward(models, tokens_MTB, states, no_random_numbers(models))
    assert logits_MTBV[1].isnan().any()
    backward(logits_MTBV)
    for model in (models[0], models[2]):
        assert all(bool(gradient.isfinite().all()) for gradient in gradients(model).values())
