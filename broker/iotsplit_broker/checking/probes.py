"""What ``iotsplit broker check`` tries at a broker, one function for each point that is about meaning."""

from iotsplit.errors import UserError
from iotsplit.packet import Packet
from iotsplit.runtime import clock
from iotsplit_broker.checking.bench import Bench
from iotsplit_broker.checking.client import QUIET_S, WAIT_S, BareClient, Manners
from iotsplit_broker.checking.points import ManyRetained, Payload, Qos, Retained, Takeover, Versions, Will
from iotsplit_broker.checking.rights import PATHS, REFUSED, Access, access_of

LARGEST_BYTES = 1024 * 1024  # nobody needs to know of more
FINEST_BYTES = 512
TOPICS_BY_NAME = 38  # of an agent at once: 6 of its own and a window of 32


def is_single(bench: Bench) -> bool:
    """Whether a client ends when the same user connects with another client id.

    So it is where the user's name is taken for the client id, as in our own configuration for Mosquitto.
    """
    with bench.client() as first, bench.client():
        first.subscribe([bench.topic("single")])  # whoever is answered is still there
        return first.ended


def versions(bench: Bench) -> Versions:
    """Speak MQTT 5."""
    try:
        with bench.client(Manners(version5=True)) as client:
            works = client.subscribe([bench.topic("versions")])[0] < REFUSED
            announced = {name: value for name, value in client.announced.items() if name != "UserProperty"}
    except UserError:
        return Versions(version5=False, announced={})
    return Versions(version5=works, announced=announced)


def rights(bench: Bench, *, version5: bool) -> dict[str, Access]:
    """Publish once on a topic of each kind, not retained, and listen there.

    What is published is of no kind that agents know, so one that hears it drops it.
    """
    topics = {name: bench.topics.root + path.format(me=bench.agent) for name, path in PATHS.items()}
    try:
        return _rights(bench, topics, version5=version5)
    except _EndedError:
        # Some brokers answer what is forbidden by hanging up: then each by itself.
        found: dict[str, Access] = {}
        for name, topic in topics.items():
            try:
                found |= _rights(bench, {name: topic}, version5=version5)
            except _EndedError:
                found[name] = Access(write=False, read=None if _may_subscribe(bench, topic) else False)
        return found


def _may_subscribe(bench: Bench, topic: str) -> bool:
    with bench.client() as client:
        return client.subscribe([topic])[0] < REFUSED


class _EndedError(Exception):
    """The broker ended the connection."""


def _rights(bench: Bench, topics: dict[str, str], *, version5: bool) -> dict[str, Access]:
    nonce = f'{{"check": "{bench.new_id()}"}}'.encode()
    with bench.client(Manners(version5=version5)) as client:
        names = list(topics)
        granted = dict(zip(names, client.subscribe([topics[name] for name in names]), strict=True))
        ids = {name: client.send(Packet(topic=topics[name], payload=nonce)) for name in names}
        codes = client.acknowledged(ids.values())
        packets = client.hear(1000, quiet_s=QUIET_S)
        if client.ended:
            raise _EndedError
    heard = {packet.topic for packet in packets}
    echoed = {packet.topic for packet in packets if packet.payload == nonce}
    return {
        name: access_of(
            code=codes.get(ids[name]),
            echoed=topics[name] in echoed,
            heard=topics[name] in heard,
            subscribed=granted[name] < REFUSED,
            honest=version5,
        )
        for name in names
    }


