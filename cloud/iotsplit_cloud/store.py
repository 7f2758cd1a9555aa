"""The cloud's disk: versions, milestones, the round at hand, and what the run leaves in its output directory.

Tensors are files that are replaced as a whole, facts are in a database that names them only when they are on
the disk: a power cut leaves the last state or the one before, never half of one.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
import structlog

from iotsplit.cache import CacheChange
from iotsplit.errors import RunFailedError, UsageError
from iotsplit.plan import Tier
from iotsplit.role import Local
from iotsplit.runtime import clock
from iotsplit.runtime.cachefile import CacheFile
from iotsplit.runtime.files import read_checked, replace, sha256, writing
from iotsplit.runtime.runner import peak_rss_bytes
from iotsplit.settings import TrainingSettings
from iotsplit.states import Event, Metrics
from iotsplit.tensors import adapters
from iotsplit_cloud.database import Database
from iotsplit_cloud.journal import CarriedSession, Earlier, RoundCheckpoint, RoundState, SessionRecord
from iotsplit_cloud.lines import continued, objects
from iotsplit_cloud.plot import draw
from iotsplit_cloud.records import Heard, Milestone
from iotsplit_cloud.report import Report, Row
from iotsplit_cloud.versions import KEPT_VERSIONS, Version

KEPT_CHECKPOINTS = 2
REPORT_SHARE = 20
"""How many times as long as it took to write the report the next waits, but for the last."""

log = structlog.get_logger()


class _State(msgspec.Struct, kw_only=True):
    settings: dict[str, Any]
    model: str = ""
    round: int
    version: int
    paused: bool = False
    rounds: dict[int, int]  # round of each kept version
    parents: dict[int, int] = {}  # and what it was made from
    carried: dict[str, CarriedSession] = {}
    sha256: dict[str, str]  # of the files that belong to it, by their path below the state directory
    report: Report


class _Described(msgspec.Struct, kw_only=True):
    """A checkpoint of the round at hand, without its tensors."""

    step: int
    regular: bool
    sessions: dict[str, SessionRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a restarted cloud goes on from.

    Args:
        row: of the newest round.
        earlier: where the role goes on.
        caches: what is remembered of each device's samples.
    """

    version: int
    versions: list[Version]
    report: Report
    row: Row | None
    earlier: Earlier
    caches: Mapping[str, CacheChange]


