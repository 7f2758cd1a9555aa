"""What a tape tells a person of a run, counted record by record. Pure."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from iotsplit.chunks import read as read_chunk
from iotsplit.errors import PeerError
from iotsplit.plan import Tier
from iotsplit.states import Assignment, Birth, Event, Metrics, Round, decode_state
from iotsplit.tape.format import Record
from iotsplit.tape.letters import FRAMES, Letter
from iotsplit.tape.measures import Distribution, Recent
from iotsplit.tape.numbers import Tensor

MOST_AGENTS = MOST_SESSIONS = 4096
MOST_ROUNDS = 10_000
MOST_OPEN = 4096
"""Frames whose chunks are waited for, and identities that are remembered, at once."""

HOPS: dict[tuple[str, str], tuple[str, str]] = {
    ("activation", Tier.DEVICE): ("", "device"),
    ("activation", Tier.EDGE): ("device", "edge forward"),
    ("gradient", Tier.CLOUD): ("edge forward", "cloud"),
    ("gradient", Tier.EDGE): ("cloud", "edge backward"),
}
"""For each frame of a step the place that it comes from, and the one that it brings the step to."""


class AgentRow(msgspec.Struct, kw_only=True):
    """One agent, as it said itself."""

    role: str
    incarnations: int = 0
    incarnation: int = 0
    lost: int = 0
    model: str = ""
    threads: int = 0
    problem: str = ""
    sent: int = 0
    sent_bytes: int = 0


class SessionRow(msgspec.Struct, kw_only=True):
    """One session.

    Args:
        moves: assignments under which it went on at another edge.
        epochs: assignments of the session.
        wants: requests for what was late.
    """

    device: str
    task: str
    round: int
    edges: list[str] = []
    epochs: int = 0
    epoch: int = -1
    moves: int = 0
    steps: int = 0
    frames: int = 0
    wants: int = 0
    resumes: int = 0


class RoundRow(msgspec.Struct, kw_only=True):
    """One round: when it began and ended, in seconds from the tape's first record."""

    round: int
    began_s: float
    ended_s: float | None = None
    detail: dict[str, Any] = {}


class TensorRow(msgspec.Struct, kw_only=True):
    """Tensors of one kind: how many, their last shape, and values over all of them."""

    tensors: int = 0
    dtype: str = ""
    shape: tuple[int, ...] = ()
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    norm: float | None = None
    nan: int = 0
    unreadable: int = 0


