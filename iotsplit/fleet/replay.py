"""``iotsplit replay``: say a tape again on a broker, or hold one agent against it."""

import contextlib
import itertools
import json
import queue
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from iotsplit.errors import PeerError, RefusedError, RunFailedError, UsageError
from iotsplit.fleet.client import QUIET_S
from iotsplit.fleet.inspection import selection_of
from iotsplit.fleet.rehearse import AgainstOptions, rehearse
from iotsplit.mailbox import Mailbox
from iotsplit.options import BrokerOptions, parse
from iotsplit.packet import Packet
from iotsplit.runtime import clock
from iotsplit.runtime.address import address_of
from iotsplit.runtime.link import Link, LinkChange
from iotsplit.runtime.processes import signals_handled
from iotsplit.states import Birth
from iotsplit.tape import files
from iotsplit.tape.files import PIPE
from iotsplit.tape.format import Damage, Header, Record
from iotsplit.tape.letters import Listener, find_topics
from iotsplit.tape.player import Played, Player, last_retained, packets, read_mapping, read_speed
from iotsplit.tape.selection import Moment, Selection, Window, place_before, read_moment, within
from iotsplit.topics import Topics

EXAMPLES = (
    "iotsplit replay plant7.tape --broker mqtt://127.0.0.1:1883 --speed 10x",
    "iotsplit replay plant7.tape --from round:2 --map-topic 's/plant7/bench/'",
    "iotsplit replay plant7.tape --against edge --agent edge-1",
    "iotsplit replay plant7.tape --against device --agent press --data press.jsonl --tolerance 1e-6",
)


@dataclass(frozen=True, kw_only=True)
class ReplayOptions(AgainstOptions, BrokerOptions):
    """The replay.

    Says a tape again on a broker. With --against it runs one agent instead, tells it what it was told, and
    compares what it says with the tape: exit code 7 and the first difference if it is not the same.

    Args:
        speed: How many times as fast, such as 1x or 10x; max for as fast as the broker takes it.
        from_: Where to begin: seconds from the tape's start (90s, 1:30), or round:2.
        to: Where to end, in the same way.
        topic: Only these topic filters; give it again for more.
        map_topic: Change topics as sed would: s/plant7/bench/.
        retained_only: Only what is retained, the last on each topic.
        loop: How often.
        force: Also into a fleet of the same name whose agents are there.
    """

    speed: str = "1x"
    from_: str | None = None
    to: str | None = None
    topic: tuple[str, ...] = ()
    map_topic: str | None = None
    retained_only: bool = False
    loop: int = 1
    force: bool = False


def main(words: Sequence[str]) -> int:
    """Replay a tape."""
    options = parse(ReplayOptions, words, name="iotsplit replay", examples=EXAMPLES, places=("tape",))
    from iotsplit.runtime.serve import start_logging  # noqa: PLC0415 - keeps --help quick

    start_logging("info")  # on stderr: unconfigured it would be in the output
    if options.against is not None:
        return rehearse(options, options.against)
    return _into_broker(options)


def _into_broker(options: ReplayOptions) -> int:
    speed = read_speed(options.speed)
    mapping = read_mapping(options.map_topic) if options.map_topic is not None else str
    start, end = (read_moment(each) if each is not None else None for each in (options.from_, options.to))
    selection = selection_of(options.topic)
    if options.loop < 1:
        raise UsageError(f"loop {options.loop} is too small", fix="use 1 or more")
    if options.loop > 1 and str(options.tape) == PIPE:
        raise UsageError("a pipe can be read only once", fix="record into a file to use --loop")
    address = address_of(options)
    from iotsplit.runtime.mqtt import MqttLink  # noqa: PLC0415 - keeps --help quick

    stop = threading.Event()
    source = Source(options.tape, selection, start, end)
    source.open()
    target = _target(source, mapping)
    _check_fleet(options, target)
    mqtt = MqttLink(address, f"replay-{secrets.token_hex(4)}")
    link = _Guarded(mqtt)
    with link.opened(), signals_handled((signal.SIGINT, signal.SIGTERM), lambda *_: stop.set()):
        if not options.force:
            _refuse_live(link, target)
        player = Player(link.link, speed=speed, stop=stop)
        played = Played()
        for _ in range(options.loop):
            said = packets(source.records(), source.header, mapping)
            played = player.play(last_retained(said) if options.retained_only else said)
    played.lost = mqtt.unsent
    _tell(options, played)
    if played.lost and not stop.is_set():
        raise RunFailedError(
            f"{played.lost} messages have not reached {options.broker}",
            fix="look at the broker and the way to it, or replay more slowly (--speed, --max-rate)",
        )
    if not played.records and not stop.is_set():
        raise UsageError(
            f"nothing in {options.tape} is chosen",
            fix="see iotsplit inspect TAPE, and mend --topic, --from and --to",
        )
    return 130 if stop.is_set() else 0


