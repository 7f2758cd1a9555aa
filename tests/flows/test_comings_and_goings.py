"""Who joins late, restarts, or is gone: rounds run with those who are there, and the report tells of it."""

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from iotsplit.errors import QuorumError
from iotsplit.packet import Packet
from iotsplit.settings import TrainingSettings
from iotsplit.states import Assignment, decode_state
from iotsplit_cloud.members import GRACE_S
from tests.flows.weather import WeatherFleet, settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick")]


class SpokenFleet(WeatherFleet):
    """Counts how often each topic was spoken on."""

    def __init__(self, model: Path, wanted: TrainingSettings) -> None:
        self.said: Counter[str] = Counter()
        super().__init__(model, wanted)

    def publish(self, packet: Packet) -> None:
        self.said[packet.topic] += 1
        super().publish(packet)


class Diary:
    """Notes every assignment that is said; a fate of `WeatherFleet`."""

    def __init__(self) -> None:
        self.trained: list[dict[str, str]] = []  # of each round: device to edge
        self._epochs: set[tuple[str, int]] = set()

    def __call__(self, name: str, packet: Packet) -> list[tuple[float, Packet]]:
        if "/assign/" in packet.topic and packet.payload:
            self._note(decode_state(packet.payload, Assignment))
        return [(0.0, packet)]

    def _note(self, said: Assignment) -> None:
        if said.task != "train" or (said.device, said.epoch) in self._epochs:
            return
        self._epochs.add((said.device, said.epoch))
        while len(self.trained) < said.round:
            self.trained.append({})
        self.trained[said.round - 1][said.device] = said.edge


def finished(fleet: WeatherFleet, rounds: int) -> bool:
    return kinds(fleet)["round_finished"] >= rounds


def kinds(fleet: WeatherFleet) -> Counter[str]:
    return Counter(event.kind for event in fleet.events)


def has(fleet: WeatherFleet, kind: str, agent: str, detail: str = "") -> bool:
    said = [event for event in fleet.events if (event.kind, event.agent) == (kind, agent)]
    return any(detail in event.detail for event in said)


def under_way(fleet: WeatherFleet, round_: int) -> bool:
    """The devices are in the midst of a round."""
    return any(row.round == round_ and row.step == 0 for row in fleet.metrics)


def devices_of(fleet: WeatherFleet) -> list[list[str]]:
    return [[session["device"] for session in row["sessions"]] for row in fleet.report.rounds]


def ledger(fleet: WeatherFleet) -> tuple[int, int]:
    return fleet.report.ledger["lost"], fleet.report.ledger["duplicated"]


def made(model: Path, wanted: TrainingSettings, devices: str = "ab", **members: Any) -> WeatherFleet:
    return WeatherFleet(model, wanted, devices, **members)


# --- who comes


def test_a_late_device_takes_the_current_version_from_what_is_retained_alone(model: Path) -> None:
    fleet = SpokenFleet(model, settings(rounds=3))
    fetched: list[str] = []

    def note(name: str, packet: Packet) -> list[tuple[float, Packet]]:
        if name == "late" and "/adapter/" in packet.topic:
            fetched.append(packet.topic)
        return [(0.0, packet)]

    fleet.fate = note
    fleet.run(until=lambda _: finished(fleet, 1))
    fleet.rejoin("late")
    fleet.run()
    assert [devices_of(fleet)[at] for at in (0, -1)] == [["a", "b"], ["a", "b", "late"]]
    assert ledger(fleet) == (0, 0)
    first = next(row["round"] for row in fleet.report.rounds if len(row["sessions"]) == 3)
    assert fetched[0] == f"iotsplit/test/adapter/{first - 1}/head"
    assert {fleet.said[topic] for topic in fetched} == {1}


@pytest.mark.parametrize("agent", ["edge-1", "a"])
def test_an_agent_that_restarts_between_rounds_takes_part_in_the_next(model: Path, agent: str) -> None:
    wanted = settings(rounds=3)
    calm = made(model, wanted)
    calm.run()
    fleet = made(model, wanted, schedule="every 1h")
    fleet.run(until=lambda _: kinds(fleet)["evaluated"] == 1)
    for round_ in range(1, 4):
        fleet.lose(agent)
        fleet.rejoin(agent)
        fleet.run(until=lambda _: not fleet.pending)
        fleet.due()
        fleet.run(until=lambda _, n=round_: finished(fleet, n))  # type: ignore[misc]  # the loop's own
    fleet.run()
    assert fleet.versions[-1].sections == calm.versions[-1].sections
    assert devices_of(fleet) == [["a", "b"]] * 3


# --- who goes


def test_a_device_that_is_gone_at_the_start_of_a_round_is_not_waited_for(model: Path) -> None:
    fleet = made(model, settings(), schedule="every 1h")
    fleet.run(until=lambda _: kinds(fleet)["evaluated"] == 1)
    fleet.lose("b")
    fleet.run(until=lambda _: has(fleet, "device_lost", "b"))
    started = fleet.now
    fleet.due()
    fleet.run(until=lambda _: finished(fleet, 1))
    assert fleet.now - started < GRACE_S
    assert fleet.report.rounds[0]["dropped"] == []
    assert devices_of(fleet) == [["a"]]


def test_a_device_lost_in_the_midst_of_a_round_ends_its_session_only(model: Path) -> None:
    fleet = made(model, settings(rounds=3))
    fleet.run(until=lambda _: under_way(fleet, 1))
    fleet.lose("b")
    fleet.run()
    assert devices_of(fleet) == [["a"]] * 3
    assert fleet.report.rounds[0]["dropped"] == [{"device": "b", "reason": "b is gone"}]
    assert has(fleet, "device_lost", "b")
    assert has(fleet, "session_dropped", "b", "gone")
    assert ledger(fleet) == (0, 0)


