"""The cloud's disk: versions, milestones, and what the run leaves in its output directory.

Everything is replaced as a whole: a power cut leaves the last milestone or the one before, never half of one.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from iotsplit.errors import RunFailedError, UsageError
from iotsplit.messages import Event, Metrics
from iotsplit.plan import Tier
from iotsplit.role import Local
from iotsplit.runtime import clock
from iotsplit.runtime.runner import peak_rss_bytes
from iotsplit.settings import TrainingSettings
from iotsplit.tensors import adapters
from iotsplit_cloud.plot import draw
from iotsplit_cloud.records import Heard, Milestone
from iotsplit_cloud.report import Report
from iotsplit_cloud.versions import KEPT_VERSIONS, Version

FORMAT = 1


class _State(msgspec.Struct, kw_only=True):
    format: int = FORMAT
    settings: dict[str, Any]
    round: int
    version: int
    rounds: dict[int, int]  # round of each kept version
    report: Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a restarted cloud goes on from."""

    round: int
    version: int
    versions: list[Version]
    optimizer: bytes
    report: Report


class Store:
    """Writes what the role keeps.

    Args:
        output: the run's output directory.
        agent: id of the cloud.
        settings: a directory of other settings is refused, never half-used.
        peft: the ``adapter_config.json`` of the exported adapter.
    """

    def __init__(self, output: Path, *, agent: str, settings: TrainingSettings, peft: dict[str, Any]) -> None:
        self._output = output
        self._agent = agent
        self._settings = msgspec.to_builtins(settings)
        self._peft = peft
        self._state = output / "state" / "cloud"
        self._rounds: dict[int, int] = {}
        self._report: Report | None = None
        self._started = clock.now()
        self._earlier_s = 0.0
        self._lines: dict[str, IO[bytes]] = {}
        with self._writing(output):
            (self._state / "versions").mkdir(parents=True, exist_ok=True)
            for name in ("metrics", "events"):
                self._lines[name] = _continued(output / f"{name}.jsonl")

    def load(self) -> Saved | None:
        """What was saved by an earlier start; nothing if there was none.

        Raises:
            UsageError: the directory is of other settings or another format.
        """
        file = self._state / "state.json"
        if not file.exists():
            return None
        try:
            state = msgspec.json.decode(file.read_bytes(), type=_State)
        except msgspec.DecodeError as error:
            raise UsageError(
                f"{file} cannot be read: {error}", fix="choose another --output, or --fresh"
            ) from None
        self._check(state)
        self._rounds = state.rounds
        self._earlier_s = state.report.wall_s
        self._report = state.report
        return Saved(
            round=state.round,
            version=state.version,
            versions=[self._version(number) for number in sorted(state.rounds)],
            optimizer=(self._state / f"optimizer-{state.round}.safetensors").read_bytes(),
            report=state.report,
        )

    def take(self, kept: Local | Metrics | Event) -> None:
        """Write one thing.

        Raises:
            RunFailedError: the disk is full or cannot be written.
        """
        with self._writing(self._output):
            match kept:
                case Metrics():
                    self._line("metrics", kept)
                case Heard():
                    self._line("metrics", kept.metrics)
                case Event():
                    self._line("events", kept)
                case Version():
                    self._save_version(kept)
                case Milestone():
                    self._save(kept)

    def close(self, state: str, reason: str = "") -> None:
        """Write how the run ended."""
        with contextlib.suppress(RunFailedError), self._writing(self._output):
            if self._report is not None:
                self._report.state, self._report.reason = state, reason
                self._write_report(self._report, final=True)
            for file in self._lines.values():
                file.close()

    def _save(self, milestone: Milestone) -> None:
        if not self._rounds:
            self._rounds = {}
        self._report = milestone.report
        self._write_report(milestone.report, final=milestone.final)
        optimizer = self._state / f"optimizer-{milestone.round}.safetensors"
        replace(optimizer, milestone.optimizer)
        state = _State(
            settings=self._settings,
            round=milestone.round,
            version=milestone.version,
            rounds=self._rounds,
            report=milestone.report,
        )
        replace(self._state / "state.json", msgspec.json.encode(state))
        for other in self._state.glob("optimizer-*.safetensors"):
            if other != optimizer:
                other.unlink()

    def _save_version(self, version: Version) -> None:
        directory = self._state / "versions" / str(version.version)
        directory.mkdir(exist_ok=True)
        for tier, body in version.sections.items():
            replace(directory / f"{tier}.safetensors", body)
        self._rounds[version.version] = version.round
        for old in sorted(self._rounds)[:-KEPT_VERSIONS]:
            del self._rounds[old]
            shutil.rmtree(self._state / "versions" / str(old), ignore_errors=True)
        adapters.export(self._output / "adapter", version.tensors(), self._peft)

    def _version(self, number: int) -> Version:
        directory = self._state / "versions" / str(number)
        sections = {str(tier): (directory / f"{tier}.safetensors").read_bytes() for tier in Tier}
        return Version(version=number, round=self._rounds[number], sections=sections)

    def _write_report(self, report: Report, *, final: bool) -> None:
        report.wall_s = self._earlier_s + clock.now() - self._started
        for row in report.agents:
            if row["id"] == self._agent:
                row["peak_rss_bytes"] = peak_rss_bytes()
        report.events = list(_objects(self._output / "events.jsonl"))
        replace(self._output / "report.json", msgspec.json.format(msgspec.json.encode(report), indent=2))
        if final:
            draw(self._output / "metrics.jsonl", report, self._output / "loss.png")

    def _line(self, name: str, message: Metrics | Event) -> None:
        line = msgspec.json.encode(message) + b"\n"
        if self._lines[name].write(line) < len(line):  # a full disk takes a part and says nothing
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._output / f"{name}.jsonl"))

    def _check(self, state: _State) -> None:
        free = {"rounds", "evaluate"}  # a finished run may be asked for more rounds
        mine = msgspec.json.decode(msgspec.json.encode(self._settings))
        differ = [
            name for name, value in state.settings.items() if name not in free and mine.get(name) != value
        ]
        if state.format != FORMAT or differ:
            raise UsageError(
                f"{self._output} holds a run with other settings: {', '.join(differ) or 'format'}",
                fix="use the same settings to go on with it, another --output, or --fresh",
            )

    @contextlib.contextmanager
    def _writing(self, place: Path) -> Any:
        try:
            yield
        except OSError as error:
            raise RunFailedError(
                f"cannot write {error.filename or place}: {error.strerror}",
                fix="free space there or choose another --output",
            ) from None


def _continued(file: Path) -> IO[bytes]:
    """A file to add lines to, unbuffered; what a full disk has cut short stays a line of its own."""
    lines = file.open("a+b", buffering=0)
    size_bytes = lines.seek(0, os.SEEK_END)
    if size_bytes:
        lines.seek(size_bytes - 1)
        if lines.read(1) != b"\n":
            lines.write(b"\n")
    return lines


def _objects(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of lines, without what a full disk has cut short."""
    for line in file.read_bytes().splitlines():
        with contextlib.suppress(msgspec.DecodeError):
            yield msgspec.json.decode(line, type=dict[str, Any])


def replace(file: Path, content: bytes) -> None:
    """Replace a file as a whole, and see it on the disk."""
    draft = file.with_name(f".{file.name}.new")
    with draft.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
