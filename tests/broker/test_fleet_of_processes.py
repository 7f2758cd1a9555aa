"""Real processes on a real broker compute what the same roles compute in memory, to the bit."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from iotsplit.settings import Codec
from iotsplit_broker.process import Kind, find_mosquitto
from tests.flows.real import RealFleet
from tests.support import letters_model

pytestmark = [pytest.mark.slow, pytest.mark.broker]

WEIGHTS = "adapter/adapter_model.safetensors"
FLEET = ("--devices=2", "--edges=2", "--rounds=2", "--local-steps=3", "--threads=1")
STEPS = ("--cut=1,3", "--batch-size=3", "--micro-batches=2", "--sequence-length=16", "--learning-rate=0.01")
# Processes with int8 on Mosquitto: test_fleet_on_bad_links, test_two_sites.
WAYS = [(Kind.MOSQUITTO, Codec.FP32), (Kind.EMBEDDED, Codec.INT8)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "press.txt").write_text("the press is too hot today\n" * 60)
    (folder / "pump.txt").write_text("a pump runs dry and hums\n" * 90)
    return folder


def ran(model: Path, data: Path, output: Path, *more: str) -> dict[str, Any]:
    """The report of a run of processes."""
    given = [f"--model={model}", f"--data={data}", f"--output={output}", *FLEET, *STEPS, *more, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "iotsplit", "run", *given], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.usefixtures("unmeasured_agents")
@pytest.mark.parametrize(("kind", "codec"), WAYS)
def test_processes_on_a_broker_make_the_adapter_that_roles_in_memory_make(
    kind: Kind, codec: Codec, model: Path, data: Path, tmp_path: Path
) -> None:
    if kind is Kind.MOSQUITTO and find_mosquitto() is None:
        pytest.skip("Mosquitto is not installed")
    report = ran(model, data, tmp_path / "run", f"--codec={codec}", f"--broker={kind}")
    assert report["ledger"] == {"expected": 12, "applied": 12, "lost": 0, "duplicated": 0}

    torch.set_num_threads(1)
    with contextlib.closing(RealFleet(model, tmp_path / "run", tmp_path / "memory")) as fleet:
        fleet.run()
    assert (tmp_path / "memory" / WEIGHTS).read_bytes() == (tmp_path / "run" / WEIGHTS).read_bytes()
    assert fleet.report.eval["after"] == report["eval"]["after"] != report["eval"]["before"]
