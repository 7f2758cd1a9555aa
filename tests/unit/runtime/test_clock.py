"""The round clock: schedules, windows, and what it does when it fires."""

import datetime as dt
from typing import Any

import pytest

from iotsplit.errors import UsageError
from iotsplit.runtime import clock
from iotsplit.runtime.clock import RoundClock, in_window

EVENING = dt.datetime(2026, 3, 1, 21, 59, tzinfo=dt.UTC)


def trigger(schedule: str) -> Any:
    round_clock = RoundClock(schedule, "", lambda: None)
    (job,) = round_clock._scheduler.get_jobs()
    return job.trigger


@pytest.mark.parametrize(
    ("window", "time", "inside"),
    [
        ("", "12:00", True),
        ("08:00-17:00", "08:00", True),
        ("08:00-17:00", "17:00", False),
        ("08:00-17:00", "07:59", False),
        ("22:00-06:00", "22:00", True),
        ("22:00-06:00", "05:59", True),
        ("22:00-06:00", "06:00", False),
        ("22:00-06:00", "21:59", False),
    ],
)
def test_a_window_holds_its_start_and_not_its_end_also_over_midnight(
    window: str, time: str, inside: bool
) -> None:
    assert in_window(window, dt.time.fromisoformat(time)) is inside


@pytest.mark.parametrize("window", ["8-17", "22:00", "24:00-06:00", "22:60-06:00", "22:00-06:00 "])
def test_what_is_no_window_is_refused_before_anything_starts(window: str) -> None:
    with pytest.raises(UsageError, match="write HH:MM-HH:MM"):
        RoundClock("now", window, lambda: None)


@pytest.mark.parametrize(
    ("schedule", "seconds"),
    [("now", 1), ("every 45 s", 45), ("every 30m", 1800), ("every 1.5h", 5400), ("every 2d", 172_800)],
)
def test_intervals_are_read(schedule: str, seconds: float) -> None:
    assert trigger(schedule).interval == dt.timedelta(seconds=seconds)


def test_a_cron_line_is_read() -> None:
    fires = trigger("cron 0 22 * * *").get_next_fire_time(None, EVENING)
    assert (fires.hour, fires.minute) == (22, 0)


@pytest.mark.parametrize(
    "schedule", ["later", "every", "every 3 weeks", "every -1m", "cron 99 * * * *", "cron 0 22"]
)
def test_what_is_no_schedule_is_refused(schedule: str) -> None:
    with pytest.raises(UsageError, match="schedule"):
        RoundClock(schedule, "", lambda: None)


@pytest.mark.parametrize("inside", [True, False])
def test_it_fires_only_within_the_window(monkeypatch: pytest.MonkeyPatch, inside: bool) -> None:
    fired: list[str] = []
    round_clock = RoundClock("now", "22:00-06:00", lambda: fired.append("due"))
    monkeypatch.setattr(clock, "in_window", lambda window, _: window == "22:00-06:00" and inside)
    round_clock._fire()
    assert fired == ["due"] * inside
