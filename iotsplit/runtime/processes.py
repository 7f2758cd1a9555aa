"""Child processes that never outlive their parent; signals and memory of this one."""

import contextlib
import ctypes
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG = 1  # prctl(2)

# Runs in the child before the program: asks for a signal at the parent's death and makes sure that it has
# not died already. A `preexec_fn` could do the same, but deadlocks in a parent with threads.
_LEASH = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {int(signal.SIGTERM)})
if os.getppid() == int(sys.argv[1]):
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.exit(f"{{sys.argv[2]}}: {{error.strerror}}")
"""


# malloc.h of glibc: M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD.
_MALLOC_OPTIONS = ((-8, 1), (-3, 1 << 16), (-1, 1 << 20))


def return_freed_memory() -> None:
    """Ask glibc to give freed tensors back to the system at once, instead of keeping them for later.

    For devices, where memory is what is short: their peak is 40 MB lower with it; for others if they are told
    to. New pages for each tensor cost a third of the computing time, and on edge and cloud a third of the
    fleet's speed. Other C libraries are left as they are.
    """
    if sys.platform.startswith("linux"):
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            for option, value in _MALLOC_OPTIONS:
                library.mallopt(option, value)


def trim_memory() -> None:
    """Give back what is free, in the midst of the heap too: for when something large has ended; glibc only."""
    gc.collect()
    if sys.platform.startswith("linux"):
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):
            library.malloc_trim(0)


Handler = Callable[[int, FrameType | None], object] | signal.Handlers


@contextlib.contextmanager
def signals_handled(numbers: Iterable[int], handler: Handler) -> Iterator[None]:
    """Handle some signals in this way for a while, and as before afterwards."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def die_with_parent() -> None:
    """Ask the kernel to send this process SIGTERM when its parent dies, however that happens; Linux only."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def start(
    words: Sequence[str], *, log: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own, so that a Ctrl-C reaches only the parent.

    On Linux it gets SIGTERM when the thread that called this ends, whatever ends it: call it from a
    thread that lives as long as the children should. A program that changes its user loses that signal.

    Args:
        words: the command line.
        log: file that its output is added to; without one stdout is a pipe and stderr is the parent's.
        environment: added to this process's.
    """
    surroundings = {**os.environ, "IOTSPLIT_PARENT_DEATH": "1", **(environment or {})}
    leashed = [*_leash(), *words]
    with contextlib.ExitStack() as stack:
        out = None if log is None else stack.enter_context(log.open("ab"))
        return subprocess.Popen(
            leashed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if out is None else out,
            stderr=None if out is None else subprocess.STDOUT,
            env=surroundings,
            start_new_session=True,
        )


def _leash() -> list[str]:
    if not sys.platform.startswith("linux"):
        return []
    return [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid())]


def stop(process: subprocess.Popen[bytes], *, grace_s: float = 10.0) -> int:
    """End a child: SIGTERM, then SIGKILL; gives its exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()
