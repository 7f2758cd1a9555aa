"""Processes of a fleet: started, missed, ended, none left behind. Stand-ins for the agents die on demand."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from iotsplit.errors import BrokerUnreachableError, RunFailedError, UsageError
from iotsplit.fleet import launcher as module
from iotsplit.fleet.launcher import Launcher, end_of, interruptible, last_words
from tests.waiting import comes_true

pytestmark = pytest.mark.slow

# Stands in for `iotsplit`: does what its first word says.
STAND_IN = """
import os, signal, subprocess, sys, threading
verb, *words = sys.argv[1:]
if verb == "say":
    print(*words[1:], flush=True)
    sys.exit(int(words[0]))
if verb == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if verb == "noted":
    signal.signal(signal.SIGTERM, lambda *_: (open(words[0], "a").write(words[1]), sys.exit(130)))
if verb == "parent":
    subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
if verb == "broker":
    print("iotsplit: it lacks something", flush=True)
    print('{"host": "127.0.0.1", "port": 4711, "kind": "embedded", "pid": %d}' % os.getpid(), flush=True)
print("ready", flush=True)
while True:
    threading.Event().wait()
"""

Ready = Callable[[str], None]


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    file = tmp_path / "stand_in.py"
    file.write_text(STAND_IN)
    return [sys.executable, str(file)]


@pytest.fixture
def launcher(tmp_path: Path, program: list[str]) -> Iterator[Launcher]:
    made = Launcher(tmp_path, program)
    yield made
    made.stop()


@pytest.fixture
def ready(tmp_path: Path) -> Ready:
    """Waits until an agent has said that it is ready."""

    def wait(agent: str) -> None:
        for _ in range(1000):
            if b"ready" in (tmp_path / f"{agent}.log").read_bytes():
                return
            os.sched_yield()
            subprocess.run(["true"], check=True)
        raise AssertionError(f"{agent} is not ready")

    return wait


def test_an_end_is_told_with_agent_code_and_last_words(launcher: Launcher) -> None:
    child = launcher.start("press", ["say", "1", "first\nsecond"])
    assert launcher.wait("press", 10) == 1
    error = end_of(child)
    assert "press ended with exit code 1: second" in str(error)
    assert str(child.log) in error.fix


def test_the_exit_code_of_a_user_error_is_kept(launcher: Launcher) -> None:
    child = launcher.start("press", ["say", "3", "iotsplit: error: nobody there; start it"])
    launcher.wait("press", 10)
    error = end_of(child)
    assert isinstance(error, BrokerUnreachableError)
    assert error.message == "press ended with exit code 3: nobody there; start it"


def test_an_end_by_a_signal_is_named(launcher: Launcher, ready: Ready) -> None:
    child = launcher.start("press", ["wait"])
    ready("press")
    child.process.kill()
    launcher.wait("press", 10)
    assert "press was ended by SIGKILL" in str(end_of(child))
    assert isinstance(end_of(child), RunFailedError)


def test_words_of_an_earlier_run_are_not_told(launcher: Launcher) -> None:
    launcher.start("press", ["say", "1", "old"])
    launcher.wait("press", 10)
    child = launcher.start("press", ["say", "1"])
    launcher.wait("press", 10)
    assert last_words(child) == ""


def test_each_death_is_told_once(launcher: Launcher, ready: Ready) -> None:
    launcher.start("edge-1", ["wait"])
    launcher.start("press", ["say", "2"])
    launcher.wait("press", 10)
    ready("edge-1")
    assert [child.agent for child in launcher.newly_dead()] == ["press"]
    assert launcher.newly_dead() == []


def test_stop_leaves_nothing_behind_not_even_the_stubborn_and_grandchildren(
    launcher: Launcher, ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OTHERS_STOP_S", 0.1)
    children = [launcher.start(name, [name]) for name in ("stubborn", "parent", "wait")]
    for child in children:
        ready(child.agent)
    family = [psutil.Process(child.process.pid) for child in children]
    family += [kin for each in family for kin in each.children(recursive=True)]
    launcher.stop()
    gone, alive = psutil.wait_procs(family, timeout=60)
    assert len(gone) == 4
    assert alive == []


def test_the_cloud_ends_first_and_the_broker_last(launcher: Launcher, ready: Ready, tmp_path: Path) -> None:
    order = tmp_path / "order"
    for agent in ("broker", "press", "cloud"):
        launcher.start(agent, ["noted", str(order), agent[0]])
        ready(agent)
    launcher.stop()
    assert order.read_text() == "cpb"


def test_a_broker_says_where_it_listens(launcher: Launcher) -> None:
    broker = launcher.start_broker(["broker"])
    assert (broker.address, broker.kind) == ("mqtt://127.0.0.1:4711", "embedded")
    assert broker.notes == ["it lacks something"]
    assert module.peak_rss_bytes(broker.pid) > 1_000_000


def test_a_broker_that_cannot_start_is_told(launcher: Launcher) -> None:
    with pytest.raises(UsageError, match="broker ended with exit code 2: port is taken"):
        launcher.start_broker(["say", "2", "port is taken"])


def test_a_silent_broker_is_not_waited_for_forever(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BROKER_START_S", 0.1)
    with pytest.raises(RunFailedError, match="did not start within"):
        launcher.start_broker(["wait"])


def test_options_in_the_environment_do_not_reach_agents(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IOTSPLIT_CONFIG", "fleet.toml")
    monkeypatch.setenv("IOTSPLIT_PASSWORD", "x")
    child = launcher.start("press", ["wait"])
    process = psutil.Process(child.process.pid)
    assert comes_true(lambda: bool(process.environ()))  # none for a moment, when the leash becomes the agent
    surroundings = process.environ()
    assert surroundings["IOTSPLIT_CONFIG"] == ""
    assert surroundings["IOTSPLIT_PASSWORD"] == "x"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_end_a_run_as_ctrl_c_does(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


PARENT = """
import sys
from pathlib import Path
from iotsplit.fleet.launcher import Launcher, interruptible
launcher = Launcher(Path(sys.argv[1]), sys.argv[2:])
try:
    with interruptible():
        children = [launcher.start(name, [name]) for name in ("stubborn", "wait")]
        for child in children:
            while b"ready" not in child.log.read_bytes():
                pass
        print(*(child.process.pid for child in children), flush=True)
        launcher.wait("wait", 60)
except KeyboardInterrupt:
    sys.exit(130)
finally:
    import iotsplit.fleet.launcher as module
    module.OTHERS_STOP_S = 0.1
    launcher.stop()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_parent_leaves_no_orphan(
    number: signal.Signals, tmp_path: Path, program: list[str]
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), *program], stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        parent.send_signal(number)
        assert parent.wait(30) == 130
    assert not any(child.is_running() for child in children)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the parent-death signal")
def test_a_killed_parent_takes_its_children_along(tmp_path: Path, program: list[str]) -> None:
    code = PARENT.replace('("stubborn", "wait")', '("wait",)')
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), *program], stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait(30)
    _, alive = psutil.wait_procs([child], timeout=60)
    assert alive == []
