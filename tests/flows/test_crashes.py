"""Whatever dies, whenever: nothing is lost or applied twice, and the adapter is the same to the bit."""

import contextlib
import dataclasses
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iotsplit.plan import Labels
from iotsplit.settings import Aggregation, BaseDtype, Optimizer, Stragglers, TrainingSettings
from tests.flows.crashes import CrashFleet
from tests.flows.fault_schedule import Schedule, storm
from tests.flows.weather import WeatherFleet, settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick", "unmeasured")]

SCHEDULES = int(os.environ.get("CRASH_SCHEDULES", "300"))
FIRST = int(os.environ.get("CRASH_FIRST", "0"))
PACKETS = 450
FEDERATED_PACKETS = 60
LIMIT = 40_000
CHUNK = 25
LIKE = 12
"""Seeds that differ by this have all settings but one in common: one undisturbed run does for many of them."""


def wanted(seed: int) -> TrainingSettings:
    """Settings of a seed: every combination comes up."""
    changes: dict[str, Any] = {
        "cut": (1, 2),
        "local_steps": 5,
        "checkpoint_every": (1, 2, 3)[seed % 3],
        "labels": (Labels.CLOUD, Labels.CLOUD, Labels.CLOUD, Labels.DEVICE)[seed % 4],
        "optimizer": (Optimizer.ADAMW, Optimizer.SGD)[seed % 2],
        "base_dtype": list(BaseDtype)[seed // 4 % 3],
        "codec_cache": ("0", "0", "0", "0", "1MB")[seed % 5],
        "aggregation": (Aggregation.FEDAVG, Aggregation.FEDAVG, Aggregation.ROLORA)[seed // 2 % 3],
    }
    return settings(**changes)


@functools.cache
def in_calm(model: Path, wanted: TrainingSettings) -> dict[str, bytes]:
    """The adapter of an undisturbed run, which does not depend on its checkpoints."""
    fleet = WeatherFleet(model, wanted, edges=0 if wanted.federated else 2)
    fleet.run()
    return dict(fleet.versions[-1].sections)


def through(
    model: Path, seed: int, disks: Path, *, trains: TrainingSettings | None = None, **members: Any
) -> tuple[CrashFleet, Schedule]:
    """Run a seed's fleet through its schedule; raises with the schedule if it does not come to its end."""
    s = trains or wanted(seed)
    edges = [] if s.federated else ["edge-1", "edge-2"]
    packets = FEDERATED_PACKETS if s.federated else PACKETS
    schedule = Schedule(seed, ["a", "b", *edges, "cloud"], packets=packets)
    fleet = CrashFleet(model, s, disks=disks, fate=storm(seed), edges=len(edges), **members)

    def over(fleet: Any) -> bool:
        schedule.happen(fleet)
        if schedule.next_due < fleet.now:
            return False
        cloud = fleet.agents.get("cloud")
        return cloud is not None and cloud.role.finished

    try:
        with contextlib.closing(fleet):
            fleet.run(until=over, limit=LIMIT)
    except AssertionError as error:
        raise AssertionError(f"seed {seed} does not end: {error}\n{schedule}") from None
    return fleet, schedule


def run(model: Path, seed: int, disks: Path, trains: TrainingSettings | None = None) -> CrashFleet:
    """Run a seed's fleet through its schedule, and hold it to the undisturbed one."""
    fleet, schedule = through(model, seed, disks, trains=trains)
    s = trains or wanted(seed)
    steps = s.rounds * s.local_steps * 2
    told = f"seed {seed}\n{schedule}"
    assert fleet.report.ledger == {"expected": steps, "applied": steps, "lost": 0, "duplicated": 0}, told
    assert fleet.versions[-1].sections == in_calm(
        model, dataclasses.replace(s, checkpoint_every=s.local_steps)
    ), told
    if not schedule.forgets:
        # Only a broker without a memory makes the fleet do a round again; all else is made up for.
        assert [event for event in fleet.events if event.kind == "round_again"] == [], told
    return fleet


def test_a_round_that_is_taken_up_again_counts_its_time_from_there(model: Path, tmp_path: Path) -> None:
    fleet = CrashFleet(model, settings(rounds=1, local_steps=5), disks=tmp_path, schedule="every 1h")
    with contextlib.closing(fleet):
        fleet.run(until=lambda _: fleet.now > 5000)
        fleet.due()
        fleet.run(until=lambda _: any(row.round == 1 and row.step == 2 for row in fleet.metrics))
        fleet.kill("cloud")
        fleet.start("cloud")
        fleet.run()
    assert fleet.report.rounds[0]["wall_s"] < 1000


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory in memory, if there is one: syncing disks would take most of the time."""
    disks = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        yield disks
    finally:
        shutil.rmtree(disks)


@pytest.mark.parametrize("first", [n for n in range(SCHEDULES) if n % (LIKE * CHUNK) < LIKE])
def test_any_crash_ends_in_the_same_adapter(small_model: Path, first: int) -> None:
    for seed in range(FIRST + first, FIRST + min(SCHEDULES, first + LIKE * CHUNK), LIKE):
        with scratch() as disks:
            run(small_model, seed, disks)


@pytest.mark.parametrize("placement", [{"cut": (1, 3)}, {"cut": (3, 3), "labels": Labels.DEVICE}])
def test_so_it_does_with_two_tiers_and_with_whole_models(small_model: Path, placement: dict[str, Any]) -> None:
    for seed in range(FIRST, FIRST + SCHEDULES // 20):
        s = dataclasses.replace(wanted(seed), **({"labels": Labels.CLOUD} | placement))
        with scratch() as disks:
            run(small_model, seed, disks, s)


@pytest.mark.parametrize("seed", [2_203, 6_273, 6_423, 6_558, 110_106, 210_283])
def test_what_was_found_once_is_found_no_more(small_model: Path, seed: int, tmp_path: Path) -> None:
    run(small_model, seed, tmp_path)


@pytest.mark.parametrize("first", range(FIRST, FIRST + SCHEDULES // 10, CHUNK))
def test_with_impatience_every_crash_ends_with_a_clean_ledger(small_model: Path, first: int) -> None:
    for seed in range(first, min(first + CHUNK, FIRST + SCHEDULES // 10)):
        with scratch() as disks:
            fleet, schedule = through(small_model, seed, disks, stragglers=Stragglers.CARRY, step_timeout=6.0)
            told = f"seed {seed}\n{schedule}"
            left: set[str] = set()
            for row in fleet.report.rounds:
                left |= {each["device"] for each in row["dropped"]}
                assert {each["device"] for each in row["late"]} <= left, told
            ledger = fleet.report.ledger
            assert (ledger["lost"], ledger["duplicated"]) == (0, 0), told
