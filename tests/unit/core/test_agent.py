"""An agent: what it counts, drops, stamps and keeps."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from iotsplit.agent import MAX_SESSIONS_COUNTED, STATE_EVERY, Agent
from iotsplit.errors import MalformedMessageError
from iotsplit.mailbox import Mailbox
from iotsplit.messages import Message, Want
from iotsplit.packet import Packet
from iotsplit.plan import Tier
from iotsplit.role import Local, Output, Refused
from iotsplit.states import Assignment, Birth, Event, Metrics, encode_state
from iotsplit.topics import Topics
from tests.unit.core.samples import frame

GARBAGE = Packet(topic="iotsplit/plant/round", payload=b"{")


@dataclass(frozen=True)
class Note(Local):
    """Something that stays on this machine."""


class Picky:
    """A role that accepts nothing."""

    agent = "d1"
    tier = Tier.DEVICE
    interests = frozenset({"assign/d1"})
    finished = False

    def __init__(self) -> None:
        self.birth = Birth(agent="d1", role=Tier.DEVICE, online=True, incarnation=1)

    def handle(self, message: Message, now: float) -> Sequence[Output]:
        raise MalformedMessageError("I want none of it")

    def tick(self, now: float) -> Sequence[Output]:
        raise MalformedMessageError("nor what I have held")

    def reconnected(self, now: float) -> Sequence[Output]:
        return []

    def next_tick(self, now: float) -> float:
        return now


@pytest.fixture
def kept() -> list[object]:
    return []


@pytest.fixture
def complaints() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def agent(kept: list[object], complaints: list[tuple[str, str]]) -> Agent:
    return Agent(
        Picky(),
        Mailbox(Topics("plant"), "d1"),
        sink=kept.append,
        complain=lambda origin, reason: complaints.append((origin, reason)),
        wall=lambda: 99.0,
    )


def metrics_of(agent: Agent, session: str | None) -> Metrics:
    (packet,) = agent.encode([Metrics(agent="d1", role=Tier.DEVICE, session=session)])
    said = Mailbox(Topics("plant"), "x").incoming(packet)
    assert isinstance(said, Metrics)
    return said


def test_garbage_is_counted_each_time_and_complained_about_once(
    agent: Agent, complaints: list[tuple[str, str]]
) -> None:
    assert [agent.decode(GARBAGE), agent.decode(GARBAGE)] == [None, None]
    assert agent.dropped == 2
    ((origin, reason),) = complaints
    assert origin == GARBAGE.topic
    assert "malformed" in reason


def test_complaints_do_not_grow_without_end(agent: Agent, complaints: list[tuple[str, str]]) -> None:
    for number in range(MAX_SESSIONS_COUNTED + 5):
        agent.drop(f"topic {number}", MalformedMessageError("x"))
    assert len(complaints) == MAX_SESSIONS_COUNTED
    assert agent.dropped == MAX_SESSIONS_COUNTED + 5


def test_what_the_role_refuses_is_dropped_and_answered_with_nothing(
    agent: Agent, complaints: list[tuple[str, str]]
) -> None:
    assert agent.handle(Event(kind="x", agent="e1"), 0.0) == []
    assert agent.dropped == 1
    assert complaints == [("iotsplit/plant/events", "malformed message: I want none of it")]


def test_what_the_role_refuses_of_what_it_has_held_is_dropped_too(
    agent: Agent, complaints: list[tuple[str, str]]
) -> None:
    assert agent.tick(0.0) == []
    assert agent.dropped == 1
    assert complaints == [("what was held", "malformed message: nor what I have held")]


def test_a_refused_frame_is_dropped_and_what_is_said_beside_it_is_not(
    agent: Agent, kept: list[object], complaints: list[tuple[str, str]]
) -> None:
    said = frame(Want(wanted="gradient"))
    refused = Refused(message=said, error=MalformedMessageError("NaN"))
    packets = agent.encode([said, refused, said])
    assert len(packets) == 2
    assert (agent.dropped, kept) == (1, [])
    assert complaints == [(packets[0].topic, "malformed message: NaN")]


def test_without_listeners_it_keeps_to_itself_what_it_drops() -> None:
    alone = Agent(Picky(), Mailbox(Topics("plant"), "d1"))
    alone.decode(GARBAGE)
    assert alone.encode([Note()]) == []
    assert alone.dropped == 1


def test_what_is_local_is_kept_and_not_said(agent: Agent, kept: list[object]) -> None:
    assert agent.encode([Note()]) == []
    assert kept == [Note()]


def test_events_are_stamped_said_and_kept(agent: Agent, kept: list[object]) -> None:
    assert len(agent.encode([Event(kind="x", agent="d1")])) == 1
    assert kept == [Event(kind="x", agent="d1", time=99.0)]


def test_bytes_are_counted_for_the_session_and_for_the_agent(agent: Agent) -> None:
    said = frame(Want(wanted="gradient"))
    (packet,) = agent.encode([said])
    assert metrics_of(agent, said.session).sent_bytes == {"lan": len(packet.payload)}
    assert metrics_of(agent, "another").sent_bytes == {}
    (beat,) = agent.heartbeat(peak_rss_bytes=7, busy_s=1.5)
    heard = Mailbox(Topics("plant"), "x").incoming(beat)
    assert isinstance(heard, Metrics)
    assert heard.sent_bytes["lan"] == len(packet.payload)
    assert (heard.peak_rss_bytes, heard.busy_s) == (7, 1.5)


def test_of_too_many_sessions_the_oldest_is_forgotten(agent: Agent) -> None:
    said = frame(Want(wanted="gradient"))
    agent.encode([said])
    for number in range(MAX_SESSIONS_COUNTED):
        agent._session(f"s{number}")
    assert len(agent._by_session) == MAX_SESSIONS_COUNTED
    assert metrics_of(agent, said.session).sent_bytes == {}


@pytest.mark.parametrize("hears", [True, False])
def test_what_a_device_did_before_is_forgotten_when_it_is_given_something_else(
    agent: Agent, hears: bool
) -> None:
    def assign(session: str, epoch: int) -> None:
        assignment = Assignment(device="d1", task="train", session=session, epoch=epoch)
        if hears:
            agent.decode(Packet(topic="iotsplit/plant/assign/d1", payload=encode_state(assignment)))
        else:
            agent.encode([assignment])

    assign("s1", 2)
    agent.encode([frame(Want(wanted="gradient"), session="s1")])
    assign("s1", 3)  # goes on at another edge
    assign("s0", 1)  # came late
    assert list(agent._by_session) == ["s1"]
    assign("s2", 4)
    assert list(agent._by_session) == []


def test_a_birth_is_said_when_it_changed_or_has_to_be_said_again(agent: Agent) -> None:
    first = agent.birth()
    assert (len(first), agent.birth(), agent.birth(renew=True)) == (1, [], first)
    agent.renew(5)
    (later,) = agent.birth()
    assert b'"incarnation":5' in later.payload


def test_the_last_will_is_the_birth_but_offline(agent: Agent) -> None:
    will = Mailbox(Topics("plant"), "x").incoming(agent.last_will)
    assert will == Birth(agent="d1", role=Tier.DEVICE, online=False, incarnation=1)


def test_now_and_then_a_heartbeat_says_the_state_again(agent: Agent) -> None:
    birth = agent.birth()
    beats = [agent.heartbeat(peak_rss_bytes=0) for _ in range(2 * STATE_EVERY)]
    with_state = [number for number, packets in enumerate(beats, start=1) if packets[:-1] == birth]
    assert with_state == [STATE_EVERY, 2 * STATE_EVERY]
    assert [len(packets) for packets in beats] == [1, 1, 1, 1, 1, 2] * 2
