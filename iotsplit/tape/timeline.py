"""A page that shows who said what when: one file, lanes for agents, bars for messages."""

import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from iotsplit.errors import PeerError
from iotsplit.plan import Tier
from iotsplit.runtime.files import writing
from iotsplit.states import Birth, Event, Round, decode_state
from iotsplit.tape.format import Record
from iotsplit.tape.letters import FRAMES, Letter

MOST_BARS = 60_000
"""A browser draws so many at ease. Bars of one agent and kind become one when they would be more."""
MOST_LANES = 1000
MOST_MARKS = 2000
FIRST_MERGE_S = 1e-4
MARKED = frozenset({"lost", "moved", "dropped", "again", "back", "resumed", "carried", "refused"})
"""Last words of events that are marked."""
OTHERS = "others"
DOWNWARDS = (Tier.CLOUD, Tier.EDGE, Tier.DEVICE)
MOST_WAITING = 4096
"""Bars of frames of which chunks are still to come."""

Bar = list[Any]
"""Start and end in seconds, lane, kind, messages, bytes, text."""


class Timeline:
    """Gathers bars, in memory that does not grow with the tape.

    Args:
        name: of the tape.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lanes: dict[str, int] = {}
        self._kinds: dict[str, int] = {}
        self._bars: list[Bar] = []
        self._newest: dict[tuple[int, int], Bar] = {}
        self._open: dict[str, list[Bar]] = {}  # bars of frames that are not whole yet, by topic
        self._waiting = 0
        self._tiers: dict[str, Tier] = {}
        self._rounds: dict[int, list[float]] = {}
        self._marks: list[tuple[float, str]] = []
        self._merge_s = 0.0
        self._origin_ns: int | None = None
        self._end = 0.0
        self._records = 0

    def record(self, record: Record, first: str, letter: Letter | None) -> None:
        """Take a record.

        Args:
            record: the message.
            first: first word of its topic below the fleet's root.
            letter: what it completes, if it does.
        """
        if self._origin_ns is None:
            self._origin_ns = record.mono_ns
        at = max(0.0, (record.mono_ns - self._origin_ns) / 1e9)
        self._end = max(self._end, at)
        self._records += 1
        lane = self._lane(_sender(record, first, letter))
        bar: Bar = [at, at, lane, 0, 1, len(record.payload), ""]
        if letter is None and first in FRAMES:
            self._wait(record.topic, bar)
            return
        bars = [*self._open.pop(record.topic, []), bar]
        self._waiting -= len(bars) - 1
        self._close(bars, (letter.kind if letter is not None else first) or OTHERS, _text(letter))
        if letter is not None and letter.body and letter.first in ("events", "round", "state"):
            self._note(letter, at)

    def write(self, path: Path) -> None:
        """Write the page.

        Raises:
            RunFailedError: it cannot be written.
        """
        for topic in list(self._open):
            self._give_up(topic)
        names = list(self._lanes)
        order = sorted(range(len(names)), key=lambda lane: self._rank(names[lane]))
        places = {lane: place for place, lane in enumerate(order)}
        ends = [*(span[0] for span in self._rounds.values()), self._end][1:]
        data = {
            "name": self._name,
            "end": self._end,
            "records": self._records,
            "merged": self._merge_s,
            "lanes": [names[lane] for lane in order],
            "kinds": list(self._kinds),
            "rounds": [
                (number, span[0], end) for (number, span), end in zip(self._rounds.items(), ends, strict=True)
            ],
            "marks": self._marks,
            "bars": [[*bar[:2], places[bar[2]], *bar[3:]] for bar in self._bars],
        }
        page = files("iotsplit.tape").joinpath("timeline.html").read_text(encoding="utf-8")
        # What comes from the bus must not end the script element that holds it.
        inside = msgspec.json.encode(data).decode().replace("<", "\\u003c")
        with writing(path, fix="free space there or choose another --timeline"):
            path.write_text(page.replace("{{DATA}}", inside), encoding="utf-8")

    def _lane(self, sender: str) -> int:
        if sender not in self._lanes and len(self._lanes) >= MOST_LANES:
            sender = OTHERS
        return self._lanes.setdefault(sender, len(self._lanes))

    def _rank(self, name: str) -> tuple[int, list[tuple[int, str]]]:
        """The cloud first, then edges and devices by name, in which 10 comes after 9."""
        tier = self._tiers.get(name)
        words = re.findall(r"\d+|\D+", name)
        by_name = [(int(word), "") if word.isdecimal() else (0, word) for word in words]
        return len(Tier) + (name == OTHERS) if tier is None else DOWNWARDS.index(tier), by_name

    def _wait(self, topic: str, bar: Bar) -> None:
        """Keep the bar of a chunk until its frame is whole: only then is known what it is."""
        self._open.setdefault(topic, []).append(bar)
        self._waiting += 1
        while self._waiting > MOST_WAITING:
            self._give_up(next(iter(self._open)))

    def _give_up(self, topic: str) -> None:
        bars = self._open.pop(topic)
        self._waiting -= len(bars)
        self._close(bars, "incomplete", topic)

    def _close(self, bars: Iterable[Bar], kind: str, text: str) -> None:
        place = self._kinds.setdefault(kind, len(self._kinds))
        for bar in bars:
            bar[3], bar[6] = place, text
            self._add(bar)

    def _add(self, bar: Bar) -> None:
        self._join([bar])
        while len(self._bars) > MOST_BARS:
            self._merge_s = self._merge_s * 2 or FIRST_MERGE_S
            bars, self._bars, self._newest = self._bars, [], {}
            self._join(bars)

    def _join(self, bars: Iterable[Bar]) -> None:
        for bar in bars:
            key = (bar[2], bar[3])
            before = self._newest.get(key)
            if self._merge_s and before is not None and bar[0] - before[1] <= self._merge_s:
                before[1] = max(before[1], bar[1])
                before[4], before[5], before[6] = before[4] + bar[4], before[5] + bar[5], ""
                continue
            self._newest[key] = bar
            self._bars.append(bar)

    def _note(self, letter: Letter, at: float) -> None:
        try:
            if letter.first == "state":
                birth = decode_state(letter.body, Birth)
                if birth.agent in self._lanes:
                    self._tiers[birth.agent] = birth.role
                return
            if letter.first == "round":
                said = decode_state(letter.body, Round)
                if said.phase == "training" and len(self._rounds) < MOST_MARKS:
                    self._rounds.setdefault(said.round, [at])
                return
            event = decode_state(letter.body, Event)
        except PeerError:
            return
        if event.kind.rpartition("_")[2] in MARKED and len(self._marks) < MOST_MARKS:
            self._marks.append((at, f"{event.kind} {event.agent}"))


def _sender(record: Record, first: str, letter: Letter | None) -> str:
    if letter is not None:
        return letter.sender or OTHERS
    if first not in ("lan", "wan"):
        return OTHERS
    return record.topic.rsplit("/", 2)[1]  # …/<to>/<sender>/<session>


def _text(letter: Letter | None) -> str:
    if letter is None or letter.head is None:
        return ""
    head = letter.head
    to = f" to {letter.to}" if letter.to else ""
    return f"{letter.session}{to}, step {head.step}, micro-batch {head.micro_batch}, epoch {head.epoch}"