def payload(bench: Bench) -> Payload:
    """Find the largest message that comes back: up to 1 MiB, to 512 bytes or a sixteenth."""
    passes, refused = 0, None
    size = bench.chunk_bytes
    while refused is None or refused - passes > max(FINEST_BYTES, passes // 16):
        if _comes_back(bench, size):
            passes = size
        else:
            refused = size
        if refused is None and size >= LARGEST_BYTES:
            break
        size = min(size * 2, LARGEST_BYTES) if refused is None else (passes + refused) // 2
    return Payload(needed_bytes=bench.chunk_bytes, largest_bytes=passes, refused_bytes=refused)


def _comes_back(bench: Bench, size: int) -> bool:
    """Whether a message comes back before a small one that follows it: both come in order."""
    with bench.client() as client:
        client.subscribe([bench.topic("payload")], qos=0)
        for content in (bytes(size), b"end"):
            client.send(Packet(topic=bench.topic("payload"), payload=content, qos=0))
        packets = client.hear(1, on=bench.topic("payload"), timeout_s=2 * WAIT_S)
    return bool(packets) and len(packets[0].payload) == size


def retained(bench: Bench, size: int) -> Retained:
    """Set, replace, find by wildcard and clear retained messages; `size` bytes is a whole chunk."""
    plain, large, gone = (bench.topic("retained", word) for word in ("plain", "large", "gone"))
    with bench.client() as client:
        for packet in (
            bench.retained("retained", "plain", payload=b"first"),
            bench.retained("retained", "plain", payload=b"second"),
            bench.retained("retained", "large", payload=bytes(size)),
            bench.retained("retained", "gone", payload=b"first"),
            bench.retained("retained", "gone", payload=b""),
        ):
            client.say(packet)
    named = {packet.topic: packet for packet in _kept(bench, [plain, large, gone], 3)}
    wild = {packet.topic for packet in _kept(bench, [bench.topic("retained", "+")], 3)}
    return Retained(
        kept=plain in named,
        whole=large in named and len(named[large].payload) == size,
        replaced=plain in named and named[plain].payload == b"second",
        by_wildcard={plain, large} <= wild,
        cleared=gone not in named and gone not in wild,
    )


def many_retained(bench: Bench, count: int) -> ManyRetained:
    """Keep many small messages; ask for all by wildcard, and for as many as an agent does by name."""
    with bench.client() as client:
        packets = [bench.retained("many", n, payload=b"%d" % n) for n in range(count)]
        client.acknowledged([client.send(packet) for packet in packets])
    wild = {packet.topic for packet in _kept(bench, [bench.topic("many", "+")], count)}
    names = [packet.topic for packet in packets[:TOPICS_BY_NAME]]
    named = {packet.topic for packet in _kept(bench, names, len(names))}
    return ManyRetained(sent=count, by_wildcard=len(wild), asked=len(names), by_name=len(named))


def _kept(bench: Bench, filters: list[str], count: int) -> list[Packet]:
    """What a new subscriber is given as retained, at most `count`."""
    with bench.client() as client:
        client.subscribe(filters)
        packets = client.hear(count, timeout_s=2 * WAIT_S, quiet_s=QUIET_S)
    return [packet for packet in packets if packet.retain]


def last_will(bench: Bench) -> Will:
    """Cut a client's socket, and listen for its will; where nobody can listen, look for it afterwards."""
    will = bench.retained("will", payload=b"gone")
    if bench.single:
        return _kept_will(bench, will)
    with bench.client() as observer:
        observer.subscribe([will.topic])
        try:
            with bench.client(Manners(last_will=will)) as victim:
                began = clock.now()
                victim.cut()
        except UserError:
            return Will(let_in=False, after_s=None, kept=False)
        heard = observer.hear(on=will.topic)
        after_s = clock.now() - began
    return Will(
        let_in=True, after_s=round(after_s, 3) if heard else None, kept=bool(_kept(bench, [will.topic], 1))
    )


def _kept_will(bench: Bench, will: Packet) -> Will:
    try:
        with bench.client(Manners(last_will=will)) as victim:
            began = clock.now()
            victim.cut()
    except UserError:
        return Will(let_in=False, after_s=None, kept=False)
    kept = bool(_kept(bench, [will.topic], 1))
    return Will(let_in=True, after_s=round(clock.now() - began, 3) if kept else None, kept=kept)


def qos(bench: Bench) -> Qos:
    """Send a message with QoS 1 from one client to another, if there can be two."""
    topic = bench.topic("qos")
    with bench.client() as reader, bench.beside(reader) as writer:
        (granted,) = reader.subscribe([topic], qos=1)
        code = writer.say(Packet(topic=topic, payload=b"1", qos=1))
        heard = reader.hear(on=topic)
        foreign = reader.foreign
    return Qos(
        acknowledged=code is not None,
        granted=granted,
        delivered=heard[0].qos if heard else None,
        foreign=foreign,
    )


def takeover(bench: Bench) -> Takeover:
    """Connect twice with one client id."""
    name, topic = bench.new_id(), bench.topic("takeover")
    with BareClient(bench.address, name) as first:
        try:
            with BareClient(bench.address, name) as second:
                ended = first.wait_until_ended()
                second.subscribe([topic])
                second.send(Packet(topic=topic, payload=b"2"))
                return Takeover(first_ended=ended, second_works=bool(second.hear(on=topic)))
        except UserError:
            return Takeover(first_ended=first.ended, second_works=False)
