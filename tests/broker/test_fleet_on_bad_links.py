"""Real processes on slow, half-open and broken links, and one killed: the adapter has the same bits."""

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.chaos import WEIGHTS
from benchmarks.fleet import Fleet, rows
from iotsplit.datasets import partition
from iotsplit.datasets.records import write_jsonl
from iotsplit.fleet.output import to_toml
from iotsplit.settings import FleetSettings, Stragglers, TrainingSettings
from iotsplit_broker.process import find_mosquitto
from tests.flows.real import RealFleet
from tests.support import letters_model
from tests.waiting import comes_true

pytestmark = [pytest.mark.slow, pytest.mark.broker, pytest.mark.usefixtures("unmeasured_agents")]

PATIENCE_S = 90.0
TRAINING = TrainingSettings(
    rounds=1,
    local_steps=16,
    checkpoint_every=2,
    cut=(1, 3),
    batch_size=2,
    micro_batches=2,
    sequence_length=16,
    learning_rate=0.01,
)
MEMBERS = FleetSettings(devices=2, edges=2, once=True, stragglers=Stragglers.WAIT)


class Run:
    """A fleet whose links are never better than 20 ms one way, so that it lasts."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        for name in fleet.proxies:
            self.slow(name, delay_s=0.02)

    def slow(self, name: str, *, delay_s: float, rate: float = 1e6) -> None:
        self._fleet.proxies[name].shape(delay_s=delay_s, rate=rate)

    def until(self, condition: Callable[[], bool]) -> None:
        """Keep the fleet running until something has happened; it must not end before."""
        over = False

        def done() -> bool:
            nonlocal over
            over = self._fleet.keep_running()
            return over or condition()

        assert comes_true(done, PATIENCE_S)
        assert not over

    def goes_on(self) -> None:
        """Wait for a step that is new."""
        before = self._steps()
        self.until(lambda: self._steps() > before)

    def says(self, kind: str) -> bool:
        return any(row["kind"] == kind for row in self._rows("events.jsonl"))

    def ends(self) -> None:
        assert comes_true(self._fleet.keep_running, PATIENCE_S)

    def _steps(self) -> int:
        return len([row for row in self._rows("metrics.jsonl") if row["role"] == "cloud" and row.get("step")])

    def _rows(self, name: str) -> list[dict[str, object]]:
        file = self._fleet.output / name
        return list(rows(file)) if file.exists() else []


def start(output: Path, model: Path) -> Fleet:
    given = output.parent / "given"
    (output / "data").mkdir(parents=True)
    given.mkdir()
    for name in ("press", "pump"):
        (given / f"{name}.txt").write_text(f"the {name} is too hot today\n" * 60)
    for name, records in partition.load(str(given), devices=2).items():
        write_jsonl(output / "data" / f"{name}.jsonl", records)
    config = output / "fleet.toml"
    config.write_text(to_toml(TRAINING, MEMBERS))
    return Fleet(
        output=output,
        model=model,
        devices=["press", "pump"],
        edges=["edge-1", "edge-2"],
        words=[f"--config={config}"],
        proxied=True,
    )


def test_bad_links_change_nothing(tmp_path: Path) -> None:
    if find_mosquitto() is None:
        pytest.skip("Mosquitto is not installed")
    model, output = letters_model(tmp_path / "tiny"), tmp_path / "out"
    with contextlib.closing(start(output, model)) as fleet:
        run = Run(fleet)
        run.goes_on()
        run.slow("cloud", delay_s=0.1, rate=1e5)
        run.goes_on()
        run.slow("cloud", delay_s=0.02)
        fleet.proxies["press"].stall()
        run.until(lambda: fleet.proxies["press"].has_lost)
        fleet.proxies["press"].mend()
        run.goes_on()
        # What edge-1 says meanwhile comes when its session has moved.
        fleet.proxies["edge-1"].cut()
        run.until(lambda: run.says("session_moved"))
        fleet.proxies["edge-1"].mend()
        run.goes_on()
        os.kill(fleet.pid("edge-2"), signal.SIGKILL)
        run.goes_on()
        run.ends()
    report = json.loads((output / "report.json").read_text())
    assert report["ledger"] == {"expected": 32, "applied": 32, "lost": 0, "duplicated": 0}

    torch.set_num_threads(1)
    with contextlib.closing(RealFleet(model, output, tmp_path / "memory")) as memory:
        memory.run()
    assert (tmp_path / "memory" / WEIGHTS).read_bytes() == (output / WEIGHTS).read_bytes()