class Source:
    """The chosen records of a tape, each time from the beginning.

    Args:
        path: of the tape.
        selection: of topics.
        start: where to begin.
        end: where to end.
    """

    def __init__(self, path: Path, selection: Selection, start: Moment | None, end: Moment | None) -> None:
        self.header = Header()
        self.first: Record | None = None
        self._path, self._selection, self._start, self._end = path, selection, start, end
        self._pending: Iterator[Record] | None = None

    def open(self) -> None:
        """Read the header and the first record, so that errors come before anything is said."""
        self.header, items = files.begin(self._path)
        for _, item in items:
            if isinstance(item, Damage):
                _warn(files.explain(self._path, item))
            if isinstance(item, Record):
                self.first = item
                self._pending = itertools.chain([item], files.rest(items, self._path, tell=_warn))
                return
        raise UsageError(f"{self._path} holds no messages", fix="record again")

    def records(self) -> Iterator[Record]:
        """The records."""
        found, self._pending = self._pending, None
        sought = self._seek()
        if sought is not None:
            found = sought
        elif found is None:
            found = files.records(self._path, tell=_warn)
        listener: Listener | None = None

        def round_of(record: Record) -> int:
            nonlocal listener
            if listener is None:
                topics = find_topics(self.header, record.topic)
                listener = Listener(topics) if topics is not None else None
            if listener is not None and record.topic.endswith("/round"):
                listener.take(record)
            return listener.round if listener is not None else 0

        origin_ns = self.first.mono_ns if self.first is not None else None
        window = Window(self._start, self._end, round_of=round_of, origin_ns=origin_ns)
        return (each for each in within(found, window) if self._selection.wants(each.topic))

    def _seek(self) -> Iterator[Record] | None:
        """The records from shortly before the first moment on, if an index tells where that is."""
        if self._start is None or self.first is None or str(self._path) == PIPE:
            return None
        index = files.index(self._path)
        if index is None:
            return None
        place = place_before(index, self._start, self._end, origin_ns=self.first.mono_ns)
        items = files.items_from(self._path, place) if place is not None else None
        return files.rest(items, self._path, tell=_warn) if items is not None else None


class _Guarded:
    """A link whose arrivals can be looked at."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.arrived: queue.SimpleQueue[Packet] = queue.SimpleQueue()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        self.link.open(self._deliver, last_will=None)
        try:
            yield
        finally:
            self.link.close()

    def _deliver(self, event: Packet | LinkChange) -> None:
        if isinstance(event, Packet):
            self.arrived.put(event)


def _target(source: Source, mapping: Callable[[str], str]) -> Topics | None:
    """The fleet that would hear a tape; None if it is none of ours."""
    topics = find_topics(source.header, source.first.topic) if source.first is not None else None
    return find_topics(Header(), mapping(f"{topics.root}state/any")) if topics is not None else None


def _check_fleet(options: ReplayOptions, target: Topics | None) -> None:
    """See that the fleet that was asked for is the one that would hear it.

    Raises:
        UsageError: it is another one.
    """
    default = BrokerOptions()
    wanted, plain = (options.topic_prefix, options.fleet), (default.topic_prefix, default.fleet)
    if wanted == plain or target is None or wanted == (target.prefix, target.fleet):
        return
    asked, told = (f"{prefix}iotsplit/{fleet}" for prefix, fleet in (wanted, (target.prefix, target.fleet)))
    raise UsageError(
        f"{options.tape} would be said on {told}, not on {asked}",
        fix=f"add --map-topic 's|^{told}/|{asked}/|', or leave --fleet and --topic-prefix out",
    )


def _refuse_live(guarded: _Guarded, target: Topics | None) -> None:
    """Look whether the fleet that would hear it is there.

    Raises:
        RefusedError: it is.
    """
    if target is None:
        return
    online = _online(guarded, target)
    if online:
        raise RefusedError(
            f"agents of fleet {target.fleet} are there: {', '.join(sorted(online))}",
            fix="say it under another name with --map-topic, or add --force if they may hear it",
        )


def _online(guarded: _Guarded, topics: Topics) -> set[str]:
    guarded.link.subscribe(frozenset({f"{topics.root}state/+"}))
    mailbox, online = Mailbox(topics, "replay"), set()
    until = clock.now() + QUIET_S
    while (left := until - clock.now()) > 0:
        with contextlib.suppress(queue.Empty, PeerError):
            birth = mailbox.incoming(guarded.arrived.get(timeout=left))
            if isinstance(birth, Birth) and birth.online:
                online.add(birth.agent)
    guarded.link.subscribe(frozenset())
    return online


def _warn(line: str) -> None:
    sys.stderr.write(f"iotsplit replay: {line}\n")


def _tell(options: ReplayOptions, played: Played) -> None:
    if options.json:
        sys.stdout.write(json.dumps(msgspec.to_builtins(played)) + "\n")
        return
    late = f", late by {played.error_ms['p50']:.2f} ms (median)" if played.error_ms else ""
    size = f"{played.payload_bytes / 1e6:.1f} MB"
    sys.stdout.write(f"{played.records} messages, {size} in {played.seconds:.1f} s{late}\n")
