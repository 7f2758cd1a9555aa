"""Garbage for every topic of the protocol, by a seed: what no agent may take or stumble over."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import lz4.frame
import msgpack
import msgspec

from iotsplit.chunks import HEADER_BYTES, LZ4, RAW, Head, cut
from iotsplit.mailbox import MAX_STATE_BYTES
from iotsplit.messages import (
    Activation,
    Contents,
    Gradient,
    PackedTensor,
    TailGradient,
    TailHidden,
    Update,
    Want,
    encode_content,
)
from iotsplit.packet import Packet
from iotsplit.plan import Tier
from iotsplit.states import Birth
from tests.flows.mutations import plausible, unacceptable
from tests.flows.packets import content_of, first_word, head, is_raw, is_refused, json_on, packet_on, path_of

STATE_WORDS = ("state", "round", "assign", "metrics", "events", "command", "head", "latest", "manifest")
OBEYED = ("state", "assign", "command")
"""What is well-formed here is obeyed: who may write it is a matter of the broker's access rules."""

BEFORE, AFTER = 3, 2
"""Pieces of garbage ahead of each real packet, and behind it."""

STRANGERS = ("stranger", "edge-9", "cloud-2", "a.b", "x" * 64)
HUGE = (-1, -(2**63), 2**31, 2**53, 2**63, 2**64 - 1)
EPOCHS = (-1, 0, 2**31, 2**64 - 1)

WRONG_JSON = (
    b"null",
    b"[]",
    b"{}",
    b'""',
    b"1e999",
    b"{",
    b"\xff\xfe{}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"agent":["edge-1"],"role":"edge","online":true,"incarnation":9}',
    b'{"agent":"edge-1","role":"queen","online":true,"incarnation":9}',
    b'{"agent":"edge-1","role":"edge","online":1,"incarnation":9}',
    b'{"agent":"edge-1","role":"edge","online":true,"incarnation":1.5}',
    b'{"agent":"edge-1","role":"edge","online":true,"incarnation":"9"}',
    b'{"agent":"edge-1","role":"edge","loss":NaN}',
    b'{"agent":"edge-1","role":"edge","loss":1e999}',
    b'{"agent":"\\ud800","role":"edge"}',
    b'{"device":"a","task":"train","epoch":"999"}',
    b'{"device":"a","task":"train","epoch":999,"settings":{"cut":[1]}}',
    b'{"device":"a","task":"train","epoch":999,"settings":{"codec":"mp3"}}',
    b'{"device":"a","task":"train","epoch":999,"settings":{"learning_rate":-1.0}}',
    b'{"device":"a","task":"train","epoch":999,"edge":"edge-1/#"}',
    b'{"device":"a","task":"train","epoch":999,"session":"a/b","edge":"edge-1"}',
    b'{"device":"a","task":"train","epoch":999,"version":-1}',
    b'{"version":"1"}',
    b'{"version":1,"round":1,"model":"m","sections":{"edge":{"first":0}},"peft":{}}',
    b'{"id":"a/b","verb":"dance"}',
    b'{"id":"#","verb":"dance"}',
    b'{"id":"","verb":"dance"}',
    b'{"id":"a","verb":["now"]}',
    b'{"id":"a","verb":"rollback","version":"1"}',
)

