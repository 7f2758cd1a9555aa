"""Starts the processes of a fleet, notices when one dies, and leaves none behind."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import msgspec
import psutil

from iotsplit.errors import RunFailedError, UserError
from iotsplit.options import unset_options
from iotsplit.runtime import clock, processes

BROKER = "broker"
POLL_S = 0.2
BROKER_START_S = 20.0
CLOUD_STOP_S = 15.0
OTHERS_STOP_S = 5.0
MAX_TOLD = 400

ENDS = {kind.exit_code: kind for kind in UserError.__subclasses__() if kind is not RunFailedError}
"""The error that stands for an exit code of a child."""


@dataclass(frozen=True, kw_only=True)
class Child:
    """A process of the fleet."""

    agent: str
    process: "subprocess.Popen[bytes]"
    words: Sequence[str]
    log: Path
    log_start: int


class _Announcement(msgspec.Struct):
    """What ``iotsplit broker --json`` says when it listens."""

    host: str
    port: int
    pid: int
    kind: str


@dataclass(frozen=True, kw_only=True)
class Broker:
    """A broker that was started.

    Args:
        address: where it listens.
        pid: process of the broker itself.
        kind: which one it is.
        notes: what it said about itself.
    """

    address: str
    pid: int
    kind: str
    notes: Sequence[str]


class Launcher:
    """The processes of one fleet.

    Args:
        logs: directory for a log file for each process.
        program: what starts ``iotsplit``.
    """

    def __init__(self, logs: Path, program: Sequence[str] = (sys.executable, "-m", "iotsplit")) -> None:
        self._logs = logs
        self._program = list(program)
        self._children: dict[str, Child] = {}
        self._mourned: set[str] = set()

    def start(self, agent: str, words: Sequence[str]) -> Child:
        """Start ``iotsplit`` with these words; its output goes to a log named after the agent."""
        log = self._logs / f"{agent}.log"
        start = log.stat().st_size if log.exists() else 0
        process = processes.start([*self._program, *words], log=log, environment=_child_environment(os.environ))
        child = Child(agent=agent, process=process, words=words, log=log, log_start=start)
        self._children[agent] = child
        self._mourned.discard(agent)
        return child

    def start_broker(self, words: Sequence[str]) -> Broker:
        """Start a broker on a free port.

        Raises:
            UserError: it ended instead, or did not say where it listens.
        """
        child = self.start(BROKER, words)
        until = clock.now() + BROKER_START_S
        while clock.now() < until:
            ended = self.wait(BROKER, POLL_S / 4) is not None
            told = _announced(child)
            if told is not None and not ended:
                return told
            if ended:
                raise end_of(child)
        raise RunFailedError(f"the broker did not start within {BROKER_START_S:.0f} s", fix=f"see {child.log}")

    def wait(self, agent: str, timeout_s: float = POLL_S) -> int | None:
        """Wait a little for an agent's end; its exit code, or None if it still runs."""
        try:
            return self._children[agent].process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def child(self, agent: str) -> Child:
        """The process that was started last for an agent."""
        return self._children[agent]

    def newly_dead(self) -> list[Child]:
        """Children that have ended since this was asked last."""
        dead = [
            child
            for agent, child in self._children.items()
            if agent not in self._mourned and child.process.poll() is not None
        ]
        self._mourned.update(child.agent for child in dead)
        return dead

    def stop(self, first: str = "cloud") -> None:
        """End everything within bounded time: politely, the first one first, then by force."""
        with _deaf():
            try:
                self._terminate([first], CLOUD_STOP_S)
                self._terminate([name for name in self._children if name != BROKER], OTHERS_STOP_S)
                self._terminate([BROKER], OTHERS_STOP_S)
            finally:
                for child in self._children.values():
                    _kill_group(child.process)

    def _terminate(self, agents: Sequence[str], grace_s: float) -> None:
        running = [self._children[name].process for name in agents if name in self._children]
        running = [process for process in running if process.poll() is None]
        for process in running:
            process.terminate()
        until = clock.now() + grace_s
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - clock.now()))


def end_of(child: Child) -> UserError:
    """The error that tells of a child's end: who, how, and the last thing it said."""
    last = last_words(child)
    kind = ENDS.get(child.process.returncode, RunFailedError)
    return kind(how_it_ended(child) + (f": {last}" if last else ""), fix=f"see {child.log}")


def how_it_ended(child: Child) -> str:
    """Who ended, and by what."""
    code = child.process.returncode
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"{child.agent} {how}"


def last_words(child: Child) -> str:
    """The last line of a child's log since it was started."""
    said = _lines(child)
    return re.sub(r"^iotsplit: error: ", "", said[-1])[:MAX_TOLD] if said else ""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the fleet as Ctrl-C does.

    Raises:
        KeyboardInterrupt: one of them came.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    with processes.signals_handled((signal.SIGTERM, signal.SIGHUP), interrupt):
        yield


def _deaf() -> contextlib.AbstractContextManager[None]:
    """Ignore further signals while the fleet is being ended: that takes bounded time anyway."""
    return processes.signals_handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN)


def _child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    return unset_options(environment) | {"IOTSPLIT_PARENT_DEATH": "1", "PYTHONUNBUFFERED": "1"}


def _announced(child: Child) -> Broker | None:
    notes: list[str] = []
    for line in _lines(child):
        with contextlib.suppress(msgspec.DecodeError):
            told = msgspec.json.decode(line, type=_Announcement)
            return Broker(address=f"mqtt://{told.host}:{told.port}", pid=told.pid, kind=told.kind, notes=notes)
        notes.append(line.removeprefix("iotsplit: "))
    return None


def _lines(child: Child) -> list[str]:
    """Whole lines of a child's log since it was started."""
    with contextlib.suppress(OSError), child.log.open("rb") as file:
        file.seek(max(child.log_start, child.log.stat().st_size - 100 * MAX_TOLD))
        *lines, _ = file.read().decode(errors="replace").split("\n")
        return [line.strip() for line in lines if line.strip()]
    return []


def peak_rss_bytes(pid: int) -> int:
    """Peak memory of a process; 0 if it is gone."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    # The group lives on while a grandchild does, also when the child itself is gone.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
