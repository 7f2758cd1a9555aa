"""Assignments: whose epoch outranks whose, and what is said again."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from iotsplit.plan import Labels, Tier, cut_model
from iotsplit.settings import TrainingSettings
from iotsplit.states import Birth
from iotsplit_cloud.desk import Desk
from iotsplit_cloud.members import Members
from iotsplit_cloud.versions import Library

LIBRARY = cast("Library", SimpleNamespace(current=SimpleNamespace(version=2), digest="abc"))
FIRST_EPOCH = 1000


def birth(agent: str, incarnation: int) -> Birth:
    return Birth(agent=agent, role=Tier.EDGE, model="m", online=True, incarnation=incarnation)


@pytest.fixture
def members() -> Members:
    made = Members(model="m", plans=cut_model(30, (4, 15), Labels.CLOUD))
    for agent, incarnation in (("e1", 5), ("e2", 6)):
        made.take(birth(agent, incarnation), 0.0)
    return made


@pytest.fixture
def desk(members: Members) -> Desk:
    return Desk(
        cloud="c",
        run="r",
        first_epoch=lambda: FIRST_EPOCH,
        settings=TrainingSettings(),
        members=members,
    )


def assign(desk: Desk, pairs: dict[str, str] | None = None, round_: str = "3") -> dict[str, Any]:
    return dict(desk.assign(pairs or {"d1": "e1"}, "train", round_, LIBRARY))


def test_an_assignment_names_the_session_the_version_and_the_start_of_its_edge(desk: Desk) -> None:
    made = assign(desk)["d1"]
    assert (made.session, made.round, made.task) == ("r-t3-d1", 3, "train")
    assert (made.edge, made.incarnation, made.cloud) == ("e1", 5, "c")
    assert (made.version, made.adapter, made.checkpoint) == (2, "abc", None)


def test_a_round_done_again_has_sessions_of_its_own_and_the_same_number(desk: Desk) -> None:
    made = assign(desk, round_="3r1")["d1"]
    assert (made.session, made.round) == ("r-t3r1-d1", 3)


def test_epochs_of_an_agent_grow_from_above_those_of_any_earlier_start(desk: Desk) -> None:
    first = assign(desk)["d1"]
    second = desk.move(first, "e2", checkpoint=0)
    third = desk.rest("d1")
    assert FIRST_EPOCH < first.epoch < second.epoch < third.epoch


def test_a_moved_session_is_the_same_under_a_later_epoch_at_another_edge(desk: Desk) -> None:
    first = assign(desk)["d1"]
    moved = desk.move(first, "e2", checkpoint=10)
    assert (moved.edge, moved.incarnation, moved.checkpoint) == ("e2", 6, 10)
    assert (moved.session, moved.version, moved.adapter) == (first.session, first.version, first.adapter)


def test_a_session_that_stays_after_a_restart_names_the_later_start(desk: Desk, members: Members) -> None:
    first = assign(desk)["d1"]
    members.take(birth("e1", 9), 1.0)
    assert (first.incarnation, desk.move(first, "e1", checkpoint=0).incarnation) == (5, 9)


def test_handing_out_lets_the_busy_rest_who_have_no_part_in_it(desk: Desk) -> None:
    desk.hand_out(assign(desk, {"d1": "e1", "d2": "e2"}), spared=())
    said = desk.hand_out(assign(desk, {"d2": "e1"}), spared=())
    assert [(each.device, each.task) for each in said] == [("d1", "idle"), ("d2", "train")]
    assert [(each.device, each.task) for each in desk.hand_out({}, spared=())] == [("d2", "idle")]


def test_what_is_said_again_is_the_newest_of_each(desk: Desk) -> None:
    assigned = assign(desk, {"d1": "e1", "d2": "e2"})
    desk.hand_out(assigned, spared=())
    moved = desk.move(assigned["d1"], "e2", checkpoint=0)
    refused = desk.rest("d3", problem="no")
    assert desk.all() == [moved, assigned["d2"], refused]


def test_assignments_of_an_earlier_start_are_gone_on_with(desk: Desk) -> None:
    earlier = assign(desk)
    desk.adopt(earlier)
    assert "d1" in desk
    assert desk.all() == list(earlier.values())
