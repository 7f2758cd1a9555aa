"""Who is in the fleet: births, wills in the wrong order, silence, grace, refusals."""

from typing import Any

import pytest

from iotsplit.plan import Labels, Tier, cut_model
from iotsplit.states import PROTOCOL_VERSION, Birth
from iotsplit_cloud.members import GRACE_S, OPENING_S, SILENCE_S, Members

PLANS = cut_model(30, (4, 15), Labels.CLOUD)


def birth(agent: str = "d1", incarnation: int = 5, *, online: bool = True, **changes: Any) -> Birth:
    fields: dict[str, Any] = {"role": Tier.DEVICE, "model": "m"} | changes
    return Birth(agent=agent, incarnation=incarnation, online=online, **fields)


def members(*births: Birth) -> Members:
    made = Members(model="m", plans=PLANS)
    for each in births:
        made.take(each, 0.0)
    return made


def test_a_first_birth_joins() -> None:
    made = members()
    assert made.take(birth(), 0.0) == "joined"
    assert "d1" in made
    assert made["d1"].birth == birth()
    assert made.present(Tier.DEVICE) == ["d1"]


def test_a_birth_said_again_means_nothing_new() -> None:
    assert members(birth()).take(birth(threads=2), 1.0) == ""


def test_a_will_loses_an_agent_once() -> None:
    made = members(birth())
    assert made.take(birth(online=False), 1.0) == "lost"
    assert made.take(birth(online=False), 2.0) == ""
    assert made.present(Tier.DEVICE) == []
    assert made["d1"].lost_at == 1.0


def test_the_will_of_an_older_start_that_comes_after_the_birth_says_nothing() -> None:
    made = members(birth(incarnation=5))
    assert made.take(birth(incarnation=6), 1.0) == "restarted"
    assert made.take(birth(incarnation=5, online=False), 2.0) == ""
    assert made.present(Tier.DEVICE) == ["d1"]


def test_the_birth_of_an_older_start_says_nothing() -> None:
    made = members(birth(incarnation=6))
    assert made.take(birth(incarnation=5, threads=9), 1.0) == ""
    assert made["d1"].birth.threads == 1


def test_the_will_of_a_stranger_says_nothing() -> None:
    made = members()
    assert made.take(birth(online=False), 0.0) == ""
    assert "d1" not in made


def test_a_birth_after_the_will_of_the_same_start_is_a_return() -> None:
    made = members(birth())
    made.take(birth(online=False), 1.0)
    assert made.take(birth(), 2.0) == "back"
    assert made.present(Tier.DEVICE) == ["d1"]


def test_a_sign_of_life_brings_a_lost_agent_back() -> None:
    made = members(birth())
    made.take(birth(online=False), 1.0)
    assert made.heard("d1", 2.0)
    assert not made.heard("d1", 3.0)
    assert made.present(Tier.DEVICE) == ["d1"]


def test_an_agent_that_left_with_a_problem_does_not_come_back_by_old_news() -> None:
    made = members(birth())
    assert made.take(birth(online=False, problem="disk full"), 1.0) == "lost"
    assert made["d1"].birth.problem == "disk full"
    assert not made.heard("d1", 2.0)
    assert made.present(Tier.DEVICE) == []
    assert made.take(birth(incarnation=6), 3.0) == "restarted"


def test_nobody_hears_a_stranger() -> None:
    assert not members().heard("d1", 0.0)


def test_silence_loses_an_agent_once() -> None:
    made = members(birth("d1"), birth("d2"))
    made.heard("d2", SILENCE_S)
    assert made.silent(SILENCE_S) == []
    assert made.silent(SILENCE_S + 0.1) == ["d1"]
    assert made.silent(SILENCE_S + 0.2) == []
    assert made.present(Tier.DEVICE) == ["d2"]


def test_sessions_of_a_lost_agent_have_a_time_of_grace() -> None:
    made = members(birth())
    made.take(birth(online=False), 100.0)
    assert not made.gone("d1", 100.0 + GRACE_S - 0.1)
    assert made.gone("d1", 100.0 + GRACE_S)


def test_who_comes_back_within_grace_is_not_gone() -> None:
    made = members(birth())
    made.take(birth(online=False), 100.0)
    made.heard("d1", 105.0)
    assert not made.gone("d1", 1000.0)


def test_a_stranger_is_gone_once_the_cloud_has_listened_for_a_while_and_who_is_there_is_not() -> None:
    made = members(birth())
    made.opened_at = 100.0
    assert not made.gone("d2", 100.0 + OPENING_S - 0.1)
    assert made.gone("d2", 100.0 + OPENING_S)
    assert not made.gone("d1", 1e9)


def test_an_agent_has_the_incarnation_of_its_latest_start() -> None:
    made = members(birth(incarnation=5), birth(incarnation=6), birth(incarnation=4))
    assert (made.incarnation("d1"), made.incarnation("d2")) == (6, 0)


def test_agents_are_listed_by_tier_and_id() -> None:
    made = members(birth("d2"), birth("e1", role=Tier.EDGE), birth("d1"))
    assert made.present(Tier.DEVICE) == ["d1", "d2"]
    assert made.present(Tier.EDGE) == ["e1"]
    assert [member.birth.agent for member in made.all()] == ["d1", "d2", "e1"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"protocol": PROTOCOL_VERSION + 1}, "protocol"),
        ({"model": "other"}, "its model is other"),
        ({"model": ""}, "its model is unknown"),
        ({"part": "0-4"}, "layers 0-4, this fleet's device needs 0-3"),
        ({"role": Tier.CLOUD, "part": "15-29"}, "needs 15-29 + head"),
    ],
)
def test_who_cannot_work_here_is_refused_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    made = members(birth(**changes))
    assert reason in made.refusal(birth(**changes))
    assert made.present(birth(**changes).role) == []


@pytest.mark.parametrize("part", ["all", "0-3"])
def test_who_holds_the_whole_model_or_its_part_can_work(part: str) -> None:
    assert members().refusal(birth(part=part)) == ""


# --- edges


def edge(agent: str, **changes: Any) -> Birth:
    return birth(agent, role=Tier.EDGE, **changes)


def test_a_session_goes_to_the_edge_with_the_fewest() -> None:
    made = members(edge("e1"), edge("e2"), edge("e3"))
    assert made.edge_with_room({"e1": 2, "e2": 1, "e3": 1}) == "e2"


def test_an_edge_without_room_gets_no_session() -> None:
    made = members(edge("e1", max_sessions=1), edge("e2"))
    assert made.edge_with_room({"e1": 1, "e2": 5}) == "e2"
    assert members(edge("e1", max_sessions=1)).edge_with_room({"e1": 1}) is None


def test_an_edge_on_standby_gets_what_no_other_has_room_for() -> None:
    made = members(edge("a-standby", standby=True), edge("e1", max_sessions=1))
    assert made.edge_with_room({}) == "e1"
    assert made.edge_with_room({"e1": 1}) == "a-standby"
    assert made.edge_with_room({"e1": 1, "a-standby": 1}) == "a-standby"


def test_rounds_are_dealt_to_edges_on_standby_only_when_there_is_no_other() -> None:
    both = members(edge("e1"), edge("e2", standby=True))
    assert both.edges(standby=True) == ["e1"]
    alone = members(edge("e2", standby=True))
    assert alone.edges(standby=True) == ["e2"]
    assert alone.edges(standby=False) == []


def test_only_edges_that_say_so_have_a_limit() -> None:
    assert members(edge("e1", max_sessions=3), edge("e2")).rooms() == {"e1": 3}
