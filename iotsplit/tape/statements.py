"""What an agent said, made comparable: what names it, and what of it has to be the same. Pure.

What follows from when a message was delivered, or from which process spoke, is left out here and nowhere else
(docs/replay.md has the list).
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from iotsplit.errors import PeerError
from iotsplit.messages import Contents, Resume, decode_content
from iotsplit.states import (
    AdapterHead,
    AdapterLatest,
    Assignment,
    Birth,
    CheckpointHead,
    Event,
    Metrics,
    Reply,
    Round,
    decode_state,
)
from iotsplit.tape.letters import Letter

Key = tuple[object, ...]

OF_ONE_RUN = frozenset({"state", "assign", "checkpoint", "command"})
"""First words of what names incarnations and epochs."""

TIMING_EVENTS = frozenset({"back", "lost"})
"""Last words of events that say when somebody was heard."""
TIMING_FIELDS = ("wall_s", "seconds", "bytes", "steps_replayed")
"""Of an event's detail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One thing that was said.

    Args:
        key: what names it: the same thing said again has the same.
        topic: where.
        value: fields that have to be the same.
        body: bytes that have to be the same, or nearly so: a frame's content, or a safetensors file.
        content: of a frame, decoded.
        session: of a frame or checkpoint.
        place: step and micro-batch of a frame.
        kind: in words.
        record: number of the record in the tape, 0 for what a replay said.
        count: how many were said before it, by the same speaker.
    """

    key: Key
    topic: str
    value: Any = None
    body: bytes = b""
    content: Contents | None = None
    session: str = ""
    place: tuple[int, int] | None = None
    kind: str = ""
    record: int = 0
    count: int = 0


@dataclass(slots=True)
class _Sequence:
    last: Any = None
    count: int = -1


@dataclass(slots=True)
class _Cut:
    """Pieces of one adapter version or checkpoint until its head comes."""

    pieces: dict[int, bytes] = field(default_factory=dict)


class Speaker:
    """Makes statements of the letters of one agent, in the order in which it said them.

    Args:
        exact: bytes have to be the same; else digests are left out, because they follow from bytes.
        across_runs: another run says it: names of sessions, epochs and processes are others.
    """

    def __init__(self, *, exact: bool, across_runs: bool = False) -> None:
        self._exact = exact
        self._across_runs = across_runs
        self._sequences: dict[Key, _Sequence] = {}
        self._events: Counter[tuple[str, str]] = Counter()
        self._cuts: dict[tuple[str, ...], _Cut] = {}
        self._count = 0
        self._makers: dict[str, Callable[[Letter], Iterator[Statement]]] = {
            "lan": self._frame,
            "wan": self._frame,
            "update": self._frame,
            "state": self._state,
            "round": self._round,
            "assign": self._assignment,
            "events": self._event,
            "metrics": self._metrics,
            "command": self._reply,
            "adapter": self._adapter,
            "checkpoint": self._checkpoint,
        }

    def statements(self, letter: Letter, *, record: int = 0) -> Iterator[Statement]:
        """What a letter says, as far as it can be compared."""
        make = self._makers.get(letter.first)
        if make is None or not letter.body or (self._across_runs and letter.first in OF_ONE_RUN):
            return
        try:
            for statement in make(letter):
                self._count += 1
                yield dataclasses.replace(statement, record=record, count=self._count)
        except PeerError:
            return

    # --- one method for each first word

    def _frame(self, letter: Letter) -> Iterator[Statement]:
        head = letter.head
        assert head is not None  # noqa: S101 - frames have one
        content = decode_content(letter.body)
        kind = letter.kind
        if kind == "want":
            return  # asks for what is late: a matter of time
        # Without epoch and receiver: what is sent again after a move is the same to the bit.
        key: Key = (
            self._named(letter.session),
            head.device,
            head.tier,
            head.to_tier,
            head.step,
            head.micro_batch,
            kind,
        )
        body = letter.body
        if isinstance(content, Resume):
            key, body = (*key, content.step), b""  # its turn counts what was lost on the way
        yield Statement(
            key=key,
            topic=letter.record.topic,
            body=body,
            content=content,
            session=letter.session,
            place=(head.step, head.micro_batch),
            kind=kind,
        )

    def _state(self, letter: Letter) -> Iterator[Statement]:
        birth = decode_state(letter.body, Birth)
        if birth.online:
            # Process, program and thread count may be others, and a part says as much as the whole model.
            told = msgspec.structs.replace(birth, pid=0, version="", part="", threads=0, incarnation=0)
            yield from self._in_turn(letter, ("state", birth.incarnation), told)

    def _round(self, letter: Letter) -> Iterator[Statement]:
        yield from self._in_turn(letter, ("round",), decode_state(letter.body, Round))

    def _assignment(self, letter: Letter) -> Iterator[Statement]:
        said = decode_state(letter.body, Assignment)
        if not self._exact:
            said = msgspec.structs.replace(said, adapter="")
        yield Statement(
            key=("assign", said.device, said.epoch),
            topic=letter.record.topic,
            value=said,
            session=said.session,
            kind="assignment",
        )

    def _event(self, letter: Letter) -> Iterator[Statement]:
        event = decode_state(letter.body, Event)
        if event.kind.rpartition("_")[2] in TIMING_EVENTS:
            return
        self._events[event.kind, event.agent] += 1
        yield Statement(
            key=("event", event.kind, event.agent, self._events[event.kind, event.agent]),
            topic=letter.record.topic,
            value=_detail(event.detail),
            kind=f"event {event.kind}",
        )

    def _metrics(self, letter: Letter) -> Iterator[Statement]:
        metrics = decode_state(letter.body, Metrics)
        if metrics.session is None or metrics.step is None:
            return  # a heartbeat
        yield Statement(
            key=("metrics", self._named(metrics.session), metrics.role, metrics.step),
            topic=letter.record.topic,
            value={"tokens": metrics.tokens, "loss": metrics.loss, "round": metrics.round},
            session=metrics.session,
            place=(metrics.step, 0),
            kind="metrics",
        )

    def _reply(self, letter: Letter) -> Iterator[Statement]:
        if letter.words:
            reply = decode_state(letter.body, Reply)
            yield Statement(key=("reply", reply.id), topic=letter.record.topic, value=reply, kind="reply")

    def _adapter(self, letter: Letter) -> Iterator[Statement]:
        if letter.words == ("latest",):
            yield from self._in_turn(letter, ("latest",), decode_state(letter.body, AdapterLatest))
            return
        if letter.words[-1] != "head":
            self._keep(letter)
            return
        head = decode_state(letter.body, AdapterHead)
        cut = self._cuts.pop(letter.words[:-1], _Cut())
        sizes = {name: section.size_bytes for name, section in head.sections.items()}
        yield Statement(
            key=("adapter", head.version, "head"),
            topic=letter.record.topic,
            value=head if self._exact else (head.version, head.round, head.model, sizes),
            kind="adapter head",
        )
        for name, section in head.sections.items():
            wanted = range(section.first, section.first + section.chunks)
            yield Statement(
                key=("adapter", head.version, name),
                topic=letter.record.topic,
                body=b"".join(cut.pieces.get(index, b"") for index in wanted),
                kind=f"adapter version {head.version} section {name}",
            )

    def _checkpoint(self, letter: Letter) -> Iterator[Statement]:
        if letter.words[-1] != "head":
            self._keep(letter)
            return
        head = decode_state(letter.body, CheckpointHead)
        cut = self._cuts.pop(letter.words[:-1], _Cut())
        value = head if self._exact else msgspec.structs.replace(head, sha256="")
        yield Statement(
            key=("checkpoint", head.device, head.name),
            topic=letter.record.topic,
            value=value,
            body=b"".join(cut.pieces.get(index, b"") for index in range(head.chunks)),
            session=head.session,
            place=(head.step, 0),
            kind="checkpoint",
        )

    def _named(self, session: str) -> str:
        """A session's name, without the word of its run if runs are compared."""
        return session.partition("-")[2] if self._across_runs else session

    def _keep(self, letter: Letter) -> None:
        if letter.words[-1].isdecimal():
            # One of each family at a time: whoever says pieces says their head before the next.
            self._cuts = {key: cut for key, cut in self._cuts.items() if key == letter.words[:-1]}
            self._cuts.setdefault(letter.words[:-1], _Cut()).pieces[int(letter.words[-1])] = letter.body

    def _in_turn(self, letter: Letter, key: Key, value: Any) -> Iterator[Statement]:
        """A state: each that differs from the one before counts, however often it is said."""
        sequence = self._sequences.setdefault(key, _Sequence())
        if sequence.count >= 0 and sequence.last == value:
            return
        sequence.last = value
        sequence.count += 1
        yield Statement(key=(*key, sequence.count), topic=letter.record.topic, value=value, kind=str(key[0]))


def _detail(text: str) -> Any:
    """An event's detail without what follows from time."""
    try:
        detail = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    if not isinstance(detail, dict):
        return detail
    return {key: value for key, value in detail.items() if key not in TIMING_FIELDS}