class Summary:
    """Takes every record and every letter of a tape."""

    def __init__(self) -> None:
        self.records = self.payload_bytes = 0
        self.first_ns = self.last_ns = self.wall_ns = 0
        self.classes: dict[str, list[int]] = {}  # records and bytes by first word
        self.agents: dict[str, AgentRow] = {}
        self.sessions: dict[str, SessionRow] = {}
        self.rounds: dict[int, RoundRow] = {}
        self.events: Counter[str] = Counter()
        self.hops: dict[str, Distribution] = {}
        self.tensors: dict[str, TensorRow] = {}
        self.repeated = self.missing = 0
        self._open: Recent[tuple[object, ...], set[int]] = Recent(MOST_OPEN)
        self._whole: Recent[tuple[object, ...], int] = Recent(MOST_OPEN)
        self._steps: Recent[tuple[str, int, int], tuple[str, int]] = Recent(MOST_OPEN)

    def record(self, record: Record, first: str) -> None:
        """Take a record, whatever it is a part of."""
        if not self.records:
            self.first_ns, self.wall_ns = record.mono_ns, record.wall_ns
        self.last_ns = max(self.last_ns, record.mono_ns)
        self.records += 1
        self.payload_bytes += len(record.payload)
        counts = self.classes.setdefault(first, [0, 0])
        counts[0] += 1
        counts[1] += len(record.payload)
        if first in FRAMES:
            self._chunk(record)

    def letter(self, letter: Letter) -> None:
        """Take what was said."""
        if letter.sender in self.agents:
            row = self.agents[letter.sender]
            row.sent += 1
            row.sent_bytes += len(letter.record.payload)
        if letter.head is not None:
            self._frame(letter)
        elif letter.body:
            try:
                self._state(letter)
            except (PeerError, msgspec.DecodeError, KeyError, TypeError, ValueError):
                return  # whatever was said there, it is not of the protocol

    def tensor(self, letter: Letter, tensor: Tensor) -> None:
        """Take a tensor of a frame."""
        assert letter.head is not None  # noqa: S101 - only frames have tensors
        name = tensor.name if tensor.codec != "safetensors" else "parameters"
        key = f"{letter.kind}.{name} {letter.head.tier}→{letter.head.to_tier} {tensor.codec}"
        row = self.tensors.setdefault(key, TensorRow())
        row.tensors += 1
        row.dtype, row.shape = tensor.dtype, tensor.shape
        row.unreadable += bool(tensor.problem)
        if tensor.values is None:
            return
        found = tensor.statistics()
        row.nan += int(found.get("nan", 0))
        if "norm" not in found:
            return
        row.min = found["min"] if row.min is None else min(row.min, found["min"])
        row.max = found["max"] if row.max is None else max(row.max, found["max"])
        for name in ("mean", "norm"):
            before = getattr(row, name) or 0.0
            setattr(row, name, before + (found[name] - before) / row.tensors)

    def finish(self) -> None:
        """There is no more."""
        for pieces in self._open.values():
            self.missing += _missing(pieces)

    def rows(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "records": self.records,
            "payload_bytes": self.payload_bytes,
            "seconds": (self.last_ns - self.first_ns) / 1e9,
            "began_wall_s": self.wall_ns / 1e9,
            "classes": {
                name: {"records": count, "bytes": size} for name, (count, size) in sorted(self.classes.items())
            },
            "agents": msgspec.to_builtins(self.agents),
            "rounds": [msgspec.to_builtins(row) for row in self.rounds.values()],
            "sessions": msgspec.to_builtins(self.sessions),
            "events": dict(self.events),
            "hops_s": {name: hop.row() for name, hop in self.hops.items()},
            "chunks": {"repeated": self.repeated, "missing": self.missing},
            "tensors": msgspec.to_builtins(self.tensors),
        }

    # --- what is in it

    def _state(self, letter: Letter) -> None:
        match letter.first:
            case "state":
                self._birth(decode_state(letter.body, Birth))
            case "assign":
                self._assignment(decode_state(letter.body, Assignment))
            case "round":
                self._round(decode_state(letter.body, Round), letter.record)
            case "events":
                self._event(decode_state(letter.body, Event), letter.record)
            case "metrics":
                self._metrics(decode_state(letter.body, Metrics))

    def _chunk(self, record: Record) -> None:
        try:
            chunk = read_chunk(record.payload)
        except PeerError:
            return
        key = (record.topic, chunk.head, chunk.total, chunk.crc32)
        if key in self._whole:
            self.repeated += 1
            return
        pieces = self._open.get(key)
        if pieces is None:
            pieces = {-chunk.total}  # how many there are, as a number that no chunk has
        if chunk.number in pieces:
            self.repeated += 1
        pieces.add(chunk.number)
        if len(pieces) > chunk.total:
            self._open.pop(key)
            self._whole.put(key, 0)
        elif (gone := self._open.put(key, pieces)) is not None:
            self.missing += _missing(gone)

    def _birth(self, birth: Birth) -> None:
        if birth.agent not in self.agents and len(self.agents) >= MOST_AGENTS:
            return
        row = self.agents.setdefault(birth.agent, AgentRow(role=birth.role))
        row.incarnations += birth.incarnation > row.incarnation
        row.incarnation = max(row.incarnation, birth.incarnation)
        row.lost += not birth.online
        row.model, row.threads, row.problem = birth.model, birth.threads, birth.problem

    def _assignment(self, said: Assignment) -> None:
        if not said.session or (said.session not in self.sessions and len(self.sessions) >= MOST_SESSIONS):
            return
        row = self.sessions.setdefault(
            said.session, SessionRow(device=said.device, task=said.task, round=said.round)
        )
        if said.epoch <= row.epoch:
            return
        row.epoch = said.epoch
        row.epochs += 1
        if row.edges and said.edge != row.edges[-1]:
            row.moves += 1
        if said.edge not in row.edges[-1:]:
            row.edges = [*row.edges[-15:], said.edge]

    def _round(self, said: Round, record: Record) -> None:
        at = (record.mono_ns - self.first_ns) / 1e9
        if said.phase == "training" and said.round not in self.rounds and len(self.rounds) < MOST_ROUNDS:
            self.rounds[said.round] = RoundRow(round=said.round, began_s=at)

    def _event(self, event: Event, record: Record) -> None:
        if event.kind in self.events or len(self.events) < MOST_AGENTS:
            self.events[event.kind] += 1
        if event.kind == "round_finished":
            detail: Mapping[str, Any] = msgspec.json.decode(event.detail)
            row = self.rounds.get(int(detail["round"]))
            if row is not None:
                row.ended_s = (record.mono_ns - self.first_ns) / 1e9
                row.detail = dict(detail)

    def _metrics(self, metrics: Metrics) -> None:
        row = self.sessions.get(metrics.session or "")
        if row is not None and metrics.step is not None:
            row.steps = max(row.steps, metrics.step + 1)

    def _frame(self, letter: Letter) -> None:
        assert letter.head is not None  # noqa: S101 - frames have one
        row = self.sessions.get(letter.session)
        kind = letter.kind
        if row is not None:
            row.frames += 1
            row.wants += kind == "want"
            row.resumes += kind == "resume"
        head = letter.head
        hop = HOPS.get((kind, head.tier))
        if hop is None:
            return
        key = (letter.session, head.step, head.micro_batch)
        before = self._steps.get(key)
        now = letter.record.mono_ns
        if before is not None and before[0] == hop[0]:
            self.hops.setdefault(hop[1], Distribution()).add((now - before[1]) / 1e9)
        self._steps.put(key, (hop[1], now))


def _missing(pieces: set[int]) -> int:
    return -min(pieces) - (len(pieces) - 1)
