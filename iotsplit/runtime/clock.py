"""Time, and the round clock: the only module that reads clocks; APScheduler lives here."""

import datetime as dt
import re
import time
from collections.abc import Callable

from iotsplit.errors import UsageError

now = time.monotonic
wall = time.time
wall_ns = time.time_ns

_INTERVAL = re.compile(r"every (\d+(?:\.\d+)?)\s*(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


def in_window(window: str, clock: dt.time) -> bool:
    """Whether a time of day lies in a window such as ``22:00-06:00``; an empty window is always.

    Raises:
        UsageError: not a window.
    """
    if not window:
        return True
    found = _WINDOW.fullmatch(window)
    if found is None:
        raise UsageError(f"window {window!r} is not one", fix="write HH:MM-HH:MM, such as 22:00-06:00")
    h1, m1, h2, m2 = map(int, found.groups())
    start, end = dt.time(h1, m1), dt.time(h2, m2)
    return start <= clock < end if start <= end else clock >= start or clock < end


class RoundClock:
    """Says when rounds are due; an APScheduler job that only calls `due`, which must only enqueue.

    Args:
        schedule: ``now`` (a round follows the other), ``every 30m``, or ``cron 0 22 * * *``.
        window: times of day in which rounds may start, ``22:00-06:00``; empty for always.
        due: called from the scheduler's thread.

    Raises:
        UsageError: schedule or window cannot be read.
    """

    def __init__(self, schedule: str, window: str, due: Callable[[], None]) -> None:
        from apscheduler.schedulers.background import BackgroundScheduler  # noqa: PLC0415 - cloud only

        self._window = window
        self._due = due
        in_window(window, dt.time())
        # Firings that were missed (suspended machine, a long round) count as one.
        self._scheduler = BackgroundScheduler(job_defaults={"coalesce": True, "max_instances": 1})
        self._scheduler.add_job(self._fire, trigger=_trigger(schedule), misfire_grace_time=None)

    def start(self) -> None:
        """Begin to fire."""
        self._scheduler.start()

    def close(self) -> None:
        """Fire no more."""
        self._scheduler.shutdown(wait=False)

    def _fire(self) -> None:
        if in_window(self._window, dt.datetime.now().astimezone().time()):
            self._due()


def _trigger(schedule: str) -> object:
    from apscheduler.triggers.cron import CronTrigger  # noqa: PLC0415 - cloud only
    from apscheduler.triggers.interval import IntervalTrigger  # noqa: PLC0415 - cloud only

    if schedule == "now":
        return IntervalTrigger(seconds=1)
    interval = _INTERVAL.fullmatch(schedule)
    if interval is not None:
        return IntervalTrigger(seconds=float(interval[1]) * _SECONDS[interval[2]])
    if schedule.startswith("cron "):
        try:
            return CronTrigger.from_crontab(schedule.removeprefix("cron "))
        except ValueError as error:
            raise UsageError(
                f"schedule {schedule!r}: {error}", fix="write cron MIN HOUR DAY MONTH WEEKDAY"
            ) from None
    raise UsageError(
        f"schedule {schedule!r} is unknown", fix="use now, every 30m, or a cron line such as cron 0 22 * * *"
    )
