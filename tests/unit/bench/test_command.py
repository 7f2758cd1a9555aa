"""``iotsplit bench`` as it is given: what it refuses and goes on with, and a comparison of real processes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from iotsplit.bench import command, comparison, running, texts
from iotsplit.bench.choices import BenchOptions, PaperOptions
from iotsplit.bench.estimate import Model
from iotsplit.bench.outcomes import Outcome
from iotsplit.bench.running import Job
from iotsplit.bench.schemes import Scheme
from iotsplit.errors import UsageError
from iotsplit.options import parse
from tests.support import letters_model
from tests.unit.bench.test_results import figures

Capture = pytest.CaptureFixture[str]
MODEL = Model(layers=30, width=576, vocabulary=49152, parameters=134_515_008, trainable=921_600)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Job]:
    """Cells are noted, not run; those of FL fail."""
    made: list[Job] = []

    def run(job: Job) -> Outcome:
        made.append(job)
        outcome = Outcome(scheme=job.cell.scheme, case=job.cell.case, state="done", wall_s=3.0)
        if job.cell.scheme == "fl":
            outcome.state, outcome.reason = "failed", "iotsplit run ended with exit code 1: device-1 was ended"
        else:
            outcome.figures = figures(job.cell.scheme)
        return outcome

    grounds = comparison.Grounds(path=tmp_path, model=MODEL, imports={})
    monkeypatch.setattr(running, "run", run)
    monkeypatch.setattr(comparison, "_grounds", lambda _: grounds)
    monkeypatch.setattr(texts, "write", lambda *_: [])
    return made


def test_a_cell_that_fails_is_named_and_the_others_go_on(
    runs: list[Job], tmp_path: Path, capsys: Capture
) -> None:
    words = ["--output", str(tmp_path / "b"), "--devices", "2"]
    assert command.main(words) == 1
    assert [job.cell.scheme for job in runs] == ["splitllm", "sfl", "sl", "fl", "central"]
    said = capsys.readouterr().out
    assert "files-all-2dev-seed0-fl: failed: iotsplit run ended with exit code 1: device-1 was ended" in said
    assert "5/5 files-all-2dev-seed0-central: held-out loss 1.000" in said
    assert "failed" in (tmp_path / "b" / "bench.html").read_text()
    runs.clear()
    assert command.main(words) == 1  # the same again tries what failed, and no more
    assert [job.cell.scheme for job in runs] == ["fl"]


def test_a_case_whose_data_cannot_be_dealt_is_named_and_the_others_go_on(
    runs: list[Job], tmp_path: Path, capsys: Capture
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("press", "pump"):
        (data / f"{name}.txt").write_text("".join(f"line {at}\n" for at in range(400)))
    words = ["--output", str(tmp_path / "b"), "--devices", "3,2", "--schemes", "sl", "--data", str(data)]
    assert command.main(words) == 1
    assert [job.cell.case.devices for job in runs] == [2]
    said = capsys.readouterr().out
    assert "1/2 files-all-3dev-seed0-sl: failed: 2 files or groups are too few for 3 devices; use fewer" in said
    assert "2/2 files-all-2dev-seed0-sl: held-out loss" in said


def test_resume_goes_on_with_what_the_directory_holds(runs: list[Job], tmp_path: Path) -> None:
    output = str(tmp_path / "b")
    command.main(["--output", output, "--schemes", "fl,sl", "--devices", "2", "--rounds", "7"])
    runs.clear()
    command.main(["--output", output, "--resume"])
    (job,) = runs
    assert (job.cell.scheme, job.placement.training.rounds) == ("fl", 7)
    with pytest.raises(UsageError, match="holds another comparison"):
        command.main(["--output", output, "--schemes", "fl"])
    runs.clear()
    command.main(["--output", output, "--schemes", "sl", "--devices", "2", "--fresh"])
    assert [job.cell.scheme for job in runs] == ["sl"]


def test_the_same_again_goes_on_with_a_paper_too(runs: list[Job], tmp_path: Path) -> None:
    words = ["--paper", "--output", str(tmp_path / "b"), "--schemes", "sl", "--devices", "2", "--seeds", "0"]
    words += ["--partitions", "iid", "--samples", "32"]
    command.main(words)
    assert len(runs) == 1
    command.main(words)
    assert len(runs) == 1


def test_a_plan_that_cannot_be_read_is_started_over(runs: list[Job], tmp_path: Path) -> None:
    words = ["--output", str(tmp_path), "--schemes", "sl", "--devices", "2"]
    (tmp_path / "bench.json").write_text("{")
    with pytest.raises(UsageError, match="start over by --fresh"):
        command.main(words)
    command.main([*words, "--fresh"])
    assert len(runs) == 1


def test_what_cannot_fit_is_left_out_and_says_why(
    runs: list[Job], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = psutil.virtual_memory()._replace(available=3_000_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    words = ["--output", str(tmp_path / "b"), "--devices", "4", "--schemes", "fl,central"]
    assert command.main(words) == 1
    assert [job.cell.scheme for job in runs] == ["central"]
    assert "fl: left out: needs about" in capsys.readouterr().out
    runs.clear()
    command.main([*words, "--fresh", "--ignore-memory"])
    assert [job.cell.scheme for job in runs] == ["fl", "central"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--schemes", "splitlm"], r"scheme 'splitlm' is unknown \(did you mean splitllm\?\)"),
        (["--partitions", "fils"], "partition 'fils' is unknown"),
        (["--data", "nowhere"], "there is no data at 'nowhere'"),
        (["--samples", "many"], "samples 'many' is no number"),
        (["--devices", "0"], "devices 0 is too small"),
        (["--links", "5,fast"], "links 'fast' is no rate"),
        (["--quick", "--paper"], "two comparisons"),
        (["--resume", "--fresh"], "goes on"),
    ],
)
def test_what_is_no_comparison_is_refused(words: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        command.main([*words, "--output", str(tmp_path / "b")])


def test_a_paper_has_more_of_everything() -> None:
    quick = parse(BenchOptions, [], name="iotsplit bench", environment={})
    paper = parse(PaperOptions, ["--paper", "--seeds", "5"], name="iotsplit bench", environment={})
    assert len(quick.cells) == 5
    assert len(paper.cells) == 4 * 3 * 3 * 1 * 5


def test_settings_become_flags_of_run_and_come_back() -> None:
    from iotsplit.fleet.run import RunOptions  # noqa: PLC0415 - only here

    training = BenchOptions().training
    words = running.training_words(training)
    assert parse(RunOptions, words, name="iotsplit run", environment={}).training == training


@pytest.mark.slow
@pytest.mark.broker
@pytest.mark.usefixtures("unmeasured_agents")
def test_a_comparison_of_real_processes(tmp_path: Path) -> None:
    model = letters_model(tmp_path / "model")
    data = tmp_path / "data"
    data.mkdir()
    for name in ("press", "pump"):
        rows = "".join(f'"is {name} {chr(97 + at)} hot","yes {chr(97 + at)}"\n' for at in range(20))
        (data / f"{name}.csv").write_text(f"prompt,completion\n{rows}")
    output = tmp_path / "bench"
    words = [f"--model={model}", f"--data={data}", f"--output={output}", "--devices=2", "--cut=1,3", "--json"]
    words += ["--schemes=fl", "--rounds=1", "--local-steps=2", "--batch-size=2", "--prompts=1", "--links=20"]
    done = subprocess.run(
        [sys.executable, "-m", "iotsplit", "bench", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told: list[dict[str, Any]] = json.loads(done.stdout)
    (outcome,) = msgspec.convert(told, type=list[Outcome])
    assert (outcome.scheme, outcome.state) == (Scheme.FL, "done")
    assert outcome.figures is not None
    assert outcome.figures.tokens > 0
    assert outcome.figures.after["loss"] != outcome.figures.before["loss"]
    assert outcome.figures.bytes["device_edge"] == {"up": 0, "down": 0}
    assert outcome.figures.bytes["adapters"]["up"] > 0
    assert sum(outcome.needed.values()) > 0
    assert len(outcome.texts) == 1
    assert (output / "bench.html").stat().st_size > 50_000
