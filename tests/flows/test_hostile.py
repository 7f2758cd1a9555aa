"""Garbage on every topic changes nothing: it is counted, complained about once, dropped.

What is sent: random bytes, damaged copies of real packets, announcements that nobody could keep, bombs,
tensors of wrong types, shapes and values in the right name, numbers that cannot be, and frames in other names.

What is not: a message that is well-formed, plausible and in the name of the one who may say it. There are no
signatures yet, so such a forgery cannot be told from the truth; who may write where is a matter of the
broker's access rules. So assignments, births of the fleet's own agents and commands are damaged until they no
longer are messages, pieces of a version sometimes come through, and nobody steps in with the epoch, session,
step and sender that are due and with values that could be right.
"""

import functools
import json
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgpack
import pytest

from iotsplit import mailbox
from iotsplit.agent import Agent
from iotsplit.chunks import RAW, cut
from iotsplit.mailbox import Mailbox
from iotsplit.messages import Want, encode_content
from iotsplit.packet import Packet
from iotsplit.plan import Labels
from iotsplit.role import Role
from iotsplit.settings import Codec, TrainingSettings
from iotsplit.topics import DEPTHS
from tests.flows.hostile import KINDS, Hostile
from tests.flows.packets import TOPICS, head, packet_on
from tests.flows.weather import PATIENT, WeatherFleet, settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick")]

AGENTS = ("a", "b", "edge-1", "cloud")
KINDS_OF_COMPLAINT = 5  # the leaves of PeerError


class WatchedFleet(WeatherFleet):
    """A fleet whose agents say what they drop."""

    def join(self, role: Role) -> None:
        self.complaints: list[tuple[str, str, str]] = getattr(self, "complaints", [])
        name = role.agent

        def complain(origin: str, reason: str) -> None:
            self.complaints.append((name, origin, reason))

        self.agents[name] = Agent(role, Mailbox(TOPICS, name), sink=self._keep, complain=complain)
        self._filters[name] = frozenset()
        self._settle(self.agents[name])

    def empty(self) -> None:
        """Deliver what is still on its way."""
        self.run(until=lambda _: not self.pending)


@functools.cache
def in_peace(model: Path, wanted: TrainingSettings) -> dict[str, bytes]:
    fleet = WeatherFleet(model, wanted)
    fleet.run()
    return dict(fleet.versions[-1].sections)


def besieged(
    model: Path, wanted: TrainingSettings, seed: int, kinds: Sequence[str] = tuple(KINDS)
) -> tuple[WatchedFleet, Hostile]:
    fleet = WatchedFleet(model, wanted, step_timeout=PATIENT)
    hostile = Hostile(seed, AGENTS, kinds)
    fleet.tamper = hostile
    fleet.run()
    fleet.empty()
    return fleet, hostile


def check(model: Path, wanted: TrainingSettings, fleet: WatchedFleet) -> None:
    steps = wanted.rounds * wanted.local_steps * 2
    assert fleet.report.ledger == {"expected": steps, "applied": steps, "lost": 0, "duplicated": 0}
    assert fleet.versions[-1].sections == in_peace(model, wanted)


WAYS: dict[str, dict[str, Any]] = {
    "labels in the cloud": {},
    "labels on the device": {"labels": Labels.DEVICE},
    "int8": {"codec": Codec.INT8},
    "bf16": {"codec": Codec.BF16},
    "samples remembered": {"codec_cache": "1MB", "rounds": 3},
}


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", range(0, 10, 5))
def test_the_adapter_is_that_of_a_run_in_peace(model: Path, way: str, first: int) -> None:
    wanted = settings(**WAYS[way])
    for seed in range(first, first + 5):
        fleet, _ = besieged(model, wanted, seed)
        check(model, wanted, fleet)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", Labels)
def test_no_kind_of_garbage_alone_changes_anything(model: Path, kind: str, labels: Labels) -> None:
    wanted = settings(labels=labels)
    fleet, hostile = besieged(model, wanted, 0, [kind])
    check(model, wanted, fleet)
    assert {name for name, _, _ in hostile.sent} == set(AGENTS)


