"""``iotsplit inspect``: what a tape tells of a run."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iotsplit.errors import UsageError
from iotsplit.options import CommonOptions, parse
from iotsplit.tape.extraction import Extraction
from iotsplit.tape.files import explain, items
from iotsplit.tape.format import Damage, Header, Record
from iotsplit.tape.letters import Letter, Listener, find_topics
from iotsplit.tape.listing import lines
from iotsplit.tape.numbers import can_unpack, tensors_of
from iotsplit.tape.places import Index
from iotsplit.tape.selection import Selection
from iotsplit.tape.summary import Summary
from iotsplit.tape.timeline import Timeline
from iotsplit.topics import check_filter

EXAMPLES = (
    "iotsplit inspect plant7.tape",
    "iotsplit inspect plant7.tape --timeline plant7.html",
    "iotsplit inspect plant7.tape --round 2 --kind gradient --extract gradients",
    "iotsplit record --duration 60s - | iotsplit inspect --json -",
)


@dataclass(frozen=True, kw_only=True)
class InspectOptions(CommonOptions):
    """What to look at.

    Shows what a tape tells of a run: agents, rounds, sessions, bytes, latencies, tensors.

    Args:
        tape: File of the tape, or - for a pipe. One that is still being written will do.
        topic: Topic filters; give it again for more.
        session: Only what belongs to this session.
        round: Only what belongs to this round.
        kind: Only frames of this kind, such as activation or gradient; or a first word of topics.
        timeline: Write a page that shows who said what when, one file for any browser.
        extract: Directory to write the tensors to, as .npy files and .safetensors.
    """

    tape: Path
    topic: tuple[str, ...] = ()
    session: str | None = None
    round: int | None = None
    kind: str | None = None
    timeline: Path | None = None
    extract: Path | None = None


class Inspection:
    """Reads a tape once and hands on what is chosen.

    Args:
        selection: what is chosen.
        timeline: takes it too, if one is wanted.
        extraction: takes it too, if tensors are wanted.
    """

    def __init__(
        self, selection: Selection, *, timeline: Timeline | None = None, extraction: Extraction | None = None
    ) -> None:
        self.summary = Summary()
        self.header = Header()
        self.damages: list[str] = []
        self.lost = 0
        self.closed = False
        self._selection = selection
        self._timeline, self._extraction = timeline, extraction
        self._listener: Listener | None = None
        self._values = can_unpack()

    def read(self, path: Path) -> None:
        """Read the tape."""
        for _, item in items(path):
            match item:
                case Record():
                    self._record(item)
                case Header():
                    self.header = item
                case Index():
                    self.lost, self.closed = item.lost, True
                case Damage():
                    self.damages.append(explain(path, item))
        self.summary.finish()

    def _record(self, record: Record) -> None:
        if self._listener is None:
            topics = find_topics(self.header, record.topic)
            self._listener = Listener(topics) if topics is not None else None
        listener, selection = self._listener, self._selection
        letter = listener.take(record) if listener is not None else Letter(record=record, first="")
        if letter is not None and listener is not None and not selection.takes(letter, listener):
            return
        if (letter is None and selection.needs_letters) or not selection.wants(record.topic):
            return
        first = _first(record, listener)
        self.summary.record(record, first)
        if self._timeline is not None:
            self._timeline.record(record, first, letter)
        if letter is None:
            return
        self.summary.letter(letter)
        for tensor in tensors_of(letter, values=self._values):
            self.summary.tensor(letter, tensor)
            if self._extraction is not None:
                self._extraction.take(letter, tensor)


def _first(record: Record, listener: Listener | None) -> str:
    root = listener.topics.root if listener is not None else ""
    if not root or not record.topic.startswith(root):
        return ""
    return record.topic[len(root) :].partition("/")[0]


def main(words: Sequence[str]) -> int:
    """Show what is on a tape."""
    options = parse(InspectOptions, words, name="iotsplit inspect", examples=EXAMPLES, places=("tape",))
    selection = selection_of(options.topic, session=options.session, round_=options.round, kind=options.kind)
    timeline = Timeline(str(options.tape)) if options.timeline is not None else None
    extraction = Extraction(options.extract) if options.extract is not None else None
    if timeline is not None and options.timeline is not None and options.timeline.exists():
        raise UsageError(f"{options.timeline} exists already", fix="choose another name, or remove it")
    inspection = Inspection(selection, timeline=timeline, extraction=extraction)
    inspection.read(options.tape)
    for line in inspection.damages if not options.json else ():
        sys.stderr.write(f"iotsplit inspect: {line}\n")
    if not inspection.summary.records:
        raise UsageError(*_nothing(options.tape, selection), fix="see iotsplit inspect TAPE for what is there")
    if timeline is not None and options.timeline is not None:
        timeline.write(options.timeline)
    if extraction is not None:
        extraction.close()
    _show(options, inspection)
    return 0


def selection_of(
    filters: tuple[str, ...], *, session: str | None = None, round_: int | None = None, kind: str | None = None
) -> Selection:
    """What the options choose.

    Raises:
        UsageError: a topic filter is not one.
    """
    return Selection(
        filters=tuple(check_filter(each) for each in filters), session=session, round=round_, kind=kind
    )


def _nothing(tape: Path, selection: Selection) -> tuple[str]:
    if selection.is_all:
        return (f"{tape} holds no messages",)
    return (f"nothing in {tape} is of {selection}",)


def _show(options: InspectOptions, inspection: Inspection) -> None:
    header = inspection.header
    rows: dict[str, Any] = {
        "tape": str(options.tape),
        "fleet": header.fleet,
        "filters": list(header.filters),
        "redacted": header.redacted,
        "closed": inspection.closed,
        "lost": inspection.lost,
        "damaged": inspection.damages,
        **inspection.summary.rows(),
    }
    if options.json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    what = f"fleet {header.fleet}" if header.fleet else ", ".join(header.filters) or "unknown"
    notes = [f"{options.tape}: {what}"]
    notes += ["tensors replaced by zeros"] if header.redacted else []
    notes += [f"{inspection.lost} messages lost while recording"] if inspection.lost else []
    notes += [] if inspection.closed else ["not closed (still being written, or cut off)"]
    sys.stdout.write(", ".join(notes) + "\n")
    sys.stdout.write("\n".join(lines(rows)) + "\n")
    if rows["tensors"] and not can_unpack():
        sys.stdout.write("values of tensors need pip install 'iotsplit[device]'\n")
