"""Tries at two brokers with a bridge in between: what is said on one is listened for on the other."""

import secrets

from iotsplit.packet import Packet
from iotsplit.runtime import clock
from iotsplit_broker.checking.bench import Bench
from iotsplit_broker.checking.client import QUIET_S, WAIT_S, BareClient
from iotsplit_broker.checking.crossing import WAYS, Crossed, Way


def crossing(floor: Bench, far: Bench, size: int) -> list[Crossed]:
    """Say a message of each kind on its side and see what comes on the other.

    All topics have names of our own, that no agent has: retained messages of agents are not overwritten.

    Args:
        floor: the shop floor's broker.
        far: the cloud's.
        size: bytes of each message.
    """
    me, peer = (f"check-{secrets.token_hex(4)}" for _ in range(2))
    found = []
    for up in (True, False):
        ways = {way.path.format(me=me, peer=peer): way for way in WAYS if way.up is up}
        found += _one_way(floor if up else far, far if up else floor, ways, bytes(size))
    return found


def _one_way(source: Bench, target: Bench, ways: dict[str, Way], content: bytes) -> list[Crossed]:
    with target.client() as listener, source.client() as speaker:
        listener.subscribe([target.topics.root + path for path in ways])
        for path, way in ways.items():
            topic = source.topics.root + path
            if way.retained:
                target.retained_on(target.topics.root + path, b"")  # so that it is cleared on both sides
                speaker.send(source.retained_on(topic, content))
            else:
                speaker.send(Packet(topic=topic, payload=content))
        heard = _all_or_timeout(listener, sum(way.wanted for way in ways.values()))
    kept = _kept(target, [path for path, way in ways.items() if way.retained])
    found = []
    for path, way in ways.items():
        packet = heard.get(target.topics.root + path)
        found.append(
            Crossed(
                way=way,
                whole=packet is not None and len(packet.payload) == len(content),
                qos=None if packet is None else packet.qos,
                kept=target.topics.root + path in kept,
            )
        )
    return found


def _all_or_timeout(listener: BareClient, count: int) -> dict[str, Packet]:
    """What arrives; a bridge may deliver it in any order and late, so wait a little for what must not come."""
    heard: dict[str, Packet] = {}
    until = clock.now() + WAIT_S
    while len(heard) < count and clock.now() < until:
        for packet in listener.hear(1, timeout_s=until - clock.now()):
            heard[packet.topic] = packet
        if listener.ended:
            break
    heard |= {packet.topic: packet for packet in listener.hear(len(WAYS), quiet_s=QUIET_S)}
    return heard


def _kept(bench: Bench, paths: list[str]) -> set[str]:
    with bench.client() as client:
        client.subscribe([bench.topics.root + path for path in paths])
        packets = client.hear(len(paths), quiet_s=QUIET_S)
    return {packet.topic for packet in packets if packet.retain}
