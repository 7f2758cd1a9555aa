"""Children: they get signals as usual, and end with their parent."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from iotsplit.runtime import processes
from tests.waiting import is_over

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's part is Linux's")
WAITER = [sys.executable, "-c", "import signal; print('ready', flush=True); signal.pause()"]
# A parent that starts a waiting child with us, says its id, and waits itself.
PARENT = f"""
import signal, sys
from iotsplit.runtime import processes
child = processes.start({WAITER!r})
child.stdout.readline()
print(child.pid, flush=True)
signal.pause()
"""


def ready(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def finished(process: subprocess.Popen[bytes]) -> str:
    with process:
        out, _ = process.communicate(timeout=20)
    return out.decode().strip()


def test_output_is_a_pipe_without_a_log() -> None:
    assert finished(processes.start([sys.executable, "-c", "print('hello')"])) == "hello"


def test_output_and_errors_go_to_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    words = [sys.executable, "-c", "import sys; print('out', flush=True); sys.exit('err')"]
    assert processes.start(words, log=log).wait(20) == 1
    assert log.read_text() == "before\nout\nerr\n"


def test_the_environment_is_extended() -> None:
    words = [sys.executable, "-c", "import os; print(os.environ['ONE'], 'PATH' in os.environ)"]
    assert finished(processes.start(words, environment={"ONE": "1"})) == "1 True"


def test_the_childs_id_is_the_programs() -> None:
    process = processes.start([sys.executable, "-c", "import os; print(os.getpid())"])
    assert finished(process) == str(process.pid)


@linux
def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert processes.start(["no-such-program-anywhere"], log=log).wait(20) == 1
    assert "no-such-program-anywhere: No such file" in log.read_text()


def test_stop_ends_a_child_by_sigterm() -> None:
    with processes.start(WAITER) as process:
        ready(process)
        assert processes.stop(process) == -signal.SIGTERM


def test_stop_ends_a_deaf_child_by_sigkill() -> None:
    deaf = "import signal; signal.signal(15, signal.SIG_IGN)\n"
    deaf += "print('ready', flush=True)\nwhile True: signal.pause()"
    with processes.start([sys.executable, "-c", deaf]) as process:
        ready(process)
        assert processes.stop(process, grace_s=0.05) == -signal.SIGKILL


def test_stop_of_a_child_that_has_ended_gives_its_code() -> None:
    with processes.start([sys.executable, "-c", "raise SystemExit(3)"]) as process:
        process.wait(20)
        assert processes.stop(process) == 3


@linux
def test_a_child_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        child = int(ready(parent))
        parent.kill()
    assert is_over(child)


@linux
def test_a_process_can_ask_to_end_with_its_parent() -> None:
    asking = "from iotsplit.runtime.processes import die_with_parent as d; d(); print('ready', flush=True)\n"
    asking += "import signal; signal.pause()"
    plain = f"import subprocess, sys, signal\nc = subprocess.Popen([sys.executable, '-c', {asking!r}],"
    plain += " stdout=subprocess.PIPE)\nc.stdout.readline(); print(c.pid, flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", plain], stdout=subprocess.PIPE) as parent:
        child = int(ready(parent))
        parent.kill()
    assert is_over(child)
