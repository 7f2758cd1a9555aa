"""What the cloud does for one frame does not depend on how many devices there are: it counts its calls."""

import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from iotsplit.messages import Frame, Message
from iotsplit.role import Output
from tests.flows.weather import WeatherFleet, settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick", "unmeasured")]

FEW, MANY = 3, 24


def calls_of(action: Callable[[], Any]) -> int:
    """Calls that our own code makes in an action, of functions and of built-in ones."""
    count = 0

    def seen(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"} and "iotsplit" in Path(frame.f_code.co_filename).parent.name

    sys.setprofile(seen)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


def usual_calls(model: Path, devices: int) -> dict[str, float]:
    """The median of calls in the cloud by kind of what it does, in a run of so many devices."""
    counted: dict[str, list[int]] = defaultdict(list)
    names = [f"d{number:02}" for number in range(devices)]
    fleet = WeatherFleet(model, settings(rounds=1, local_steps=3, micro_batches=1), names)
    cloud = fleet.agents["cloud"]
    role: Any = cloud.role
    handle, next_tick = role.handle, role.next_tick

    def counting(message: Message, now: float) -> Sequence[Output]:
        said: list[Output] = []
        phase = role.phase
        calls = calls_of(lambda: said.extend(handle(message, now)))
        if isinstance(message, Frame):
            counted[f"{message.identity.kind} while {phase}"].append(calls)
        return said

    def counting_tick(now: float) -> float:
        counted[f"next_tick while {role.phase}"].append(calls_of(lambda: next_tick(now)))
        return float(next_tick(now))

    role.handle, role.next_tick = counting, counting_tick
    fleet.run()
    return {kind: statistics.median(calls) for kind, calls in counted.items()}


def test_what_one_frame_costs_the_cloud_does_not_grow_with_the_fleet(model: Path) -> None:
    few, many = usual_calls(model, FEW), usual_calls(model, MANY)
    assert {kind.split()[0] for kind in many} == {"activation", "update", "next_tick"}
    grown = {kind: (few[kind], calls) for kind, calls in many.items() if calls > 1.02 * few[kind]}
    assert grown == {}