NESTED = (b"\x91" * 100_000, b"\x81\xa1a" * 50_000, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc1")


class Sent(NamedTuple):
    """A packet that was sent to an agent, and whether it has to be counted as dropped there."""

    packet: Packet
    counted: bool


class Hostile:
    """Sends garbage to every agent along with every packet that it gets; a tamper of `Fleet`.

    Args:
        seed: of everything random.
        agents: names in the fleet, to be imitated.
        kinds: of garbage.
    """

    def __init__(self, seed: int, agents: Sequence[str], kinds: Sequence[str]) -> None:
        self.sent: Counter[tuple[str, str, str]] = Counter()  # by agent, kind and first word of the topic
        self.must_count: Counter[str] = Counter()  # by agent
        self._chance = random.Random(seed)
        self._agents = agents
        self._kinds = kinds

    def __call__(self, name: str, packet: Packet) -> Iterator[Packet]:
        """The packet amid garbage."""
        yield from self._garbage(name, packet, BEFORE)
        yield packet
        yield from self._garbage(name, packet, AFTER)

    def _garbage(self, name: str, packet: Packet, count: int) -> Iterator[Packet]:
        for _ in range(count):
            kind = self._chance.choice(self._kinds)
            for garbage, counted in KINDS[kind](self, name, packet):
                self.sent[name, kind, first_word(garbage.topic)] += 1
                self.must_count[name] += counted
                yield garbage

    # --- what anybody could send

    def noise(self, name: str, packet: Packet) -> Iterator[Sent]:
        """Random bytes on any topic."""
        topic = self._topic(name, packet)
        yield Sent(packet_on(topic, self._chance.randbytes(self._chance.randint(1, 200))), not is_raw(topic))

    def wrong_json(self, name: str, packet: Packet) -> Iterator[Sent]:
        """JSON of wrong types, and what is nested too deep."""
        topic = self._topic(name, packet, *STATE_WORDS)
        garbage = packet_on(topic, self._chance.choice(WRONG_JSON))
        # Fields that are not known are passed over: a head's garbage names a latest version as well.
        yield Sent(garbage, is_refused(name, garbage))

    def wrong_msgpack(self, name: str, packet: Packet) -> Iterator[Sent]:
        """Chunks that are none, and contents that are none."""
        topic = self._topic(name, packet, "lan", "wan", "update")
        payload = self._chance.choice(NESTED)
        yield Sent(packet_on(topic, payload), True)
        (body,) = cut(payload[:50_000], head(), chunk_bytes=61440)
        yield Sent(packet_on(topic, body), True)
        fields = list(msgpack.unpackb(body))
        fields[self._chance.randrange(len(fields))] = self._chance.choice(["", None, 1.5, [], {"a": 1}, True])
        yield Sent(packet_on(topic, msgpack.packb(fields)), True)

    def oversized(self, name: str, packet: Packet) -> Iterator[Sent]:
        """Announcements that nobody could keep, and texts over the limit."""
        topic = self._topic(name, packet, "lan", "wan", "update")
        size = self._chance.choice([2**28 + 1, 2**40, 2**64 - 1])
        total, size = self._chance.choice([(1, size), (size, 10), (size, size)])
        yield Sent(packet_on(topic, msgpack.packb([*head(), 0, total, size, 0, RAW, b"x"])), True)
        agent = self._chance.choice(self._agents)
        text = msgspec.json.encode({"agent": agent, "role": "edge"})
        yield Sent(packet_on(f"metrics/{agent}", b" " * MAX_STATE_BYTES + text), True)

    def bomb(self, name: str, packet: Packet) -> Iterator[Sent]:
        """A little that unpacks to a lot."""
        topic = self._topic(name, packet, "lan", "wan", "update")
        inside = self._chance.choice([bytes(4 << 20), b"\xdd\x00\x10\x00\x00" + b"\xc0" * (1 << 20)])
        packed = lz4.frame.compress(inside, store_size=False)
        for size in (len(inside), 100, 2**28):
            yield Sent(packet_on(topic, msgpack.packb([*head(), 0, 1, size, 0, LZ4, packed])), True)

    def unfinished(self, name: str, packet: Packet) -> Iterator[Sent]:
        """The beginning of a frame that never ends."""
        topic = self._topic(name, packet, "lan", "wan", "update")
        fields = [*head(), self._chance.randrange(9), 10, 10_000, self._chance.getrandbits(32), RAW]
        yield Sent(packet_on(topic, msgpack.packb([*fields, self._chance.randbytes(1000)])), False)

    def stranger(self, name: str, packet: Packet) -> Iterator[Sent]:
        """Births, last wills and metrics of agents of no fleet, and old ones of those who are in it."""
        who = self._chance.choice(STRANGERS)
        state = {"agent": who, "role": "device", "online": True, "incarnation": self._chance.choice(HUGE)}
        yield Sent(json_on(f"state/{who}", state | {"model": "another", "pid": -1}), False)
        yield Sent(json_on(f"state/{who}", state | {"online": False}), False)
        yield Sent(json_on(f"metrics/{who}", {"agent": who, "role": "edge", "dropped": 10**30}), False)
        known = self._chance.choice(self._agents)
        stale = Birth(agent=known, role=Tier.EDGE, online=False, incarnation=-5, problem="gone")
        yield Sent(packet_on(f"state/{known}", msgspec.json.encode(stale)), False)
        yield Sent(packet_on(f"state/{who}", msgspec.json.encode(stale)), True)

    def command(self, name: str, packet: Packet) -> Iterator[Sent]:
        """Requests that nobody understands."""
        verb = self._chance.choice(["", "dance", "rollback", "x" * 1000])
        yield Sent(json_on("command", {"id": "9", "verb": verb}), False)

    # --- what imitates the packet at hand

    def truncated(self, name: str, packet: Packet) -> Iterator[Sent]:
        """A copy without its end."""
        if len(packet.payload) > 1 and not self._spares(packet):
            end = self._chance.randrange(1, len(packet.payload))
            yield Sent(packet_on(path_of(packet), packet.payload[:end]), not is_raw(path_of(packet)))

    def flipped(self, name: str, packet: Packet) -> Iterator[Sent]:
        """A copy with wrong bits."""
        if not packet.payload or self._spares(packet):
            return
        payload = bytearray(packet.payload)
        where = self._chance.choice([len(payload), min(len(payload), HEADER_BYTES // 4)])
        for _ in range(self._chance.randint(1, 3)):
            payload[self._chance.randrange(where)] ^= 1 << self._chance.randrange(8)
        damaged = packet_on(path_of(packet), bytes(payload))
        if first_word(packet.topic) not in OBEYED or is_refused(name, damaged):
            yield Sent(damaged, False)

    def renumbered(self, name: str, packet: Packet) -> Iterator[Sent]:
        """Plausible values of another epoch, or with a step or micro-batch that cannot be."""
        found = content_of(packet)
        if found is None:
            return
        head, content = found[0], plausible(found[1])
        place = self._chance.choice(["epoch", "step", "micro_batch"])
        number = self._chance.choice(EPOCHS if place == "epoch" else HUGE)
        yield from _frame(path_of(packet), head, content, **{place: number})
        yield from _frame(path_of(packet), head, content, protocol=self._chance.choice([0, 2, -1]))

    def borrowed(self, name: str, packet: Packet) -> Iterator[Sent]:
        """Plausible values in the name of another agent, tier or session."""
        found = content_of(packet)
        if found is None:
            return
        head, content = found[0], plausible(found[1])
        first, *words = path_of(packet).split("/")
        others = [each for each in (*self._agents, *STRANGERS) if each not in (*words, head.device)]
        mine = first in ("lan", "wan")  # the first word is the receiver's own name: nothing else is delivered
        words[self._chance.randrange(mine, len(words))] = self._chance.choice(others)
        yield from _frame("/".join([first, *words]), head, content)
        tier = self._chance.choice([each for each in ("device", "edge", "cloud", "") if each != head.tier])
        yield from _frame(path_of(packet), head, content, tier=tier)
        yield from _frame(path_of(packet), head, content, device=self._chance.choice(others))

    def spoilt(self, name: str, packet: Packet) -> Iterator[Sent]:
        """A copy in the right name whose values, types, shapes or counts are not acceptable."""
        found = content_of(packet)
        if found is None:
            return
        head, content = found
        for payload in cut(msgpack.packb(unacceptable(self._chance, content)), head):
            yield Sent(packet_on(path_of(packet), payload), False)

    def misplaced(self, name: str, packet: Packet) -> Iterator[Sent]:
        """In the right name, something of another kind than the one that is due."""
        found = content_of(packet)
        if found is None:
            return
        head, content = found
        tensor = PackedTensor(scheme="fp32", shape=(1, 1, 1), data=bytes(4))
        others: list[Contents] = [
            Gradient(gradient=tensor),
            TailHidden(hidden=tensor),
            TailGradient(gradient=tensor, loss_sum=0.0, tokens=1),
            Activation(hidden=tensor, mask=tensor, step_tokens=1, steps=1),
            Update(tier=Tier.EDGE, tokens=1, tensors=b""),
            Want(wanted=self._chance.choice(["", "activation", "x" * 5000])),
        ]
        other = self._chance.choice([each for each in others if type(each) is not type(content)])
        yield from _frame(path_of(packet), head, other)

    def _spares(self, packet: Packet) -> bool:
        """Some pieces of a version come through: who spoils all of them keeps the fleet from it."""
        return is_raw(path_of(packet)) and self._chance.random() < 0.8

    def _topic(self, name: str, packet: Packet, *first: str) -> str:
        """Any topic that begins so, with names of this fleet or of nobody."""
        session = next((w for w in path_of(packet).split("/") if "-t" in w or "-e" in w), "no-session")
        agent = self._chance.choice([*self._agents, *STRANGERS])
        version, index = self._chance.randrange(4), self._chance.randrange(4)
        tier = self._chance.choice(["device", "edge", "cloud"])
        topics = {
            "state": f"state/{agent}",
            "round": "round",
            "assign": f"assign/{self._chance.choice([name, agent])}",
            "lan": f"lan/{name}/{agent}/{session}",
            "wan": f"wan/{name}/{agent}/{session}",
            "update": f"update/{agent}/{session}/{tier}",
            "adapter": f"adapter/{version}/{index}",
            "head": f"adapter/{version}/head",
            "latest": "adapter/latest",
            "checkpoint": f"checkpoint/{agent}/{session}.1.2/{index}",
            "manifest": f"checkpoint/{agent}/{session}.1.2/head",
            "metrics": f"metrics/{agent}",
            "events": "events",
            "command": "command",
            "unknown": self._chance.choice(["", "state", "lan/a", "adapter/x/y", "no/such/topic", "state/+"]),
        }
        return topics[self._chance.choice(first or list(topics))]


KINDS: dict[str, Callable[[Hostile, str, Packet], Iterator[Sent]]] = {
    maker.__name__: maker
    for maker in (
        Hostile.noise,
        Hostile.wrong_json,
        Hostile.wrong_msgpack,
        Hostile.oversized,
        Hostile.bomb,
        Hostile.unfinished,
        Hostile.stranger,
        Hostile.command,
        Hostile.truncated,
        Hostile.flipped,
        Hostile.renumbered,
        Hostile.borrowed,
        Hostile.spoilt,
        Hostile.misplaced,
    )
}


def _frame(path: str, head: Head, content: Contents, **changes: Any) -> Iterator[Sent]:
    for payload in cut(encode_content(content), head._replace(**changes)):
        yield Sent(packet_on(path, payload), False)
