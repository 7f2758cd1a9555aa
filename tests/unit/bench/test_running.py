"""One cell: what it is started with, and what is made of what it leaves."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from iotsplit.bench import running
from iotsplit.bench.cells import Cell
from iotsplit.bench.outcomes import Outcome
from iotsplit.bench.running import Job
from iotsplit.bench.schemes import Scheme
from iotsplit.runtime import processes
from tests.unit.bench.test_results import CASE, placement, report

Patch = pytest.MonkeyPatch


def ran(
    patch: Patch, directory: Path, *, leaves: dict[str, Any] | None, code: int = 0
) -> tuple[Outcome, list[str]]:
    """A cell whose process leaves that report, and the words that started it."""
    started: list[str] = []

    def start(words: Sequence[str], *, log: Path, **_: Any) -> "subprocess.Popen[bytes]":
        started.extend(words)
        output = directory / "run"
        output.mkdir()
        if leaves is not None:
            (output / "report.json").write_text(json.dumps(leaves))
            (output / "metrics.jsonl").touch()
        log.write_text("iotsplit: error: device-1 was ended\n")
        return subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])

    patch.setattr(processes, "start", start)
    job = Job(
        cell=Cell(scheme=Scheme.SPLITLLM, case=CASE),
        placement=placement(Scheme.SPLITLLM),
        directory=directory,
        model=directory / "model",
        data=directory / "data",
        words=("--threads=1",),
        imports={},
        table=0,
    )
    return running.run(job), started


def test_nobody_is_left_behind_for_being_slow(monkeypatch: Patch, tmp_path: Path) -> None:
    outcome, started = ran(monkeypatch, tmp_path / "cell", leaves=report())
    assert outcome.state == "done"
    assert "--step-timeout=3600" in started
    assert {"--devices=2", "--edges=1", "--local-steps=3"} <= set(started)


def test_who_has_trained_on_less_than_the_others_is_not_compared(monkeypatch: Patch, tmp_path: Path) -> None:
    leaves = report()
    leaves["rounds"][0]["dropped"] = [{"device": "pump", "reason": "nothing came for 120 s"}]
    outcome, _ = ran(monkeypatch, tmp_path / "cell", leaves=leaves)
    assert (outcome.state, outcome.figures) == ("failed", None)
    assert "less than the others: pump (nothing came for 120 s) left" in outcome.reason


@pytest.mark.parametrize(
    ("absent", "told"),
    [
        (lambda told: told["rounds"][1]["sessions"].pop(), "round 2 was without 1 of 2 devices"),
        (lambda told: told["eval"]["devices"].pop("a"), "1 of 2 devices were not scored before training"),
        (
            lambda told: told["eval"]["devices"]["b"].pop("after"),
            "1 of 2 devices were not scored after training",
        ),
    ],
)
def test_who_was_not_there_all_the_time_is_not_compared(
    monkeypatch: Patch, tmp_path: Path, absent: Callable[[dict[str, Any]], Any], told: str
) -> None:
    leaves = json.loads(json.dumps(report()))
    absent(leaves)
    outcome, _ = ran(monkeypatch, tmp_path / "cell", leaves=leaves)
    assert (outcome.state, outcome.figures) == ("failed", None)
    assert told in outcome.reason


def test_the_reason_of_an_end_is_the_last_line_of_the_log(monkeypatch: Patch, tmp_path: Path) -> None:
    outcome, _ = ran(monkeypatch, tmp_path / "cell", leaves=None, code=4)
    assert outcome.state == "failed"
    assert outcome.reason.startswith("iotsplit run ended with exit code 4: device-1 was ended (see ")
