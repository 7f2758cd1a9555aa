"""A tier's training state: saved and taken over so that training goes on as if nothing had happened."""

from typing import Any

import pytest
import torch
from torch import nn

from iotsplit.errors import NotFiniteError, TensorRefusedError
from iotsplit.settings import Optimizer, TrainingSettings
from iotsplit.tensors import adapters
from iotsplit.tensors.trained import QUANTITIES, Trained

NAMES = ("b.lora_A.weight", "a.lora_B.weight")


def trained(optimizer: Optimizer = Optimizer.ADAMW, seed: int = 0) -> Trained:
    generator = torch.Generator().manual_seed(seed)
    parameters = {name: nn.Parameter(torch.randn(3, 2, generator=generator)) for name in NAMES}
    return Trained(parameters, TrainingSettings(optimizer=optimizer, learning_rate=0.1))


def train(made: Trained, *steps: int) -> Trained:
    for step in steps:
        for name, parameter in made.parameters.items():
            generator = torch.Generator().manual_seed(100 * step + len(name))
            parameter.grad = torch.randn(3, 2, generator=generator)
        made.step()
    return made


@pytest.mark.parametrize("optimizer", Optimizer)
def test_training_goes_on_from_a_checkpoint_to_the_same_bits(optimizer: Optimizer) -> None:
    undisturbed = train(trained(optimizer), 1, 2, 3, 4)
    saved = train(trained(optimizer), 1, 2).checkpoint()
    other = train(trained(optimizer, seed=9), 7)
    other.restore(saved)
    assert train(other, 3, 4).checkpoint() == undisturbed.checkpoint()


def test_gradients_that_no_step_has_used_are_gone_after_a_restore() -> None:
    made = train(trained(), 1)
    saved = made.checkpoint()
    for parameter in made.parameters.values():
        parameter.grad = torch.ones(3, 2)
    made.restore(saved)
    assert all(parameter.grad is None for parameter in made.parameters.values())


def test_a_new_adapter_starts_over_with_an_optimizer_that_knows_nothing() -> None:
    version = trained(seed=5).adapter()
    made = train(trained(), 1, 2)
    made.start_over(version)
    fresh = trained(seed=5)
    assert train(made, 3).checkpoint() == train(fresh, 3).checkpoint()


@pytest.mark.parametrize("optimizer", Optimizer)
def test_what_is_not_in_training_stays_and_is_not_brought(optimizer: Optimizer) -> None:
    made, version = trained(optimizer), trained(optimizer).adapter()
    rest, active = sorted(made.parameters, reverse=True)
    before = made.values()
    made.start_over(version, [active])
    train(made, 1, 2)
    assert torch.equal(made.values()[rest], before[rest])
    assert not torch.equal(made.values()[active], before[active])
    assert set(made.brought()) == {active}
    other = trained(optimizer, seed=9)
    other.start_over(version, [active])
    other.restore(made.checkpoint())
    assert train(other, 3).checkpoint() == train(made, 3).checkpoint()
    assert train(other, 4).parameters[rest].grad is None


def spoiled(**changes: Any) -> bytes:
    made = train(trained(), 1)
    values = {name: value.detach() for name, value in made.parameters.items()}
    state = {
        f"{name}/{quantity}": torch.tensor(1.0) if quantity == "step" else torch.ones(3, 2)
        for name in NAMES
        for quantity in QUANTITIES[Optimizer.ADAMW]
    }
    tensors: dict[str, torch.Tensor] = {**values, **state, **changes}
    return adapters.to_bytes({name: value for name, value in tensors.items() if value is not None})


@pytest.mark.parametrize(
    "changes",
    [
        {NAMES[0]: None},
        {f"{NAMES[0]}/exp_avg": None},
        {f"{NAMES[0]}/exp_avg": torch.ones(2, 3)},
        {f"{NAMES[0]}/step": torch.ones(1)},
        {"other": torch.ones(1)},
        {NAMES[0]: torch.ones(3, 2, dtype=torch.float64)},
    ],
    ids=str,
)
def test_a_checkpoint_of_another_part_is_refused_and_changes_nothing(changes: dict[str, Any]) -> None:
    made = train(trained(), 1)
    before = made.checkpoint()
    with pytest.raises(TensorRefusedError):
        made.restore(spoiled(**changes))
    assert made.checkpoint() == before


def test_a_checkpoint_with_nan_is_refused() -> None:
    with pytest.raises(NotFiniteError):
        trained().restore(spoiled(**{NAMES[0]: torch.full((3, 2), torch.nan)}))


def test_the_spoiled_checkpoints_are_those_of_a_whole_one() -> None:
    trained().restore(spoiled())


def test_garbage_is_refused() -> None:
    with pytest.raises(TensorRefusedError):
        trained().restore(b"garbage")