def test_the_other_edge_takes_over_the_sessions_of_a_lost_one_where_they_are(model: Path) -> None:
    wanted = settings(rounds=2, local_steps=6, checkpoint_every=2)
    calm = made(model, wanted, "abcd", edges=2)
    calm.run()
    fleet = made(model, wanted, "abcd", edges=2)
    diary = Diary()
    fleet.fate = diary
    fleet.run(until=lambda _: any(row.round == 1 and row.step == 3 for row in fleet.metrics))
    before = dict(diary.trained[0])
    fleet.lose("edge-2")
    fleet.run()
    its = sorted(device for device, edge in before.items() if edge == "edge-2")
    assert sorted(event.agent for event in fleet.events if event.kind == "session_moved") == its
    assert set(diary.trained[0].values()) == set(diary.trained[1].values()) == {"edge-1"}
    assert devices_of(fleet) == [list("abcd")] * 2
    assert has(fleet, "edge_lost", "edge-2")
    assert ledger(fleet) == (0, 0)
    assert fleet.versions[-1].sections == calm.versions[-1].sections


def test_a_fleet_that_does_not_come_together_is_given_up(model: Path) -> None:
    fleet = made(model, settings(), wait_timeout=60.0)
    fleet.lose("b")
    with pytest.raises(QuorumError, match="1 devices"):
        fleet.run()
    assert 60 < fleet.now < 120


def test_who_has_been_together_may_be_away_for_hours(model: Path) -> None:
    fleet = made(model, settings(), wait_timeout=60.0, schedule="every 1h")
    fleet.run(until=lambda _: kinds(fleet)["evaluated"] == 1)
    fleet.due()
    fleet.run(until=lambda _: finished(fleet, 1))
    for name in "ab":
        fleet.lose(name)
    fleet.run(until=lambda _: fleet.now > 7200)
    for name in "ab":
        fleet.rejoin(name)
    fleet.run(until=lambda _: not fleet.pending)
    fleet.due()
    fleet.run()
    assert devices_of(fleet) == [["a", "b"]] * 2


def test_sessions_wait_for_an_edge_when_none_is_left(model: Path) -> None:
    calm = made(model, settings())
    calm.run()
    fleet = made(model, settings())
    fleet.run(until=lambda _: under_way(fleet, 1))
    fleet.lose("edge-1")
    fleet.run(until=lambda _: fleet.now > 60)
    fleet.rejoin("edge-1")
    fleet.run()
    assert devices_of(fleet) == [["a", "b"]] * 2
    assert fleet.versions[-1].sections == calm.versions[-1].sections


def test_an_edge_on_standby_takes_over_when_no_other_is_left_and_rests_when_one_is(model: Path) -> None:
    wanted = settings(rounds=3)
    calm = made(model, wanted)
    calm.run()
    fleet = made(model, wanted, schedule="every 1h")
    diary = Diary()
    fleet.fate = diary
    standby = fleet.make_edge("a-standby")
    standby.birth = msgspec.structs.replace(standby.birth, standby=True)
    fleet.join(standby)
    fleet.run(until=lambda _: kinds(fleet)["evaluated"] == 1)
    fleet.due()
    fleet.run(until=lambda _: under_way(fleet, 1))
    fleet.lose("edge-1")
    fleet.run(until=lambda _: finished(fleet, 1))
    fleet.due()
    fleet.run(until=lambda _: finished(fleet, 2))
    fleet.rejoin("edge-1")
    fleet.run(until=lambda _: not fleet.pending)
    fleet.due()
    fleet.run()
    assert [set(row.values()) for row in diary.trained] == [{"a-standby"}, {"a-standby"}, {"edge-1"}]
    assert fleet.versions[-1].sections == calm.versions[-1].sections


def test_a_round_that_loses_its_only_edge_for_good_ends_without_a_version(model: Path) -> None:
    fleet = made(model, settings(rounds=2))
    fleet.run(until=lambda _: under_way(fleet, 1))
    fleet.lose("edge-1")
    gone = [("session_dropped", device, "no edge is left") for device in "ab"]
    fleet.run(until=lambda _: all(has(fleet, *each) for each in gone))
    fleet.rejoin("edge-1")
    fleet.run()
    assert devices_of(fleet) == [[], ["a", "b"]]
    assert [row["adapter_version"] for row in fleet.report.rounds] == [0, 1]


def test_a_cloud_that_starts_anew_goes_on_with_the_agents_that_are_there(model: Path) -> None:
    fleet = made(model, settings())
    fleet.run(until=lambda _: under_way(fleet, 1))
    fleet.lose("cloud")
    fleet.restart_cloud("second")
    fleet.run()
    assert devices_of(fleet) == [["a", "b"]] * 2
    assert ledger(fleet) == (0, 0)


# --- whose turn it is


@pytest.mark.parametrize(("devices", "edges", "each"), [("abcdef", 2, 1), ("abcde", 2, 1), ("abc", 1, 2)])
def test_rounds_pick_equal_numbers_per_edge_and_all_get_their_turn(
    model: Path, devices: str, edges: int, each: int
) -> None:
    rounds = len(devices)
    fleet = made(model, settings(rounds=rounds, local_steps=1), devices, edges=edges, devices_per_edge=each)
    diary = Diary()
    fleet.fate = diary
    fleet.run()
    assert [sorted(row) for row in diary.trained] == devices_of(fleet)
    for row in diary.trained:
        assert Counter(row.values()) == {f"edge-{n}": each for n in range(1, edges + 1)}
    turns = Counter(device for row in diary.trained for device in row)
    assert turns == dict.fromkeys(devices, edges * each)
