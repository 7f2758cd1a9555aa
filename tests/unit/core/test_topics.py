"""Topics: every message has one, every topic of the fleet is taken apart, nothing else is."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.errors import MalformedMessageError, UsageError
from iotsplit.messages import (
    Contents,
    Message,
    Update,
    Want,
)
from iotsplit.plan import Tier
from iotsplit.states import Forget, State
from iotsplit.topics import DEPTHS, PATHS, Route, Topics, check_agent_id
from tests.unit.core.samples import CONTENTS, STATES, frame, ids, words

TOPICS = Topics("plant", "p7/line3/")
ROOT = "p7/line3/iotsplit/plant/"

MESSAGES: list[tuple[Message, Route]] = [
    (frame(Want(wanted="x")), Route("lan", ("e1", "d1", "r-t1-d1"))),
    (
        frame(Want(wanted="x"), tier=Tier.EDGE, to_tier=Tier.DEVICE, sender="e1", to="d1"),
        Route("lan", ("d1", "e1", "r-t1-d1")),
    ),
    (
        frame(Want(wanted="x"), tier=Tier.EDGE, to_tier=Tier.CLOUD, sender="e1", to="c"),
        Route("wan", ("c", "e1", "r-t1-d1")),
    ),
    (
        frame(Want(wanted="x"), tier=Tier.CLOUD, to_tier=Tier.EDGE, sender="c", to="e1"),
        Route("wan", ("e1", "c", "r-t1-d1")),
    ),
    (
        frame(Update(tier=Tier.EDGE, tokens=1, tensors=b""), tier=Tier.EDGE, to_tier=Tier.CLOUD, to="c"),
        Route("update", ("d1", "r-t1-d1", "edge")),
    ),
    (STATES[0], Route("state", ("d1",))),
    (STATES[1], Route("assign", ("d1",))),
    (STATES[3], Route("round", ())),
    (STATES[4], Route("adapter", ("2", "head"))),
    (STATES[5], Route("adapter", ("2", "5"))),
    (STATES[6], Route("adapter", ("latest",))),
    (STATES[7], Route("checkpoint", ("d1", "4.2", "head"))),
    (STATES[8], Route("checkpoint", ("d1", "4.2", "1"))),
    (STATES[9], Route("metrics", ("d1",))),
    (STATES[10], Route("events", ())),
    (STATES[11], Route("command", ())),
    (STATES[12], Route("command", ("x1",))),
    (Forget(path="adapter/2/5"), Route("adapter", ("2", "5"))),
]


@pytest.mark.parametrize(("message", "route"), MESSAGES, ids=lambda v: repr(v)[:40])
def test_a_message_is_said_where_it_is_looked_for(message: Message, route: Route) -> None:
    topic = TOPICS.topic_of(message)
    assert topic == ROOT + "/".join((route.first, *route.words))
    assert TOPICS.parse(topic) == route


def test_every_state_message_has_a_place() -> None:
    assert set(PATHS) == set(get_args(State))


def test_every_first_word_is_used_at_every_depth() -> None:
    used = {(route.first, len(route.words)) for _, route in MESSAGES}
    assert used == {(first, depth) for first, depths in DEPTHS.items() for depth in depths}


@pytest.mark.parametrize("content", CONTENTS, ids=lambda c: type(c).__name__)
@given(to=ids, sender=ids, session=words, tiers=st.permutations(list(Tier)))
def test_any_frame_lies_on_a_topic_of_its_fleet(
    content: Contents, to: str, sender: str, session: str, tiers: list[Tier]
) -> None:
    said = frame(content, to=to, sender=sender, session=session, tier=tiers[0], to_tier=tiers[1])
    route = TOPICS.parse(TOPICS.topic_of(said))
    if isinstance(content, Update) or tiers[:2] == [Tier.DEVICE, Tier.CLOUD]:
        assert route == Route("update", ("d1", session, tiers[0]))
    else:
        side = "wan" if Tier.CLOUD in tiers[:2] else "lan"
        assert route == Route(side, (to, sender, session))


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "iotsplit/plant/round",
        "p7/line3/iotsplit/plant2/round",
        "p7/line3/iotsplit/plant",
        ROOT,
        ROOT + "rounds",
        ROOT + "round/1",
        ROOT + "state",
        ROOT + "state/",
        ROOT + "state/a/b",
        ROOT + "lan/a/b",
        ROOT + "lan/a/b/c/d",
        ROOT + "lan/a//c",
        ROOT + "lan/a/b/ü",
        ROOT + "lan/a/b/x\n",
        ROOT + "lan/+/b/c",
        ROOT + "lan/a/b/" + "x" * 65,
        "$SYS/broker",
    ],
)
def test_foreign_topics_are_refused(topic: str) -> None:
    with pytest.raises(MalformedMessageError):
        TOPICS.parse(topic)


@given(st.text(max_size=40) | st.text("/+#abc.", max_size=20).map(lambda tail: ROOT + "lan/" + tail))
def test_any_topic_is_taken_apart_or_refused(topic: str) -> None:
    try:
        route = TOPICS.parse(topic)
    except MalformedMessageError:
        return
    assert "/".join((route.first, *route.words)) == topic.removeprefix(ROOT)


@pytest.mark.parametrize("fleet", ["", "a/b", "a b", "+", "#", "ü", "x" * 24, "a\n"])
def test_a_fleet_that_would_leave_its_root_is_refused(fleet: str) -> None:
    with pytest.raises(UsageError):
        Topics(fleet)


@pytest.mark.parametrize("prefix", ["plant7", "/", "a//", "+/", "a/#/", "$share/", "a\x00/", "/a/"])
def test_a_prefix_that_is_not_whole_words_is_refused(prefix: str) -> None:
    with pytest.raises(UsageError):
        Topics("plant", prefix)


@pytest.mark.parametrize("prefix", ["", "a/", "a/b c/", "line-3/ü/"])
def test_a_prefix_of_whole_words_is_put_in_front(prefix: str) -> None:
    assert Topics("plant", prefix).root == f"{prefix}iotsplit/plant/"


@given(ids)
def test_an_agent_id_of_the_allowed_characters_is_taken(agent: str) -> None:
    assert check_agent_id(agent) == agent


@pytest.mark.parametrize("agent", ["", "a/b", "+", "a.b", "x" * 24, "a\n"])
def test_an_agent_id_that_cannot_stand_in_a_topic_is_refused(agent: str) -> None:
    with pytest.raises(UsageError, match="agent id"):
        check_agent_id(agent)


def test_a_topic_has_at_most_five_slashes_of_ours() -> None:
    assert max(Topics("plant").topic_of(message).count("/") for message, _ in MESSAGES) <= 5
