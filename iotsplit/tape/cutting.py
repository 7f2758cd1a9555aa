"""Part of a tape, or several tapes as one. Pure."""

import heapq
from collections.abc import Iterable, Iterator

import msgspec

from iotsplit.tape.format import Header, Record
from iotsplit.tape.letters import FRAMES, Letter, Listener, find_topics, is_retained
from iotsplit.tape.selection import Moment, Selection, Window


class Cutter:
    """Takes a part out of a tape.

    What was retained on the broker when the part begins comes first, so that the part can be used alone. Chunks
    of a frame stay together: it is enough to know their session.

    Args:
        header: of the tape.
        selection: topics, a session or a round; no kind.
        start: the first moment, or None for the beginning.
        end: the first moment that is not meant any more, or None for the end.
    """

    def __init__(self, header: Header, selection: Selection, start: Moment | None, end: Moment | None) -> None:
        self._header, self._selection = header, selection
        self._listener: Listener | None = None
        self._window = Window(start, end, round_of=lambda _: self._round)
        self._retained: dict[str, Record] | None = {}

    def cut(self, records: Iterable[Record]) -> Iterator[Record]:
        """The part."""
        for record in records:
            self._listen(record)
            inside = self._window.holds(record)
            if self._window.over:
                return
            if inside and self._chooses(record):
                yield from self._context(record)
                yield record
            elif self._retained is not None:
                self._note(self._retained, record)

    @property
    def _round(self) -> int:
        return self._listener.round if self._listener is not None else 0

    def _listen(self, record: Record) -> None:
        if self._listener is None:
            topics = find_topics(self._header, record.topic)
            self._listener = Listener(topics) if topics is not None else None
        # Frames are not put together: that would hold their chunks back.
        if self._listener is not None and self._below_root(record)[0] not in FRAMES:
            self._listener.take(record)

    def _chooses(self, record: Record) -> bool:
        selection, listener = self._selection, self._listener
        if not selection.wants(record.topic):
            return False
        if listener is None or not selection.needs_letters:
            return not selection.needs_letters
        words = self._below_root(record)
        session = words[-1] if words[0] in ("lan", "wan") else words[2] if words[0] == "update" else ""
        letter = Letter(record=record, first=words[0], session=session)
        chosen = selection.session in (None, session)
        return chosen and selection.round in (None, listener.round_of(letter))

    def _context(self, record: Record) -> Iterator[Record]:
        held, self._retained = self._retained, None
        for each in (held or {}).values():
            if self._selection.wants(each.topic):
                yield msgspec.structs.replace(each, mono_ns=record.mono_ns, wall_ns=record.wall_ns, retain=True)

    def _note(self, retained: dict[str, Record], record: Record) -> None:
        if not record.payload:
            retained.pop(record.topic, None)
        elif record.retain or is_retained("/".join(self._below_root(record))):
            retained.pop(record.topic, None)
            retained[record.topic] = record

    def _below_root(self, record: Record) -> list[str]:
        root = self._listener.topics.root if self._listener is not None else None
        if root is None or not record.topic.startswith(root):
            return [""]
        return record.topic[len(root) :].split("/")


def merge(tapes: Iterable[Iterable[Record]]) -> Iterator[Record]:
    """The records of several tapes by wall time, which is their common clock."""
    for record in heapq.merge(*tapes, key=lambda each: each.wall_ns):
        yield msgspec.structs.replace(record, mono_ns=record.wall_ns)
