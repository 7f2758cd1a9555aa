"""One cell: a whole ``iotsplit run`` in a process of its own, and what it came to."""

import contextlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from iotsplit.bench.cells import Cell
from iotsplit.bench.figures import figures_of
from iotsplit.bench.outcomes import Outcome
from iotsplit.bench.schemes import Placement
from iotsplit.fleet.launcher import Launcher
from iotsplit.fleet.output import Output
from iotsplit.options import unset_options
from iotsplit.plan import Tier
from iotsplit.runtime import clock, processes
from iotsplit.runtime.files import replace
from iotsplit.runtime.proxy import TcpProxy
from iotsplit.settings import TrainingSettings
from iotsplit.states import Metrics

RESULT = "result.json"
LOOK_EVERY_S = 0.5
STOP_S = 30.0
STEP_TIMEOUT_S = 3600.0
"""Nobody is left behind: agents of a comparison share one machine, and a step of the whole model takes long."""
MOST_TOLD = 300
BYTES_PER_MBIT = 1e6 / 8

_WEIGH = """
import importlib, sys
import psutil
importlib.import_module(sys.argv[1])
print(psutil.Process().memory_info().rss)
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell with what it takes to run it.

    Args:
        cell: which.
        placement: who runs what.
        directory: where; what an earlier try has left there is removed.
        model: directory of the model.
        data: folder with a file for each device.
        words: more of `iotsplit run`.
        imports: bytes of an agent before it has a model, by tier.
        table: values of the model's embedding.
    """

    cell: Cell
    placement: Placement
    directory: Path
    model: Path
    data: Path
    words: tuple[str, ...]
    imports: Mapping[str, int]
    table: int


def earlier(directory: Path) -> Outcome | None:
    """What a cell came to before this start, if it did."""
    try:
        return msgspec.json.decode((directory / RESULT).read_bytes(), type=Outcome)
    except (OSError, msgspec.DecodeError):
        return None


def keep(directory: Path, outcome: Outcome) -> None:
    """Write down what a cell came to."""
    directory.mkdir(parents=True, exist_ok=True)
    replace(directory / RESULT, msgspec.json.format(msgspec.json.encode(outcome), indent=1))


def run(job: Job) -> Outcome:
    """Run a cell from its start; one that dies is told of in its outcome.

    Raises:
        KeyboardInterrupt: a signal came; the cell's processes are gone by then.
    """
    shutil.rmtree(job.directory, ignore_errors=True)
    job.directory.mkdir(parents=True)
    output, log = Output(job.directory / "run"), job.directory / "run.log"
    words = [sys.executable, "-m", "iotsplit", "run", *words_of(job), f"--output={output.root}"]
    began = clock.now()
    with _links(job) as brokers:
        process = processes.start([*words, *brokers], log=log, environment=unset_options(os.environ))
        try:
            code = _end_of(process)
        finally:
            processes.stop(process, grace_s=STOP_S)
    outcome = Outcome(scheme=job.cell.scheme, case=job.cell.case, state="failed", wall_s=clock.now() - began)
    if code:
        outcome.reason = f"iotsplit run ended with exit code {code}: {_last_line(log)}"
        return outcome
    report = output.report()
    if left := _left(report) or _missing(report, job.placement):
        outcome.reason = f"it has trained on less than the others: {left} (see {log})"
        return outcome
    lines = list(_lines(output.root / "metrics.jsonl"))
    outcome.figures = figures_of(report, lines, job.placement, imports=job.imports, table=job.table)
    outcome.state = "done"
    shutil.rmtree(output.root / "state", ignore_errors=True)  # nothing goes on from here
    return outcome


@contextlib.contextmanager
def _links(job: Job) -> Iterator[list[str]]:
    """The options of a broker that each device reaches over a slow link of its own; none without such links."""
    mbits = job.cell.case.mbits
    if not mbits:
        yield []
        return
    launcher = Launcher(job.directory)
    try:
        directory = job.directory / "broker"
        address = launcher.start_broker(["broker", "--port=0", "--json", f"--directory={directory}"]).address
        with contextlib.closing(TcpProxy(int(address.rpartition(":")[2]))) as proxy:
            proxy.shape(rate=mbits * BYTES_PER_MBIT)
            yield [f"--broker={address}", f"--device-broker=mqtt://127.0.0.1:{proxy.port}"]
    finally:
        launcher.stop()


def words_of(job: Job) -> list[str]:
    """The options of ``iotsplit run`` that make a cell."""
    placement = job.placement
    words = [
        f"--model={job.model}",
        f"--data={job.data}",
        "--partition=files",
        f"--devices={placement.devices}",
    ]
    words += [f"--step-timeout={STEP_TIMEOUT_S:g}"]
    words += [f"--edges={max(1, placement.edges)}"]  # whole models on the devices need none
    if placement.devices_per_edge is not None:
        words.append(f"--devices-per-edge={placement.devices_per_edge}")
    return [*words, *job.words, *training_words(placement.training)]


def training_words(training: TrainingSettings) -> list[str]:
    """Settings as flags."""
    words = []
    for each in fields(training):
        value, flag = getattr(training, each.name), f"--{each.name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag] if value else []
        else:
            words.append(f"{flag}={','.join(map(str, value)) if isinstance(value, tuple) else value}")
    return words


def weigh_imports() -> dict[str, int]:
    """Bytes that an agent of each tier takes once its modules are loaded."""
    commands = importlib.metadata.entry_points(group="iotsplit.commands")
    found = {}
    for tier in Tier:
        module = commands[str(tier)].module
        words = [sys.executable, "-c", _WEIGH, module]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        found[str(tier)] = int(done.stdout) if done.returncode == 0 else 0
    return found


def _end_of(process: "subprocess.Popen[bytes]") -> int:
    while True:
        try:
            return process.wait(LOOK_EVERY_S)
        except subprocess.TimeoutExpired:
            continue


def _left(report: Mapping[str, Any]) -> str:
    """Who has left a round, and why; empty if nobody has."""
    found = [f"{each['device']} ({each['reason']})" for row in report["rounds"] for each in row["dropped"]]
    return ", ".join(dict.fromkeys(found))[:MOST_TOLD] + " left" if found else ""


def _missing(report: Mapping[str, Any], placement: Placement) -> str:
    """In what a device did not take part; empty if in nothing."""
    expected = min(
        placement.devices, (placement.devices_per_edge or placement.devices) * max(1, placement.edges)
    )
    for row in report["rounds"]:
        if len(row["sessions"]) < expected:
            return f"round {row['round']} was without {expected - len(row['sessions'])} of {expected} devices"
    scores = report["eval"].get("devices", {})
    for when in ("before", "after"):
        scored = sum(when in each for each in scores.values())
        if scored < placement.devices:
            return (
                f"{placement.devices - scored} of {placement.devices} devices were not scored {when} training"
            )
    return ""


def _last_line(log: Path) -> str:
    said = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    last = next((line for line in reversed(said) if line), "it said nothing")
    return f"{last.removeprefix('iotsplit: error: ')[:MOST_TOLD]} (see {log})"


def _lines(metrics: Path) -> Iterator[Metrics]:
    with metrics.open("rb") as lines:
        for line in lines:
            try:
                yield msgspec.json.decode(line, type=Metrics)
            except msgspec.DecodeError:
                continue
