"""The demo: a run, a text before and after, and one device alone for comparison."""

import json
from pathlib import Path
from typing import Any

import pytest

from iotsplit.datasets.partition import load
from iotsplit.datasets.records import Pair, read, write_jsonl
from iotsplit.fleet import demo
from iotsplit.fleet import run as fleet
from iotsplit.fleet.output import Output
from iotsplit.fleet.run import RunOptions

SCORE = {"loss": 0.5, "perplexity": 1.6, "exact": 22, "sequences": 24}
REPORT = {"rounds": [], "eval": {"before": SCORE, "after": SCORE}}
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def output(tmp_path: Path) -> Output:
    made = Output(tmp_path)
    made.data.mkdir()
    for device in ("press", "pump"):
        pairs = [Pair(f"{device} {at}", "ok", "eval" if at == 3 else "train") for at in range(4)]
        write_jsonl(made.data / f"{device}.jsonl", pairs)
    return made


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[RunOptions]:
    """Runs are noted, not made."""
    made: list[RunOptions] = []

    def run(options: RunOptions, *_: Any, **__: Any) -> dict[str, Any]:
        made.append(options)
        return dict(REPORT)

    monkeypatch.setattr(fleet, "run", run)
    texts = [{"prompt": "press 3\n", "before": "I do\nnot know", "after": "ok"}]
    monkeypatch.setattr(demo, "_completions", lambda *_: texts)
    return made


def test_one_alone_learns_its_own_data_and_is_scored_on_all(output: Output) -> None:
    records = demo.alone_records(output, "pump")
    prompts = [record.prompt for record in records if isinstance(record, Pair)]
    assert prompts == ["pump 0", "pump 1", "pump 2", "press 3", "pump 3"]


def test_the_demo_runs_together_and_then_alone(output: Output, runs: list[RunOptions], capsys: Capture) -> None:
    assert demo.main(["--output", str(output.root), "--rounds", "2"]) == 0
    together, alone = runs
    assert (together.devices, together.edges, together.data) == (4, 2, "plant")
    assert together.training.target_modules == ("all-linear",)
    assert (alone.devices, alone.edges, alone.output) == (1, 1, output.root / "alone")
    assert alone.training.rounds == together.training.rounds == 2
    assert len(read(Path(alone.data))) == 5
    shown = capsys.readouterr().out
    assert "alone (device pump): 22/24, loss 0.500      together: 22/24, loss 0.500" in shown
    assert shown.splitlines()[-1].startswith("next:")


def test_the_comparison_can_be_skipped(output: Output, runs: list[RunOptions]) -> None:
    demo.main(["--output", str(output.root), "--skip-alone"])
    assert len(runs) == 1


def test_the_one_alone_reads_what_was_written_for_it_whatever_the_columns(
    output: Output, runs: list[RunOptions]
) -> None:
    demo.main(["--output", str(output.root), "--columns", "question,answer"])
    alone = runs[1]
    assert load(alone.data, devices=1, partition=None, seed=0, columns=alone.columns)


@pytest.mark.parametrize(
    ("more", "without"), [([], "command goes"), (["--fresh"], "command without --fresh goes")]
)
def test_who_was_interrupted_is_told_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, more: list[str], without: str
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fleet, "run", interrupted)
    demo.main(more)
    assert f"the same {without} on" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("runs")
def test_with_json_stdout_holds_the_report_alone(output: Output, capsys: Capture) -> None:
    demo.main(["--output", str(output.root), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["eval"] == REPORT["eval"]
    assert result["demo"]["alone"] == SCORE


def test_an_interrupted_demo_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fleet, "run", interrupted)
    assert demo.main([]) == 130
