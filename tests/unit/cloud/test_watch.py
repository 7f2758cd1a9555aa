"""When the cloud moves a session, when it lets one go, and when it says an assignment again."""

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from iotsplit.plan import Labels, Tier, cut_model
from iotsplit.role import Output
from iotsplit.session import Backup
from iotsplit.settings import FleetSettings, Stragglers, TrainingSettings
from iotsplit.states import Assignment, Birth, Event
from iotsplit_cloud.caches import Caches
from iotsplit_cloud.carried import Carried
from iotsplit_cloud.desk import Desk
from iotsplit_cloud.members import GRACE_S, OPENING_S, Members
from iotsplit_cloud.sessions import CloudSession, new_sessions
from iotsplit_cloud.versions import Library
from iotsplit_cloud.watch import REMIND_S, Activity, Watch

LIBRARY = cast("Library", SimpleNamespace(current=SimpleNamespace(version=2), digest="abc"))
SETTINGS = TrainingSettings(checkpoint_every=5)
TIMEOUT_S = 120.0


@dataclass
class Round:
    """What is under way, as far as a watch looks at it."""

    sessions: dict[str, CloudSession]
    late: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    step: int = 7

    def waits_for(self) -> list[str]:
        return [device for device in self.late if device in self.sessions]

    def move(self, assignment: Assignment, now: float) -> None:
        self.sessions[assignment.device].move_to(assignment, self.step, now)

    def drop(self, device: str, reason: str, now: float) -> list[Output]:
        del now, self.sessions[device]
        self.dropped[device] = reason
        return []


class Fleet:
    """Edges e1 and e2, devices, and a watch over their sessions; the cloud opened at time 0."""

    def __init__(self, pairs: dict[str, str], **fleet: Any) -> None:
        self.members = Members(model="m", plans=cut_model(30, (4, 15), Labels.CLOUD))
        for edge in ("e1", "e2"):
            self.birth(edge, Tier.EDGE)
        for device in pairs:
            self.birth(device, Tier.DEVICE)
        desk = Desk(cloud="c", run="r", first_epoch=lambda: 1, settings=SETTINGS, members=self.members)
        self.round = Round(new_sessions(desk.assign(pairs, "train", "1", LIBRARY), SETTINGS, 0.0))
        self.carried = Carried(SETTINGS, lambda _, update, since: update, Caches(SETTINGS, {}))
        settings = FleetSettings(step_timeout=TIMEOUT_S, **fleet)
        self.watch = Watch(self.members, settings, desk, self.carried)

    def birth(
        self, agent: str, role: Tier, incarnation: int = 1, now: float = 0.0, *, online: bool = True
    ) -> None:
        birth = Birth(agent=agent, role=role, model="m", online=online, incarnation=incarnation)
        self.members.take(birth, now)

    def lose(self, agent: str, now: float) -> None:
        self.birth(agent, self.members[agent].birth.role, now=now, online=False)

    def look(self, now: float) -> list[Output]:
        return self.watch.look(cast("Activity", self.round), now)

    def edges(self) -> dict[str, str]:
        return {device: session.assignment.edge for device, session in self.round.sessions.items()}


@pytest.fixture
def fleet() -> Fleet:
    return Fleet({"d1": "e1", "d2": "e2"})


def test_while_all_are_there_nothing_is_said(fleet: Fleet) -> None:
    assert fleet.look(1.0) == []


# --- moved


def test_a_session_whose_edge_is_lost_goes_to_another_once_grace_is_over(fleet: Fleet) -> None:
    fleet.lose("e1", 1.0)
    assert fleet.look(1.0 + GRACE_S - 0.1) == []
    (moved,) = fleet.look(1.0 + GRACE_S)
    assert isinstance(moved, Assignment)
    assert (moved.device, moved.edge) == ("d1", "e2")
    assert fleet.edges() == {"d1": "e2", "d2": "e2"}
    assert fleet.look(1.0 + GRACE_S) == []


def test_a_move_names_the_newest_checkpoint_that_the_lost_edge_has_told_of(fleet: Fleet) -> None:
    fleet.round.sessions["d1"].backup.learn(Tier.EDGE, 15)
    fleet.lose("e1", 1.0)
    (moved,) = fleet.look(1.0 + GRACE_S)
    assert isinstance(moved, Assignment)
    assert moved.checkpoint == 15


def test_an_edge_that_comes_back_in_time_keeps_its_sessions(fleet: Fleet) -> None:
    fleet.lose("e1", 1.0)
    fleet.birth("e1", Tier.EDGE, now=2.0)
    assert fleet.look(1.0 + GRACE_S) == []


def test_an_edge_that_has_restarted_gets_its_session_again_at_once_under_a_later_epoch(fleet: Fleet) -> None:
    before = fleet.round.sessions["d1"].assignment
    fleet.birth("e1", Tier.EDGE, incarnation=2, now=1.0)
    (moved,) = fleet.look(1.0)
    assert isinstance(moved, Assignment)
    assert (moved.edge, moved.incarnation) == ("e1", 2)
    assert moved.epoch > before.epoch


