"""Samples that both ends of a hop remember: fewer bytes, the same bits whatever dies, a way out of a loss."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from iotsplit.packet import Packet
from iotsplit.plan import Labels
from iotsplit.settings import TrainingSettings
from tests.flows.crashes import CrashFleet
from tests.flows.test_crashes import FIRST, SCHEDULES, in_calm, run, scratch, wanted
from tests.flows.weather import WeatherFleet, settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick", "unmeasured")]

CACHED = settings(cut=(1, 2), rounds=3, local_steps=5, codec_cache="1MB", checkpoint_every=2)


def bytes_up(wanted: TrainingSettings, model: Path) -> list[int]:
    """What activations of each round take over both hops."""
    fleet = WeatherFleet(model, wanted, edges=2)
    fleet.run()
    hops = [
        (row["bytes"]["device_edge"]["up"], row["bytes"]["edge_cloud"]["up"]) for row in fleet.report.rounds
    ]
    return [sum(hop) for hop in hops]


def test_once_everything_was_sent_only_changes_are(small_model: Path) -> None:
    cached = bytes_up(CACHED, small_model)
    plain = bytes_up(dataclasses.replace(CACHED, codec_cache="0"), small_model)
    assert cached[0] > plain[0]  # samples have numbers
    assert max(cached[1:]) < plain[1] / 2


def test_a_cache_that_is_too_small_still_takes_what_fits(small_model: Path) -> None:
    some = bytes_up(dataclasses.replace(CACHED, codec_cache="800B"), small_model)
    everything = bytes_up(CACHED, small_model)
    nothing = bytes_up(dataclasses.replace(CACHED, codec_cache="1B"), small_model)
    assert everything[2] < some[2] < nothing[2]


@pytest.mark.parametrize(
    "changes", [{"labels": Labels.DEVICE}, {"cut": (1, 3)}, {"codec": "int4:int2"}], ids=str
)
def test_every_placement_and_codec_trains(model: Path, changes: dict[str, Any]) -> None:
    fleet = WeatherFleet(model, dataclasses.replace(CACHED, **changes))
    fleet.run()
    assert fleet.report.ledger == {"expected": 30, "applied": 30, "lost": 0, "duplicated": 0}
    assert fleet.report.eval["after"]["loss"] < fleet.report.eval["before"]["loss"]


def until(fleet: Any, round_: int, step: int) -> bool:
    return any((row.round, row.step) == (round_, step) for row in fleet.metrics)


@pytest.mark.parametrize("between", [True, False], ids=["between rounds", "in a round"])
def test_an_edge_asks_for_what_it_has_lost_and_nothing_changes(
    small_model: Path, tmp_path: Path, between: bool
) -> None:
    fleet = CrashFleet(small_model, CACHED, disks=tmp_path, edges=1)
    asked: list[str] = []
    publish = fleet.publish

    def watched(packet: Packet) -> None:
        asked.extend(kind for kind in ("device_rows", "cloud_rows") if kind.encode() in packet.payload)
        publish(packet)

    fleet.publish = watched  # type: ignore[method-assign]
    with contextlib.closing(fleet):
        fleet.run(until=lambda fleet: until(fleet, 2, 0 if between else 3))
        assert not asked
        fleet.kill("edge-1")
        fleet.start("edge-1")
        fleet.run()
    assert set(asked) == {"device_rows", "cloud_rows"}
    assert fleet.versions[-1].sections == in_calm(small_model, dataclasses.replace(CACHED, checkpoint_every=5))
    assert fleet.report.ledger == {"expected": 30, "applied": 30, "lost": 0, "duplicated": 0}


def test_a_device_that_does_not_come_any_more_is_forgotten(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iotsplit.cache.ROUNDS", 2)
    fleet = WeatherFleet(small_model, dataclasses.replace(CACHED, rounds=5))
    edge: Any = fleet.agents["edge-1"].role
    role: Any = fleet.agents["cloud"].role
    cloud = role._p.caches
    fleet.run(until=lambda fleet: until(fleet, 2, 0))
    fleet.lose("b")
    fleet.run(until=lambda fleet: until(fleet, 3, 4))
    assert set(edge._caches) == set(cloud._caches) == {"a", "b"}
    fleet.run(until=lambda fleet: until(fleet, 4, 0))
    assert set(edge._caches) == set(cloud._caches) == {"a"}
    fleet.rejoin("b")
    fleet.run()
    assert [len(row["sessions"]) for row in fleet.report.rounds] == [2, 1, 1, 1, 2]
    assert fleet.report.ledger["lost"] == fleet.report.ledger["duplicated"] == 0


@pytest.mark.parametrize("agent", ["a", "cloud"])
def test_who_has_lost_its_disk_begins_with_nothing_and_the_round_goes_on(
    small_model: Path, tmp_path: Path, agent: str
) -> None:
    fleet = CrashFleet(small_model, CACHED, disks=tmp_path)
    with contextlib.closing(fleet):
        fleet.run(until=lambda fleet: until(fleet, 2, 3))
        fleet.kill(agent)
        (file,) = tmp_path.glob(f"{agent}/**/samples.db")
        for each in file.parent.glob("samples.db*"):
            each.unlink()
        fleet.start(agent)
        fleet.run()
    again = [event for event in fleet.events if event.kind == "round_again"]
    assert len(again) == (agent == "cloud")
    assert all("remembered" in event.detail for event in again)
    assert fleet.report.ledger == {"expected": 30, "applied": 30, "lost": 0, "duplicated": 0}
    assert [row["dropped"] for row in fleet.report.rounds] == [[], [], []]


def agree(fleet: Any) -> int:
    """See that both ends of each hop hold the same if a session goes on from it; how many rows they share."""
    shared = 0
    edges = [agent.role for name, agent in fleet.agents.items() if name.startswith("edge")]
    for device in fleet.agents.keys() & {"a", "b"}:
        own = fleet.agents[device].role._cache
        cloud = fleet.agents["cloud"].role._p.caches._caches[device]
        newest = cloud.newest
        for edge in [edge._caches[device] for edge in edges if device in edge._caches]:
            for ours, theirs in ((own, edge.below), (cloud, edge.above)):
                for end in (ours, theirs):
                    end.begin("next", newest)
                both = [sample for sample in range(5) if sample in ours and sample in theirs]
                assert all(ours[sample] == theirs[sample] for sample in both)
                shared += len(both)
    return shared


@pytest.mark.parametrize("loses", [True, False], ids=["with its disk", "alone"])
@pytest.mark.parametrize("step", [0, 1])
def test_a_device_that_dies_early_in_a_round_holds_what_others_hold(
    small_model: Path, tmp_path: Path, loses: bool, step: int
) -> None:
    s = dataclasses.replace(CACHED, rounds=4, local_steps=2, checkpoint_every=2)  # no sample twice in a round
    fleet = CrashFleet(small_model, s, disks=tmp_path)
    with contextlib.closing(fleet):
        fleet.run(until=lambda fleet: until(fleet, 3, step))
        fleet.kill("a")
        for each in tmp_path.glob("a/samples.db*"):
            if loses:
                each.unlink()
        fleet.start("a")
        fleet.run()
    assert agree(fleet) >= 10
    assert fleet.report.ledger == {"expected": 16, "applied": 16, "lost": 0, "duplicated": 0}


def test_after_any_crash_both_ends_hold_the_same(small_model: Path) -> None:
    # test_crashes has more of them, in two rounds.
    for seed in range(FIRST, FIRST + SCHEDULES // 100):
        with scratch() as disks:
            s = dataclasses.replace(wanted(seed), codec_cache="1MB", rounds=3)
            agree(run(small_model, seed, disks, s))
