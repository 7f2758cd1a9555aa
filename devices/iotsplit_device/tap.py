"""Gathers texts from topics that others speak on, with a connection of its own that says nothing."""

import queue
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from iotsplit.datasets.records import Record
from iotsplit.errors import UserError
from iotsplit.packet import Packet
from iotsplit.runtime import clock
from iotsplit.runtime.link import Link, LinkChange
from iotsplit.states import Assignment
from iotsplit_device.snapshot import Snapshot
from iotsplit_device.texts import NotATextError, Reason, deal, text_of
from iotsplit_device.textstore import TextStore

MAX_WAITING_BYTES = 4 * 1024 * 1024
PACKET_BYTES = 512  # what holding a packet costs beside its payload
MAX_AT_ONCE = 256

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a tap takes.

    Args:
        filters: topic filters.
        field: JSON field of the text, with dots for nested ones; empty for the whole payload.
        longest: most bytes of a payload.
        least: fewest texts to learn from.
        eval_limit: most texts that are held out and scored.
        waits: whether the device has nothing else to learn from.
    """

    filters: frozenset[str]
    field: str
    longest: int
    least: int
    eval_limit: int
    waits: bool = True


class Tap:
    """Takes texts from the bus into a store, and gives a session those that were there when its round began.

    A link of its own: what others say at full rate then waits beside the agent's inbox and not in it, and
    the agent's mailbox goes on refusing all that is not below its root.

    Args:
        link: not open yet; it only listens.
        store: where texts go.
        snapshot: what is learnt from.
        terms: what is taken.
    """

    def __init__(self, link: Link, store: TextStore, snapshot: Snapshot, terms: Terms) -> None:
        self._link = link
        self._store = store
        self._snapshot = snapshot
        self._terms = terms
        self._inbox: queue.SimpleQueue[Packet | None] = queue.SimpleQueue()
        # Each is written by one thread alone; their difference waits.
        self._arrived_bytes = self._taken_bytes = 0
        self._storing = threading.Lock()  # sessions are settled by another thread than the one that stores
        self._told: set[str] = set()
        self._taker: threading.Thread | None = None
        self.counts: Counter[str] = Counter()
        """Messages by what became of them: `new`, `known`, `lost`, `unwritten`, or why they are no texts."""

    def open(self) -> None:
        """Listen.

        Raises:
            UserError: the broker is not there, or refuses.
        """
        self._taker = threading.Thread(target=self._take_all, name="tap", daemon=True)
        self._taker.start()
        self._link.open(self.deliver, last_will=None)
        self._link.subscribe(self._terms.filters)

    def close(self) -> None:
        """Listen no more; what has arrived is stored."""
        self._link.close()
        self._inbox.put(None)
        if self._taker is not None:
            self._taker.join()
        self._store.close()

    def deliver(self, event: Packet | LinkChange) -> None:
        """Take what arrives; called from the link's thread."""
        if isinstance(event, LinkChange):
            return  # the link comes back by itself, and the broker says again what is retained
        if self._arrived_bytes - self._taken_bytes > MAX_WAITING_BYTES:
            self._count("lost", event.topic, "messages come faster than they can be stored")
            return
        self._arrived_bytes += len(event.payload) + PACKET_BYTES
        self._inbox.put(event)

    def take(self, packets: Sequence[Packet]) -> None:
        """Store the texts of messages; what is none is counted, and told once of its kind."""
        texts = []
        for packet in packets:
            try:
                texts.append(text_of(packet.payload, self._terms.field, longest=self._terms.longest))
            except NotATextError as error:
                self._refuse(packet, error.reason)
        try:
            with self._storing:
                new = self._store.add(texts, clock.wall())
        except UserError as error:
            # What ails the disk must not end the agent between rounds: it goes on with what it has.
            self._count("unwritten", packets[0].topic, str(error), by=len(texts))
            return
        self.counts["new"] += new
        self.counts["known"] += len(texts) - new

    def hindrance(self) -> str:
        """What the device waits for before it can join; empty if it has enough to learn from."""
        if not self._terms.waits or not self._snapshot.is_empty:
            return ""
        with self._storing:
            count = len(self._store)
        if count >= self._terms.least:
            return ""
        return f"waits for texts: {count} of {self._terms.least} from {', '.join(sorted(self._terms.filters))}"

    def settle(self, assignment: Assignment) -> None:
        """Fix what a session learns from: new texts with each round, the same ones however often it starts.

        Raises:
            RunFailedError: the disk is full or cannot be written.
        """
        training = assignment.task == "train"
        if not training and self._snapshot.digest:
            return  # scored is what was learnt from
        # A round that is done again begins from the same version.
        key = f"{assignment.round} {assignment.adapter}" if training else "before the first round"
        if self._snapshot.fix(key, self._records):
            log.info("learns from new texts", round=assignment.round, messages=dict(self.counts))

    @property
    def digest(self) -> str:
        """Changes when `records` do."""
        return self._snapshot.digest

    def records(self) -> list[Record]:
        """What the session at hand learns from."""
        return self._snapshot.records()

    def _records(self) -> Sequence[Record]:
        with self._storing:
            self._store.add((), clock.wall())  # lets go of what has become too old since the last message
            texts = self._store.texts()
        if len(texts) < self._terms.least:
            return self._snapshot.records()  # there are files to learn from, or somebody has emptied the store
        return deal(texts, eval_limit=self._terms.eval_limit)

    def _take_all(self) -> None:
        """Thread: store what has arrived, as much of it at once as there is."""
        going_on = True
        while going_on:
            waiting = [self._inbox.get()]
            while len(waiting) < MAX_AT_ONCE and not self._inbox.empty():
                waiting.append(self._inbox.get())
            going_on = None not in waiting
            packets = [each for each in waiting if each is not None]
            if packets:
                self.take(packets)
            self._taken_bytes += sum(len(each.payload) + PACKET_BYTES for each in packets)

    def _refuse(self, packet: Packet, reason: Reason) -> None:
        if packet.payload:  # else a retained message was cleared
            what = f"{reason}: {self._terms.field}" if reason is Reason.NO_FIELD else str(reason)
            self._count(reason.name.lower(), packet.topic, what)

    def _count(self, kind: str, topic: str, reason: str, by: int = 1) -> None:
        self.counts[kind] += by
        if kind not in self._told:
            self._told.add(kind)
            log.warning("the tap passes over a message, and others of the kind", topic=topic, reason=reason)
