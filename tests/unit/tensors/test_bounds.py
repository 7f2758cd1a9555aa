"""What honest training makes is within its bounds; what nobody can have trained is not."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from iotsplit.errors import DivergedError, TensorRefusedError
from iotsplit.settings import Optimizer, TrainingSettings
from iotsplit.tensors import adapters
from iotsplit.tensors.bounds import BETAS, adamw_steps, check_gradients, check_update, norm_of

NAME = "m.lora_A.weight"


def _trained(gradients: list[list[float]], settings: TrainingSettings, start: torch.Tensor) -> torch.Tensor:
    parameter = nn.Parameter(start.clone())
    optimizer = adapters.make_optimizer({NAME: parameter}, settings)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    return parameter.detach()


def _settings(steps: int, optimizer: Optimizer, learning_rate: float, bound: float) -> TrainingSettings:
    return TrainingSettings(
        local_steps=steps, optimizer=optimizer, learning_rate=learning_rate, norm_bound=bound
    )


@given(
    st.lists(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=2), min_size=1, max_size=20),
    st.sampled_from(Optimizer),
    st.sampled_from([1e-5, 1e-3, 0.3]),
    st.floats(-10, 10, width=32),
)
def test_no_training_leaves_its_bound(
    gradients: list[list[float]], optimizer: Optimizer, learning_rate: float, value: float
) -> None:
    settings = _settings(len(gradients), optimizer, learning_rate, bound=50 * math.sqrt(2))
    start = torch.full((2,), value)
    check_update({NAME: start}, {NAME: _trained(gradients, settings, start)}, settings)


@pytest.mark.parametrize("steps", [1, 10, 100])
def test_the_bound_of_adamw_is_not_much_more_than_it_can_reach(steps: int) -> None:
    settings = _settings(steps, Optimizer.ADAMW, 1e-3, 1e5)
    growth = BETAS[1] / BETAS[0]  # the gradients of the last step's worst case
    gradients = [[growth**step] for step in range(steps)]
    moved = _trained(gradients, settings, torch.zeros(1)).abs().item()
    reach = 1e-3 * adamw_steps(steps)
    assert 0.6 * reach <= moved <= reach * 1.001


@pytest.mark.parametrize("optimizer", Optimizer)
def test_a_scaled_update_is_refused(optimizer: Optimizer) -> None:
    settings = _settings(3, optimizer, 1e-2, bound=2.0)
    start = torch.tensor([0.5, -0.5])
    honest = _trained([[1.0, 0.4], [0.9, 0.6], [1.1, 0.3]], settings, start)
    check_update({NAME: start}, {NAME: honest}, settings)
    with pytest.raises(TensorRefusedError, match="moves by"):
        check_update({NAME: start}, {NAME: start - 50 * (honest - start)}, settings)


def test_an_update_of_nothing_is_taken() -> None:
    start = torch.ones(2)
    check_update({NAME: start}, {NAME: start.clone()}, TrainingSettings())
    check_update({}, {}, TrainingSettings())


@pytest.mark.parametrize("value", [math.nan, math.inf, 8.0])
def test_gradients_that_are_not_finite_or_too_large_are_not_stepped_with(value: float) -> None:
    check_gradients({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, 5.0)
    with pytest.raises(DivergedError):
        check_gradients({"a": torch.tensor([3.0]), "b": torch.tensor([value])}, 5.0)


def test_the_norm_is_of_all_values_together() -> None:
    assert norm_of({"a": torch.tensor([[2.0], [1.0]]), "b": torch.tensor([2.0])}) == pytest.approx(3.0)
    assert norm_of({}) == 0.0
