"""Writes what is on a bus to a tape, as a client of its own that says nothing."""

import queue
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from iotsplit.errors import PeerError
from iotsplit.packet import Packet
from iotsplit.runtime import clock
from iotsplit.runtime.link import Link, LinkChange
from iotsplit.states import Event, decode_state
from iotsplit.tape.files import TapeWriter, Tell
from iotsplit.tape.format import Record

FLUSH_S = 1.0
"""Nothing waits longer for its block."""
QUIET_S = 0.5
"""Who hears nothing for so long after it has unsubscribed has all that the broker held for it."""
MAX_WAITING_BYTES = 256 * 1024 * 1024
PACKET_BYTES = 512  # what holding a packet costs beside its payload

Redact = Callable[[Record], list[Record]]
"""What is written of a record."""


def unchanged(record: Record) -> list[Record]:
    """All of it."""
    return [record]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a recording ends by itself; None for never.

    Args:
        duration_s: seconds.
        rounds: training rounds that have finished.
        size_bytes: of the tape.
    """

    duration_s: float | None = None
    rounds: int | None = None
    size_bytes: int | None = None


class Tally(msgspec.Struct, kw_only=True):
    """What was recorded.

    Args:
        lost: messages that came faster than they could be written.
        gaps: times that the connection broke; what was said meanwhile is not on the tape.
        ended_by: why it ended.
    """

    records: int = 0
    payload_bytes: int = 0
    tape_bytes: int = 0
    seconds: float = 0.0
    lost: int = 0
    gaps: int = 0
    rounds: int = 0
    ended_by: str = ""


@dataclass(frozen=True, slots=True)
class _Seen:
    mono_ns: int
    wall_ns: int
    packet: Packet


class Recorder:
    """One recording.

    Args:
        link: a connection of its own, not open yet.
        writer: of the tape.
        observer: client id that stands in the records.
        redact: what is written of each record.
        tell: told what a person should know at once.
    """

    def __init__(
        self,
        link: Link,
        writer: TapeWriter,
        *,
        observer: str,
        redact: Redact = unchanged,
        tell: Tell,
    ) -> None:
        self._link = link
        self._writer = writer
        self._observer = observer
        self._redact = redact
        self._tell = tell
        self._seen: queue.SimpleQueue[_Seen | LinkChange | None] = queue.SimpleQueue()
        # Each is written by one thread alone; their difference waits.
        self._taken_bytes = self._written_bytes = 0
        self._lost = 0
        self._tally = Tally()

    def stop(self) -> None:
        """End soon; any thread and signal handlers may call it."""
        self._seen.put(None)

    def deliver(self, event: Packet | LinkChange) -> None:
        """Take what arrives; called from the link's thread."""
        if isinstance(event, LinkChange):
            self._seen.put(event)
            return
        size = len(event.payload) + PACKET_BYTES
        if self._taken_bytes - self._written_bytes > MAX_WAITING_BYTES:
            self._lost += 1
            return
        self._taken_bytes += size
        self._seen.put(_Seen(int(clock.now() * 1e9), clock.wall_ns(), event))

    def run(self, filters: frozenset[str], limits: Limits) -> Tally:
        """Record until a limit is reached or `stop` is called.

        Raises:
            UserError: the broker refuses or is not there, or the tape cannot be written.
        """
        self._link.open(self.deliver, last_will=None)
        began = clock.now()
        try:
            self._link.subscribe(filters)
            self._loop(began, limits)
            self._tally.seconds = clock.now() - began
            if self._tally.ended_by in {"stopped", "duration"}:
                self._take_the_rest(limits)
        finally:
            self._link.close()
        self._writer.encoder.survey.lost = self._tally.lost = self._lost
        return self._tally

    def _loop(self, began: float, limits: Limits) -> None:
        flush_at = began + FLUSH_S
        until = began + (float("inf") if limits.duration_s is None else limits.duration_s)
        while not self._tally.ended_by:
            now = clock.now()
            if now >= until:
                self._tally.ended_by = "duration"
                return
            if now >= flush_at:
                self._writer.flush()
                flush_at = now + FLUSH_S
            try:
                seen = self._seen.get(timeout=max(0.0, min(flush_at, until) - now))
            except queue.Empty:
                continue
            self._take(seen, limits)

    def _take_the_rest(self, limits: Limits) -> None:
        """Take what the broker still holds for us: it adds nothing once we have unsubscribed."""
        self._link.subscribe(frozenset())
        ended_by = self._tally.ended_by
        while self._tally.ended_by == ended_by:
            try:
                seen = self._seen.get(timeout=QUIET_S)
            except queue.Empty:
                return
            if seen is None:
                self._tell("ended at once: what the broker still held is not on the tape")
                return
            self._take(seen, limits)

    def _take(self, seen: _Seen | LinkChange | None, limits: Limits) -> None:
        if seen is None:
            self._tally.ended_by = "stopped"
        elif isinstance(seen, LinkChange):
            if not seen.up:
                self._tally.gaps += 1
                self._tell(f"the broker is away ({seen.reason}): what is said meanwhile is not on the tape")
        else:
            self._write(seen, limits)

    def _write(self, seen: _Seen, limits: Limits) -> None:
        packet, tally = seen.packet, self._tally
        record = Record(
            mono_ns=seen.mono_ns,
            wall_ns=seen.wall_ns,
            topic=packet.topic,
            payload=packet.payload,
            qos=packet.qos,
            retain=packet.retain,
            observer=self._observer,
        )
        for each in self._redact(record):
            self._writer.add(each)
        self._written_bytes += len(packet.payload) + PACKET_BYTES
        tally.records += 1
        tally.payload_bytes += len(packet.payload)
        encoder = self._writer.encoder
        tally.tape_bytes = encoder.offset + encoder.gathered_bytes
        if limits.size_bytes is not None and tally.tape_bytes >= limits.size_bytes:
            tally.ended_by = "size"
        if limits.rounds is not None and packet.topic.endswith("/events"):
            tally.rounds += _ends_round(packet.payload)
            if tally.rounds >= limits.rounds:
                tally.ended_by = "rounds"


def _ends_round(payload: bytes) -> bool:
    try:
        return decode_state(payload, Event).kind == "round_finished"
    except PeerError:
        return False
