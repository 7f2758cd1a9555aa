"""One bad device among five: it spoils the version of a plain average, and not that of a robust one."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from safetensors.torch import load

from iotsplit.errors import RunFailedError
from iotsplit.plan import Labels
from iotsplit.settings import Aggregation, Optimizer, TrainingSettings
from iotsplit.tensors import updates
from iotsplit_device.role import DeviceRole
from iotsplit_device.tokens import Tokens
from iotsplit_device.work import DeviceWork
from tests.flows.weather import WeatherFleet, settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick", "unmeasured")]

GOOD, BAD = ("a", "b", "c", "d"), "e"
SCALE = -50.0


def scaled_updates(work: DeviceWork) -> None:
    """Sends the opposite of what it has learned, many times over: model replacement."""

    def scaled() -> bytes:
        trained, start = load(work.adapter()), work._start
        changed = {name: start[name] + SCALE * (trained[name] - start[name]) for name in start}
        return updates.encode(changed, start, work.settings.update_codec)

    work.update = scaled  # type: ignore[method-assign]


def exploding_gradients(work: DeviceWork) -> None:
    """Sends up the opposite of its gradient, many times over: the cloud trains on it at once."""
    pack = work._exchange.pack_gradient
    work._exchange.pack_gradient = lambda gradient, at=None: pack(SCALE * gradient, at)  # type: ignore[method-assign]


class Attacked(WeatherFleet):
    """Device e is bad."""

    def __init__(self, model: Path, settings: TrainingSettings, attack: Callable[[DeviceWork], None]) -> None:
        self._attack = attack
        super().__init__(model, settings, (*GOOD, BAD))

    def make_device(self, name: str, train: list[Tokens]) -> DeviceRole:
        role = super().make_device(name, train)
        if name != BAD:
            return role
        make: Callable[[Any], DeviceWork] = role._load
        turned: list[DeviceWork] = []

        def bad(settings: Any) -> DeviceWork:
            work = make(settings)
            if work not in turned:
                self._attack(work)
                turned.append(work)
            return work

        role._load = bad
        return role


def gain(model: Path, attack: Callable[[DeviceWork], None], **changes: Any) -> float:
    """By how much the next version lowers the good devices' loss on what they train on."""
    plain: dict[str, Any] = {
        "rounds": 2,
        "local_steps": 3,
        "batch_size": 5,  # all that a device has, so that the losses of two rounds can be compared
        "labels": Labels.DEVICE,
        "optimizer": Optimizer.SGD,
        "learning_rate": 1.0,
        "target_modules": ("all-linear",),
    }
    fleet = Attacked(model, settings(**(plain | changes)), attack)
    fleet.run()
    assert not any(row["dropped"] for row in fleet.report.rounds)
    before, after = ([s for s in row["sessions"] if s["device"] != BAD] for row in fleet.report.rounds)
    return fmean(s["loss_first"] for s in before) - fmean(s["loss_first"] for s in after)


@pytest.fixture(scope="module")
def quiet(model: Path) -> float:
    """The gain without a bad device, and with a plain average."""
    return gain(model, lambda work: None)


@pytest.mark.parametrize("attack", [scaled_updates, exploding_gradients])
def test_a_bad_device_spoils_a_plain_average(
    model: Path, quiet: float, attack: Callable[[DeviceWork], None]
) -> None:
    assert gain(model, attack) < 0.3 * quiet


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregation": Aggregation.TRIMMED},
        {"aggregation": Aggregation.MEDIAN},
        {"clip_updates": True},
        {"clip_updates": True, "aggregation": Aggregation.FLEXLORA},
        {"clip_updates": True, "aggregation": Aggregation.TRIMMED},
    ],
    ids=str,
)
@pytest.mark.parametrize("attack", [scaled_updates, exploding_gradients])
def test_a_bad_device_does_not_spoil_a_robust_average(
    model: Path, quiet: float, attack: Callable[[DeviceWork], None], changes: dict[str, Any]
) -> None:
    assert gain(model, attack, **changes) > 0.75 * quiet


def test_with_adamw_a_scaled_update_is_more_than_training_can_make(model: Path) -> None:
    fleet = Attacked(model, settings(rounds=1), scaled_updates)
    fleet.run()
    (row,) = fleet.report.rounds
    assert [session["device"] for session in row["sessions"]] == list(GOOD)
    (dropped,) = row["dropped"]
    assert dropped["device"] == BAD
    assert "an update that moves by" in dropped["reason"]
    assert row["adapter_version"] == 1


def test_a_version_that_is_spoiled_for_everybody_ends_the_run(model: Path) -> None:
    fleet = Attacked(model, settings(rounds=1, optimizer=Optimizer.SGD, learning_rate=1e4), scaled_updates)
    with pytest.raises(RunFailedError, match="version 1 gives no usable numbers on any device"):
        fleet.run()