class Store:
    """Writes what the role keeps.

    Args:
        output: the run's output directory.
        agent: id of the cloud.
        settings: a directory of other settings is refused, never half-used.
        model: fingerprint of the model; a directory of another is refused.
        peft: the ``adapter_config.json`` of the exported adapter.
        draws: whether there is to be a picture.
    """

    def __init__(
        self,
        output: Path,
        *,
        agent: str,
        settings: TrainingSettings,
        model: str,
        peft: dict[str, Any],
        draws: bool = True,
    ) -> None:
        self._output = output
        self._draws = draws
        self._agent = agent
        self._settings = msgspec.to_builtins(settings)
        self._model = model
        self._peft = peft
        self._state = output / "state" / "cloud"
        self._rounds: dict[int, int] = {}
        self._parents: dict[int, int] = {}
        self._best: int | None = None  # the version that is exported as such
        self._sha256: dict[str, str] = {}
        self._report: Report | None = None
        self._row: Row | None = None
        self._last_round = 0
        self._round: RoundState | None = None
        self._started = clock.now()
        self._earlier_s = 0.0
        self._drawn = False  # the picture shows all there is
        self._report_due = 0.0
        self._lines: dict[str, IO[bytes]] = {}
        with writing(output):
            (self._state / "versions").mkdir(parents=True, exist_ok=True)
            (self._state / "round").mkdir(exist_ok=True)
        self._database = Database(self._state / "state.db")
        self._caches = CacheFile(self._state / "samples.db")
        with writing(output):
            for name in ("metrics", "events", "rounds"):
                self._lines[name] = continued(output / f"{name}.jsonl")

    def load(self) -> Saved | None:
        """What was saved by an earlier start; nothing if there was none.

        Raises:
            UsageError: the directory is of other settings or another format, or lacks a file.
        """
        state = self._database.fact("state", _State)
        if state is None:
            return None
        self._check(state)
        self._rounds, self._sha256 = state.rounds, state.sha256
        self._parents = {version: state.parents.get(version, version - 1) for version in state.rounds}
        self._round = self._database.fact("round", RoundState)
        self._earlier_s = state.report.wall_s
        self._report, self._last_round = state.report, state.round
        versions = [self._version(number) for number in sorted(state.rounds) if self._is_usable(number, state)]
        with writing(self._output):  # the power may have gone before it was
            self._export_best(state.report, {each.version for each in versions})
        rows = list(self._rows().values())
        self._row = msgspec.json.decode(rows[-1]) if rows else None
        return Saved(
            version=state.version,
            versions=versions,
            report=state.report,
            row=self._row,
            earlier=Earlier(
                round=state.round,
                interrupted=self._round,
                paused=state.paused if self._round is None else self._round.paused,
                checkpoints=self._checkpoints(),
                carried=state.carried if self._round is None else self._round.carried,
            ),
            caches=self._caches.load(),
        )

    def take(self, kept: Local | Metrics | Event) -> None:
        """Write one thing.

        Raises:
            RunFailedError: the disk is full or cannot be written.
        """
        with writing(self._output):
            match kept:
                case Metrics() | Heard():
                    self._tell(kept.metrics if isinstance(kept, Heard) else kept)
                case Event():
                    self._line("events", kept)
                case Version():
                    self._save_version(kept)
                case RoundState():
                    self._save_round(kept)
                case RoundCheckpoint():
                    self._save_checkpoint(kept)
                case CacheChange():
                    self._caches.take(kept)
                case Milestone():
                    self._save(kept)

    def close(self, state: str, reason: str = "") -> None:
        """Write how the run ended."""
        with contextlib.suppress(RunFailedError), writing(self._output):
            if self._report is not None:
                self._report.state, self._report.reason = state, reason
                self._write_report(self._report, draws=not self._drawn)
            for file in self._lines.values():
                file.close()
            self._database.close()
            self._caches.close()

    def _save(self, milestone: Milestone) -> None:
        self._report, self._last_round = milestone.report, milestone.round
        self._drawn = False
        self._add_row(milestone.row)
        self._count(milestone.report)
        if milestone.final or clock.now() >= self._report_due:
            self._write_report(milestone.report, draws=milestone.final)
        kept = sorted(self._rounds)[-KEPT_VERSIONS:]
        self._rounds = {version: round_ for version, round_ in self._rounds.items() if version in kept}
        state = _State(
            settings=self._settings,
            model=self._model,
            round=milestone.round,
            version=milestone.version,
            paused=milestone.paused,
            rounds=self._rounds,
            parents={version: self._parents[version] for version in self._rounds},
            carried=dict(milestone.carried),
            sha256={name: digest for name, digest in self._sha256.items() if self._belongs(name)},
            report=milestone.report,
        )
        self._round = None
        self._database.write({"state": state, "round": None}, forget_checkpoints=True)
        self._export_best(milestone.report, self._rounds)
        # Only now is nothing of it needed any more.
        for directory in (self._state / "versions").iterdir():
            if directory.name not in map(str, self._rounds):
                shutil.rmtree(directory, ignore_errors=True)
        self._keep_checkpoint_files([])

    def _save_round(self, state: RoundState) -> None:
        again = self._round is None or (state.round, state.attempt) != (self._round.round, self._round.attempt)
        self._round = state
        self._database.write({"round": state}, forget_checkpoints=again)
        if again:
            self._keep_checkpoint_files([])

    def _save_checkpoint(self, checkpoint: RoundCheckpoint) -> None:
        name = f"{checkpoint.step:06d}.safetensors"
        replace(self._state / "round" / name, checkpoint.body)
        # A session that has left takes all earlier checkpoints with it (TrainingRound.drop).
        earlier = [file for file, _, _ in self._database.checkpoints(_Described) if file < name]
        kept = earlier[1 - KEPT_CHECKPOINTS :] if checkpoint.regular else []
        described = _Described(
            step=checkpoint.step, regular=checkpoint.regular, sessions=dict(checkpoint.sessions)
        )
        known = [file for file, _, _ in self._database.checkpoints(_Described)]
        removed = [file for file in known if file not in kept and file != name]
        self._database.add_checkpoint(name, sha256(checkpoint.body), described, remove=removed)
        self._keep_checkpoint_files([*kept, name])

    def _keep_checkpoint_files(self, names: list[str]) -> None:
        for file in (self._state / "round").iterdir():
            if file.name not in names:
                file.unlink()

    def _checkpoints(self) -> list[RoundCheckpoint]:
        found = []
        for name, digest, described in self._database.checkpoints(_Described):
            body = read_checked(self._state / "round" / name, digest)
            if body is None:
                log.warning("a checkpoint is damaged and is passed over", file=name)
                continue
            found.append(
                RoundCheckpoint(
                    step=described.step,
                    regular=described.regular,
                    sessions=described.sessions,
                    body=body,
                )
            )
        return found

    def _save_version(self, version: Version) -> None:
        directory = self._state / "versions" / str(version.version)
        directory.mkdir(exist_ok=True)
        for tier, body in version.sections.items():
            self._replace(directory / f"{tier}.safetensors", body)
        self._rounds[version.version], self._parents[version.version] = version.round, version.parent
        adapters.export(self._output / "adapter", version.tensors(), self._peft)

    def _export_best(self, report: Report, kept: Container[int]) -> None:
        """Export the version that did best on held-out data, where each round's is scored."""
        number = report.eval.get("best", {}).get("adapter_version")
        if number != self._best and number in kept:
            adapters.export(self._output / "adapter-best", self._version(number).tensors(), self._peft)
            self._best = number

    def _version(self, number: int) -> Version:
        directory = self._state / "versions" / str(number)
        sections = {str(tier): self._needed(directory / f"{tier}.safetensors") for tier in Tier}
        round_, parent = self._rounds[number], self._parents[number]
        return Version(version=number, round=round_, sections=sections, parent=parent)

    def _is_usable(self, number: int, state: _State) -> bool:
        """Whether a version can be read; only the current one has to be."""
        files = [self._state / "versions" / str(number) / f"{tier}.safetensors" for tier in Tier]
        intact = all(read_checked(file, self._sha256.get(self._name(file), "")) is not None for file in files)
        if not intact and number != state.version:
            log.warning("an adapter version is damaged and is passed over", version=number)
        return intact or number == state.version

    def _needed(self, file: Path) -> bytes:
        content = read_checked(file, self._sha256.get(self._name(file), ""))
        if content is None:
            raise UsageError(
                f"{self._output} cannot be gone on with: {file} is damaged or missing",
                fix="choose another --output, or --fresh",
            )
        return content

    def _replace(self, file: Path, content: bytes) -> None:
        replace(file, content)
        self._sha256[self._name(file)] = sha256(content)

    def _name(self, file: Path) -> str:
        return file.relative_to(self._state).as_posix()

    def _belongs(self, name: str) -> bool:
        return (self._state / name).parent.name in map(str, self._rounds)

    def _tell(self, metrics: Metrics) -> None:
        if metrics.session is not None or self._round is not None:  # signs of life would fill the disk
            self._line("metrics", metrics)

    def _add_row(self, row: Row | None) -> None:
        """Write what the report says of a round, before the database says that the round is over."""
        if row is not None and row != self._row:
            self._line("rounds", row)
            os.fsync(self._lines["rounds"].fileno())
            self._row = row

    def _rows(self) -> dict[int, msgspec.Raw]:
        """The newest row of each round that is over; one behind them is of a round that will be done again."""
        rows = {row["round"]: raw for raw, row in objects(self._output / "rounds.jsonl")}
        return {number: rows[number] for number in sorted(rows) if number <= self._last_round}

    def _count(self, report: Report) -> None:
        report.wall_s = self._earlier_s + clock.now() - self._started
        for agent in report.agents:
            if agent["id"] == self._agent:
                agent["peak_rss_bytes"] = peak_rss_bytes()

    def _write_report(self, report: Report, *, draws: bool) -> None:
        """Write all there is; how long that takes grows with the run, so it is done ever more rarely."""
        began = clock.now()
        self._count(report)
        whole = msgspec.structs.replace(
            report,
            rounds=list(self._rows().values()),
            events=[raw for raw, _ in objects(self._output / "events.jsonl")],
        )
        replace(self._output / "report.json", msgspec.json.format(msgspec.json.encode(whole), indent=2))
        self._report_due = clock.now() + REPORT_SHARE * (clock.now() - began)
        if draws and self._draws:
            draw(self._output / "metrics.jsonl", whole, self._output / "loss.png")
            self._drawn = True

    def _line(self, name: str, message: Metrics | Event | Row) -> None:
        line = msgspec.json.encode(message) + b"\n"
        if self._lines[name].write(line) < len(line):  # a full disk takes a part and says nothing
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._output / f"{name}.jsonl"))

    def _check(self, state: _State) -> None:
        if state.model not in ("", self._model):
            raise UsageError(
                f"{self._output} holds a run of another model",
                fix="use the same --model to go on with it, another --output, or --fresh",
            )
        free = {"rounds", "evaluate"}  # a finished run may be asked for more rounds
        mine = msgspec.json.decode(msgspec.json.encode(self._settings))
        differ = [
            name for name, value in state.settings.items() if name not in free and mine.get(name) != value
        ]
        if differ:
            raise UsageError(
                f"{self._output} holds a run with other settings: {', '.join(differ)}",
                fix="use the same settings to go on with it, another --output, or --fresh",
            )
