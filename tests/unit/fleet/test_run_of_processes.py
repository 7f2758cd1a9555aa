"""``iotsplit run`` with real processes and a real broker, on a tiny model."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from tests.flows.real import RealFleet
from tests.support import letters_model

pytestmark = [pytest.mark.slow, pytest.mark.broker]

SETTINGS = ("--cut=1,3", "--sequence-length=16", "--devices=2", "--batch-size=2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in ("press", "pump"):
        (folder / f"{name}.txt").write_text(f"the {name} is too hot today\n" * 60)
    return folder


def words(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    given = [f"--model={model}", f"--data={data}", f"--output={output}", *SETTINGS, *more]
    given += [] if any("--local-steps" in word for word in more) else ["--local-steps=2"]
    return [sys.executable, "-m", "iotsplit", "run", *given]


def agents_of(output: Path) -> list[psutil.Process]:
    """Processes whose command line names the output directory."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.pid != os.getpid() and str(output) in " ".join(process.info["cmdline"] or [])
    ]


def finish(line: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_a_run_ends_with_a_report_and_goes_on_where_it_ended(model: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = subprocess.run(
        words(model, data, output, "--rounds=1"), capture_output=True, text=True, check=False
    )
    assert first.returncode == 0, first.stderr
    assert "token ids of its training text reach the cloud" in first.stdout.splitlines()[0]
    assert agents_of(output) == []

    other = finish(words(model, data, output, "--rounds=2", "--partition=iid"))
    assert other.returncode == 2
    assert "holds a run of other model, data or devices" in other.stderr

    second = finish(words(model, data, output, "--rounds=2", "--json"))
    assert second.returncode == 0, second.stderr
    report = json.loads(second.stdout)
    assert [row["round"] for row in report["rounds"]] == [1, 2]
    assert report["ledger"] == {"expected": 8, "applied": 8, "lost": 0, "duplicated": 0}
    assert sorted(each["id"] for each in report["agents"]) == ["broker", "cloud", "edge-1", "press", "pump"]
    assert report["eval"]["after"]["loss"] < report["eval"]["before"]["loss"]
    assert report == json.loads((output / "report.json").read_text())
    assert (output / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.usefixtures("unmeasured_agents")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_its_last_adapter_and_no_process(
    number: signal.Signals, model: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run = subprocess.Popen(words(model, data, output, "--rounds=100000"), stdout=subprocess.PIPE, text=True)
    with run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith("2 "):
                break
        run.send_signal(number)
        assert run.wait(30) == 130
    assert agents_of(output) == []
    assert (output / "adapter" / "adapter_config.json").is_file()
    assert json.loads((output / "report.json").read_text())["state"] == "stopped"


@pytest.mark.usefixtures("unmeasured_agents")
def test_a_run_that_is_interrupted_again_while_it_ends_leaves_no_process(
    model: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    line = words(model, data, output)
    run = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with run:
        assert run.stdout is not None
        for shown in run.stdout:
            if shown.startswith("round"):  # all have been started, none is ready
                break
        run.send_signal(signal.SIGINT)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "the same command goes on" in out
    assert err == ""
    assert agents_of(output) == []


@pytest.mark.usefixtures("unmeasured_agents")
def test_a_killed_run_takes_its_fleet_along(model: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run = subprocess.Popen(words(model, data, output, "--rounds=100000"), stdout=subprocess.PIPE, text=True)
    with run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith("1 "):
                break
        fleet = [each for each in agents_of(output) if each.pid != run.pid]
        assert len(fleet) >= 5
        run.kill()
    _, alive = psutil.wait_procs(fleet, timeout=60)
    assert alive == []


@pytest.mark.usefixtures("unmeasured_agents")
def test_a_mistake_that_only_an_agent_sees_is_told_by_the_run(model: Path, data: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        words(model, data, tmp_path / "out", "--target-modules=nope"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "cloud ended with exit code 2" in done.stderr
    assert done.stderr.count("\n") == 1
    assert agents_of(tmp_path / "out") == []


@pytest.mark.usefixtures("unmeasured_agents")
def test_a_run_whose_agents_are_killed_makes_the_same_adapter(model: Path, data: Path, tmp_path: Path) -> None:
    more = ("--rounds=3", "--local-steps=8", "--checkpoint-every=2", "--edges=2", "--stragglers=wait")
    output = tmp_path / "killed"
    run = subprocess.Popen(words(model, data, output, *more), stdout=subprocess.PIPE, text=True)
    with run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith("1 "):
                break
        for name in ("press", "edge-1"):
            (agent,) = [each for each in agents_of(output) if f"--id={name}" in each.cmdline()]
            agent.kill()
        told = run.stdout.read()
        assert run.wait(120) == 0
    assert "press was ended by SIGKILL; it is started again" in told
    report = json.loads((output / "report.json").read_text())
    assert report["ledger"] == {"expected": 48, "applied": 48, "lost": 0, "duplicated": 0}
    torch.set_num_threads(1)
    with contextlib.closing(RealFleet(model, output, tmp_path / "quiet")) as quiet:
        quiet.run()
    weights = "adapter/adapter_model.safetensors"
    assert (output / weights).read_bytes() == (tmp_path / "quiet" / weights).read_bytes()
