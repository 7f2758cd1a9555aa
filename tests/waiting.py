"""Waiting for what other processes do: looks often, gives up late."""

import threading
from collections.abc import Callable

import psutil

PATIENCE_S = 20.0
LOOK_EVERY_S = 0.01


def comes_true(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> bool:
    """Whether a condition becomes true in time."""
    pause = threading.Event()
    for _ in range(int(patience_s / LOOK_EVERY_S)):
        if condition():
            return True
        pause.wait(LOOK_EVERY_S)
    return False


def is_over(pid: int) -> bool:
    """Whether a process ends in time; one that nobody has waited for counts."""

    def ended() -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return comes_true(ended)
