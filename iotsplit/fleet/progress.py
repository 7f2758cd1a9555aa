"""Shows how a run goes, from what the cloud writes: live on a terminal, a plain line a round elsewhere."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
from rich.console import Console
from rich.status import Status

from iotsplit.plan import Tier
from iotsplit.runtime import clock
from iotsplit.settings import TrainingSettings
from iotsplit.states import Event, Metrics

LineT = TypeVar("LineT")

HEADINGS = ("round", "devices", "train loss", "eval loss", "exact", "device→edge", "edge→cloud", "s")
WIDTHS = (7, 9, 12, 11, 8, 13, 12, 7)
# Events that a person wants to read when they happen.
TOLD = {
    "device_lost": "{agent} is gone: {detail}",
    "edge_lost": "{agent} is gone: {detail}",
    "device_back": "{agent} is back",
    "edge_back": "{agent} is back",
    "device_restarted": "{agent} has started again",
    "edge_restarted": "{agent} has started again",
    "round_again": "once more from its start, {detail}",
    "agent_refused": "{agent} is refused: {detail}",
    "session_dropped": "{agent} is dropped from this round: {detail}",
    "fleet_waiting": "waiting: {detail}",
    "cloud_resumed": "going on {detail}",
    "rolled_back": "rolled back {detail}",
}
MOVED = "{agent} goes on at {to} after {seconds} s, {steps_replayed} steps repeated"


class Tail:
    """Reads the lines that are added to a file from now on.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = path.stat().st_size if path.exists() else 0

    def lines(self) -> Iterator[bytes]:
        """Whole lines that came since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._at += len(line)
                yield line

    def messages(self, kind: type[LineT]) -> Iterator[LineT]:
        """The same as messages of a kind; what cannot be read is left out."""
        for line in self.lines():
            try:
                yield msgspec.json.decode(line, type=kind)
            except msgspec.DecodeError:
                continue


@dataclass(kw_only=True)
class Table:
    """The rows of a run as events tell of them. Pure.

    Args:
        settings: says which rounds are evaluated.
    """

    settings: TrainingSettings
    rounds: int = 0
    _held: dict[str, Any] | None = field(default=None, init=False)

    def take(self, event: Event) -> list[str]:
        """Lines to be shown for an event."""
        match event.kind:
            case "evaluated":
                return self._evaluated(_json(event.detail))
            case "round_finished":
                return self._finished(_json(event.detail))
            case "session_moved":
                told = defaultdict(lambda: "?", agent=event.agent) | _json(event.detail)
                return [MOVED.format_map(told)]
            case kind if kind in TOLD:
                return [TOLD[kind].format(agent=event.agent, detail=event.detail or "no reason given")]
        return []

    def rest(self) -> list[str]:
        """The row that still waits for an evaluation that did not come."""
        held, self._held = self._held, None
        return [] if held is None else [row(held, None)]

    def _evaluated(self, scores: dict[str, Any]) -> list[str]:
        held, self._held = self._held, None
        if held is None and scores.get("when") != "before":
            return []
        return [row(held, scores)]

    def _finished(self, finished: dict[str, Any]) -> list[str]:
        earlier = self.rest()
        self.rounds = int(finished.get("round", self.rounds))
        if self.settings.evaluate == "rounds" or self.rounds >= self.settings.rounds:
            self._held = finished
            return earlier
        return [*earlier, row(finished, None)]


def heading() -> str:
    """The head of the table."""
    return _columns(HEADINGS)


def row(finished: dict[str, Any] | None, scores: dict[str, Any] | None) -> str:
    """One round in a line: what it trained and moved, and how held-out data scored after it."""
    exact = f"{scores['exact']}/{scores['sequences']}" if scores and "exact" in scores else "-"
    held_out = f"{scores['loss']:.3f}" if scores else "-"
    if finished is None:
        return _columns(("0", "-", "-", held_out, exact, "-", "-", "-"))
    devices = finished["devices"]
    hops = [_megabytes(finished["bytes"][hop]) for hop in ("device_edge", "edge_cloud")]
    return _columns(
        (
            str(finished["round"]),
            f"{devices}/{devices + finished['dropped']}",
            f"{finished['loss']:.3f}",
            held_out,
            exact,
            *hops,
            f"{finished['wall_s']:.0f}",
        )
    )


class Progress:
    """Follows the files of a run and shows them.

    Args:
        output: the run's output directory.
        settings: of the run.
        console: where to show; a terminal gets a live line beside the rows.
    """

    def __init__(self, output: Path, settings: TrainingSettings, console: Console) -> None:
        self._table = Table(settings=settings)
        self._events = Tail(output / "events.jsonl")
        self._metrics = Tail(output / "metrics.jsonl")
        self._console = console
        self._settings = settings
        self._status: Status | None = None
        self._started = clock.now()
        self._steps: dict[str, Metrics] = {}
        self._tokens = 0
        self.training = False

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._status = self._console.status("starting the fleet")
            self._status.start()
        self._say([heading()])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.poll()
        self._say(self._table.rest())
        if self._status is not None:
            self._status.stop()

    def poll(self) -> None:
        """Show what has happened since the last call."""
        for event in self._events.messages(Event):
            self._say(self._table.take(event))
            if event.kind == "round_started":
                self.training = True
                self._steps, self._tokens, self._started = {}, 0, clock.now()
            elif self._status is not None and event.kind in {"round_finished", "device_joined", "edge_joined"}:
                self._status.update(f"{event.kind.replace('_', ' ')}: {event.agent}")
        news = [each for each in self._metrics.messages(Metrics) if each.role is Tier.DEVICE]
        for metrics in news:
            if metrics.step is not None and metrics.loss is not None:
                self._steps[metrics.agent] = metrics
                self._tokens += metrics.tokens or 0
        if news and self._status is not None and self._steps:
            self._status.update(self._live())

    def _live(self) -> str:
        latest = list(self._steps.values())
        step = min(each.step or 0 for each in latest)
        loss = sum(each.loss or 0.0 for each in latest) / len(latest)
        rate = self._tokens / max(1e-9, clock.now() - self._started)
        peaks = max((each.peak_rss_bytes for each in latest), default=0)
        memory = f" · device {peaks / 1e6:.0f} MB" if peaks else ""
        return (
            f"round {latest[0].round}/{self._settings.rounds} · step {step}/{self._settings.local_steps}"
            f" · loss {loss:.3f} · {rate:.0f} loss tokens/s{memory}"
        )

    def _say(self, lines: list[str]) -> None:
        for line in lines:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _columns(cells: tuple[str, ...]) -> str:
    return "".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def _megabytes(hop: dict[str, int]) -> str:
    return f"{(hop['up'] + hop['down']) / 1e6:.1f} MB"


def _json(detail: str) -> dict[str, Any]:
    try:
        found = json.loads(detail)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
