"""Agents that do not fit their fleet are refused by the cloud, and say so themselves."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from iotsplit.plan import Labels
from iotsplit.tensors.parts import split
from tests.broker.conftest import StartBroker
from tests.support import letters_model, tiny_model
from tests.waiting import comes_true

pytestmark = [pytest.mark.slow, pytest.mark.broker, pytest.mark.usefixtures("unmeasured_agents")]


class Agents:
    """Agents of one fleet, each a process of its own."""

    def __init__(self, port: int) -> None:
        self._broker = f"--broker=mqtt://127.0.0.1:{port}"
        self._running: list[subprocess.Popen[str]] = []

    def start(self, *words: str) -> "subprocess.Popen[str]":
        line = [sys.executable, "-m", "iotsplit", *words, self._broker, "--log-level=error"]
        self._running.append(subprocess.Popen(line, stderr=subprocess.PIPE, text=True))
        return self._running[-1]

    def end(self) -> None:
        for agent in self._running:
            agent.terminate()
            agent.communicate()


@pytest.fixture
def agents(start_mosquitto: StartBroker) -> Iterator[Agents]:
    started = Agents(start_mosquitto().settings.port)
    yield started
    started.end()


def refused(output: Path) -> dict[str, str]:
    """Why which agent was refused, as the cloud wrote it down."""
    file = output / "events.jsonl"
    events = [json.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []
    return {event["agent"]: event["detail"] for event in events if event["kind"] == "agent_refused"}


def test_an_agent_of_another_model_or_cut_ends_with_the_reason(agents: Agents, tmp_path: Path) -> None:
    model = letters_model(tmp_path / "tiny")
    other = tiny_model(tmp_path / "other", num_hidden_layers=6)
    split(model, (2, 4), Labels.CLOUD, tmp_path / "parts")
    (tmp_path / "data.txt").write_text(f"the press is too hot{os.linesep}" * 60)
    agents.start("cloud", f"--model={model}", "--cut=1,3", f"--output={tmp_path / 'out'}")
    edge = agents.start("edge", "--id=edge-1", f"--model={other}")
    part = tmp_path / "parts" / "device"
    device = agents.start(
        "device", "--id=press", f"--model={part}", f"--data={tmp_path / 'data.txt'}", "--json"
    )

    _, told = edge.communicate(timeout=60)
    assert edge.returncode == 6
    assert told.count("\n") == 1
    assert "the cloud refuses edge-1: its model is" in told

    _, told = device.communicate(timeout=60)
    assert device.returncode == 6
    error = json.loads(told)
    assert error["code"] == 6
    assert (
        error["message"] == "the cloud refuses press: its part holds layers 0-1, this fleet's device needs 0-0"
    )
    assert comes_true(lambda: set(refused(tmp_path / "out")) == {"edge-1", "press"})
