"""The runner on a link that takes its time: it still gives signs of life, and subscribes to what fits."""

import itertools
from collections.abc import Sequence

import pytest
from structlog.testing import capture_logs

from iotsplit.agent import Agent
from iotsplit.mailbox import Mailbox
from iotsplit.messages import Message
from iotsplit.packet import Packet
from iotsplit.plan import Tier
from iotsplit.role import Output
from iotsplit.runtime import clock
from iotsplit.runtime.link import Deliver
from iotsplit.runtime.runner import HEARTBEAT_S, Runner, _Done
from iotsplit.states import AdapterChunk, Birth
from iotsplit.topics import Topics


class Fetching:
    """A role that wants chunks."""

    agent = "press"
    tier = Tier.DEVICE
    finished = False

    def __init__(self) -> None:
        self.birth = Birth(agent=self.agent, role=self.tier, online=True, incarnation=1, pid=1)
        self.interests = frozenset({"assign/press", "lan/press/#", *(f"adapter/1/{n}" for n in range(40))})

    def handle(self, message: Message, now: float) -> Sequence[Output]:
        return []

    def tick(self, now: float) -> Sequence[Output]:
        return []

    def reconnected(self, now: float) -> Sequence[Output]:
        return []

    def next_tick(self, now: float) -> float:
        return now + 60


class SlowLink:
    """A link on which each packet takes a second."""

    def __init__(self) -> None:
        self.now = 100.0
        self.said: list[tuple[float, str]] = []
        self.filters: frozenset[str] = frozenset()

    def open(self, deliver: Deliver, *, last_will: Packet | None) -> None:
        pass

    def subscribe(self, filters: frozenset[str]) -> None:
        self.filters = filters

    def publish(self, packet: Packet) -> None:
        self.said.append((self.now, packet.topic))
        self.now += 1.0

    def close(self) -> None:
        pass


def test_what_waits_for_a_role_at_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iotsplit.runtime.runner.MAX_INBOX_PACKETS", 5)
    runner = Runner(Agent(Fetching(), Mailbox(Topics("f"), "press"), sink=lambda _: None), SlowLink())
    runner._working = True
    chunk = Packet(topic="iotsplit/f/adapter/1/0", payload=b"x", qos=1)
    for _ in range(9):
        runner._deliver(chunk)
        while not runner._inbox.empty():
            runner._take(runner._inbox.get())
    assert len(runner._letters) == 5


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> SlowLink:
    made = SlowLink()
    monkeypatch.setattr(clock, "now", lambda: made.now)
    return made


def runner(link: SlowLink, most_filters: int | None = None) -> tuple[Runner, Fetching]:
    role = Fetching()
    return Runner(Agent(role, Mailbox(Topics("f"), "press")), link, most_filters=most_filters), role


def test_signs_of_life_do_not_wait_for_the_last_of_many_packets(link: SlowLink) -> None:
    slow, _ = runner(link)
    slow._finish(_Done([AdapterChunk(version=1, index=index, data=b"x") for index in range(40)]))
    beats = [at for at, topic in link.said if topic.endswith("metrics/press")]
    assert len(beats) >= 6
    assert max(after - before for before, after in itertools.pairwise(beats)) <= HEARTBEAT_S + 2


def test_an_agent_subscribes_to_so_much_as_the_broker_allows(link: SlowLink) -> None:
    limited, role = runner(link, most_filters=10)
    limited._subscribe()
    assert len(link.filters) == 10
    assert {"iotsplit/f/state/press", "iotsplit/f/assign/press", "iotsplit/f/lan/press/#"} <= link.filters
    first = link.filters
    arrived = frozenset(f.removeprefix("iotsplit/f/") for f in first if "/adapter/" in f)
    role.interests -= arrived
    limited._subscribe()
    assert len(link.filters) == 10
    assert len(link.filters - first) == len(arrived) == 7


def test_what_cannot_wait_for_its_turn_is_told_once(link: SlowLink) -> None:
    limited, role = runner(link, most_filters=2)
    role.interests = frozenset({"assign/press", "lan/press/#", "adapter/1/7"})
    with capture_logs() as told:
        limited._subscribe()
        limited._subscribe()
    assert [(line["allowed"], line["left_out"]) for line in told] == [(2, 1)]


def test_without_a_limit_it_subscribes_to_everything(link: SlowLink) -> None:
    unlimited, _ = runner(link)
    unlimited._subscribe()
    assert len(link.filters) == 43