def test_sessions_go_where_fewest_are() -> None:
    fleet = Fleet({"d1": "e1", "d2": "e1", "d3": "e2", "d4": "e2", "d5": "e2"})
    fleet.birth("e3", Tier.EDGE)
    fleet.lose("e2", 1.0)
    fleet.look(1.0 + GRACE_S)
    assert fleet.edges() == {"d1": "e1", "d2": "e1", "d3": "e3", "d4": "e3", "d5": "e1"}


def test_after_a_restart_of_the_cloud_edges_have_time_to_be_heard(fleet: Fleet) -> None:
    fleet.round.sessions["d1"].backup.reassign(
        Assignment(device="d1", task="train", session="s", epoch=1, edge="e9", incarnation=1)
    )
    assert fleet.look(OPENING_S - 0.1) == []
    (moved,) = fleet.look(OPENING_S)
    assert isinstance(moved, Assignment)
    assert moved.edge == "e1"


# --- dropped


def dropped(fleet: Fleet, now: float) -> list[tuple[str, str]]:
    said = fleet.look(now)
    return [
        (each.agent, each.detail) for each in said if isinstance(each, Event) and each.kind == "session_dropped"
    ]


def test_a_session_that_holds_up_the_others_too_long_is_dropped_and_its_device_rests(fleet: Fleet) -> None:
    fleet.round.late = ["d1"]
    assert dropped(fleet, TIMEOUT_S) == []
    said = fleet.look(TIMEOUT_S + 0.1)
    assert Event(kind="session_dropped", agent="d1", detail="nothing came for 120 s") in said
    assert [(each.device, each.task) for each in said if isinstance(each, Assignment)] == [("d1", "idle")]
    assert list(fleet.round.sessions) == ["d2"]


def test_a_session_that_nobody_waits_for_is_not_dropped(fleet: Fleet) -> None:
    assert dropped(fleet, 10 * TIMEOUT_S) == []


def test_what_is_new_puts_the_end_off(fleet: Fleet) -> None:
    fleet.round.late = ["d1"]
    fleet.round.sessions["d1"].progress(50.0)
    assert dropped(fleet, TIMEOUT_S + 0.1) == []
    assert dropped(fleet, 50.0 + TIMEOUT_S + 0.1) == [("d1", "nothing came for 120 s")]


def test_the_reason_names_who_is_gone(fleet: Fleet) -> None:
    fleet.round.late = ["d1"]
    fleet.lose("d1", 1.0)
    assert dropped(fleet, TIMEOUT_S + 0.1) == [("d1", "d1 is gone")]


def test_who_shall_wait_waits_for_as_long_as_it_takes() -> None:
    fleet = Fleet({"d1": "e1"}, stragglers=Stragglers.WAIT)
    fleet.round.late = ["d1"]
    assert dropped(fleet, 100 * TIMEOUT_S) == []


def test_without_an_edge_a_session_waits_and_is_dropped_in_the_end(fleet: Fleet) -> None:
    fleet.round.late = ["d1", "d2"]
    for edge in ("e1", "e2"):
        fleet.lose(edge, 1.0)
    assert dropped(fleet, 1.0 + GRACE_S) == []
    assert fleet.edges() == {"d1": "e1", "d2": "e2"}
    assert dropped(fleet, TIMEOUT_S + 0.1) == [("d1", "no edge is left"), ("d2", "no edge is left")]


# --- said again


def test_a_session_that_brings_nothing_is_told_its_assignment_again_and_again(fleet: Fleet) -> None:
    for session in fleet.round.sessions.values():
        session.expect("activation", 0, 0, 0.0)
    fleet.round.sessions["d2"].progress(15.0)
    assert fleet.look(REMIND_S - 0.1) == []
    assert fleet.look(REMIND_S) == [fleet.round.sessions["d1"].assignment]
    assert fleet.look(REMIND_S + 0.1) == []
    assert fleet.round.sessions["d1"].assignment in fleet.look(2 * REMIND_S)


# --- the story of a move


def moved_session() -> CloudSession:
    first = Assignment(device="d1", task="train", session="s", epoch=5, edge="e1", cloud="c")
    session = CloudSession(backup=Backup(first, Tier.CLOUD, every=5), progress_at=0.0)
    later = Assignment(device="d1", task="train", session="s", epoch=6, edge="e2", cloud="c")
    session.move_to(later, 12, 100.0)
    return session


def test_a_move_is_told_once_when_the_session_brings_something_new() -> None:
    session = moved_session()
    assert session.arrival() == []
    assert session.move is not None
    session.move.resumed = 10
    session.progress(103.5)
    (said,) = session.arrival()
    assert isinstance(said, Event)
    assert (said.kind, said.agent) == ("session_moved", "d1")
    assert json.loads(said.detail) == {
        "from": "e1",
        "to": "e2",
        "epoch": 6,
        "steps_replayed": 2,
        "seconds": 3.5,
    }
    assert session.arrival() == []


def test_a_second_move_on_the_way_counts_from_the_first() -> None:
    session = moved_session()
    session.move_to(Assignment(device="d1", task="train", session="s", epoch=7, edge="e3"), 12, 110.0)
    session.progress(111.0)
    (said,) = session.arrival()
    assert isinstance(said, Event)
    assert json.loads(said.detail)["seconds"] == 11.0