@pytest.mark.parametrize("kind", ["wrong_json", "wrong_msgpack", "oversized", "bomb"])
def test_what_is_no_message_is_counted(model: Path, kind: str) -> None:
    fleet, hostile = besieged(model, settings(), 0, [kind])
    for name in AGENTS:
        assert fleet.agents[name].dropped == hostile.must_count[name] > 100


def test_each_kind_of_garbage_is_complained_about_once(model: Path) -> None:
    fleet, _ = besieged(model, settings(), 0)
    for name in AGENTS:
        origins = Counter(origin for who, origin, _ in fleet.complaints if who == name)
        assert origins
        assert max(origins.values()) <= KINDS_OF_COMPLAINT
    assert len(fleet.complaints) < fleet.dropped


def test_garbage_reaches_every_agent_on_every_topic(model: Path) -> None:
    sent = [each for seed in range(4) for each in besieged(model, settings(), seed)[1].sent]
    for name in AGENTS:
        assert set(DEPTHS) <= {first for who, _, first in sent if who == name}
        assert {kind for who, kind, _ in sent if who == name} == set(KINDS)


# --- memory

HALF = 9000
"""More than any table of an agent holds."""

STREAMS: dict[str, tuple[str, Callable[[int], tuple[str, dict[str, Any] | bytes]]]] = {
    "births": ("cloud", lambda n: (f"state/s{n}", birth(f"s{n}"))),
    "heartbeats": ("cloud", lambda n: (f"metrics/s{n}", {"agent": f"s{n}", "role": "edge"})),
    "metrics": ("cloud", lambda n: ("metrics/a", {"agent": "a", "role": "device", "session": f"s{n}"})),
    "assignments": ("edge-1", lambda n: (f"assign/s{n}", {"device": f"s{n}", "task": "idle", "epoch": 1})),
    "commands": ("cloud", lambda n: ("command", {"id": f"s{n}", "verb": "dance"})),
    "pieces": ("a", lambda n: (f"adapter/1/{n}", bytes(100))),
    "noise": ("edge-1", lambda n: (f"lan/edge-1/s{n}/s{n}", b"noise")),
    "sessions": ("cloud", lambda n: (f"wan/cloud/s{n}/s{n}", want(device=f"s{n}"))),
    "steps": ("edge-1", lambda n: ("lan/edge-1/a/s", want(step=n))),
    "beginnings": ("cloud", lambda n: (f"wan/cloud/s{n}/s", begin(n, device="a"))),
    "long names": ("cloud", lambda n: (f"wan/cloud/s{n}/s", begin(n, device="a" * 5000))),
}
"""To whom, and what: ever new names and numbers."""


def birth(agent: str) -> dict[str, Any]:
    return {"agent": agent, "role": "device", "online": True, "incarnation": 1}


def want(**changes: Any) -> bytes:
    (payload,) = cut(encode_content(Want(wanted="gradient")), head()._replace(**changes))
    return payload


def begin(number: int, *, device: str) -> bytes:
    """The first chunk of a frame that never ends."""
    packed: bytes = msgpack.packb([*head()._replace(device=device), 0, 10, 10_000, number, RAW, bytes(10)])
    return packed


def fed(agent: Agent, packet: Packet) -> None:
    message = agent.decode(packet)
    if message is not None:
        agent.encode(agent.handle(message, 0.0))


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("stream", STREAMS)
def test_no_stream_of_garbage_makes_an_agent_hold_more_and_more(
    model: Path, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox, "MAX_OPEN_BYTES", 1 << 20)
    fleet = WeatherFleet(model, settings())
    fleet.run(until=lambda fleet: any(row.step is not None for row in fleet.metrics))
    name, make = STREAMS[stream]
    held = []
    tracemalloc.start()
    for number in range(2 * HALF):
        path, said = make(number)
        fed(fleet.agents[name], packet_on(path, said if isinstance(said, bytes) else json.dumps(said).encode()))
        if number % HALF == HALF - 1:
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[0] < 8 << 20
    assert held[1] - held[0] < 1 << 18
