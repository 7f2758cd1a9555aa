"""``iotsplit broker`` as a process: what it prints, how it ends, and that nothing stays behind."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from iotsplit_broker.process import Kind, find_mosquitto
from tests.waiting import is_over

pytestmark = [pytest.mark.broker, pytest.mark.slow]

RunCommand = Callable[..., subprocess.Popen[str]]
KINDS = [Kind.EMBEDDED, *([Kind.MOSQUITTO] if find_mosquitto() else [])]


@pytest.fixture
def command(tmp_path: Path) -> Iterator[RunCommand]:
    processes: list[subprocess.Popen[str]] = []

    def run(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "iotsplit", "broker", f"--directory={tmp_path / 'broker'}", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        with process:
            process.kill()


def announced(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    told: dict[str, Any] = json.loads(process.stdout.readline())
    return told


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_where_it_listens_once_it_does(command: RunCommand, kind: Kind) -> None:
    told = announced(command("--port=0", "--json", f"--kind={kind}"))
    assert told.keys() == {"host", "port", "kind", "pid"}
    assert told["kind"] == kind
    socket.create_connection((told["host"], told["port"]), timeout=5).close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_its_child(command: RunCommand, kind: Kind, number: int, code: int) -> None:
    process = command("--port=0", "--json", f"--kind={kind}")
    told = announced(process)
    process.send_signal(number)
    assert process.wait(20) == code
    assert is_over(told["pid"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_child_ends_when_the_command_is_killed(command: RunCommand, kind: Kind) -> None:
    process = command("--port=0", "--json", f"--kind={kind}")
    told = announced(process)
    process.kill()
    assert is_over(told["pid"])


@pytest.mark.parametrize("kind", KINDS)
def test_it_ends_with_code_1_when_the_broker_dies(command: RunCommand, kind: Kind) -> None:
    process = command("--port=0", "--json", f"--kind={kind}")
    psutil.Process(announced(process)["pid"]).kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert json.loads(errors.splitlines()[-1])["message"] == "the broker ended with code -9"


def test_for_people_it_prints_one_line_with_the_address(command: RunCommand) -> None:
    process = command("--port=0")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("mqtt://127.0.0.1:")


def test_the_embedded_broker_says_what_it_lacks(command: RunCommand) -> None:
    process = command("--port=0", "--json", "--kind=embedded")
    announced(process)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert "retained messages are lost" in errors


def test_a_taken_port_is_wrong_usage(command: RunCommand) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = command(f"--port={server.getsockname()[1]}")
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "is taken" in errors


def test_two_brokers_do_not_share_a_directory(command: RunCommand) -> None:
    announced(command("--port=0", "--json"))
    second = command("--port=0", "--json")
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 2
    assert "another broker" in json.loads(errors)["message"]


def test_open_doors_are_pointed_out(command: RunCommand) -> None:
    process = command("--port=0", "--json", "--host=0.0.0.0")
    announced(process)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert "everybody who reaches 0.0.0.0 may connect" in errors


def test_options_may_come_from_a_file(command: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "broker.toml").write_text('port = 0\nkind = "embedded"\n')
    told = announced(command("--json", f"--config={tmp_path / 'broker.toml'}"))
    assert told["kind"] == "embedded"


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["config", "--help"], ["bridge", "--help"]])
def test_help_begins_with_examples_and_imports_no_tensors(words: list[str]) -> None:
    code = (
        "import sys\nfrom iotsplit_broker.command import main\n"
        f"try: main({words})\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'numpy', 'paho'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("Examples:\n  iotsplit broker")
