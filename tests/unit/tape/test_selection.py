"""Moments, mappings, speeds, and counts that stay small."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.errors import UsageError
from iotsplit.tape.measures import Distribution, Recent
from iotsplit.tape.player import read_mapping, read_speed
from iotsplit.tape.selection import Moment, read_moment


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("12.5", Moment(12.5)),
        ("90s", Moment(90.0)),
        ("2m", Moment(120.0)),
        ("1:30", Moment(90.0)),
        ("1:00:01.5", Moment(3601.5)),
        ("round:2", Moment(round=2)),
    ],
)
def test_moments_are_read_as_people_write_them(text: str, moment: Moment) -> None:
    assert read_moment(text) == moment


@pytest.mark.parametrize("text", ["", "soon", "round:x", "-1", "1:2:3:4"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no place in a tape"):
        read_moment(text)


def test_topics_are_changed_as_sed_would() -> None:
    assert read_mapping("s/a/b/")("x/a/a") == "x/b/a"
    assert read_mapping("s/a/b/g")("xaa") == "xbb"
    assert read_mapping(r"s|^plant(\d)/|bench/\1/|")("plant7/a") == "bench/7/a"


def test_speeds() -> None:
    assert (read_speed("1x"), read_speed("0.5"), read_speed("max")) == (1.0, 0.5, None)
    with pytest.raises(UsageError):
        read_speed("0x")


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=200), st.floats(0.01, 0.99))
def test_quantiles_are_within_five_percent(values: list[float], share: float) -> None:
    found = Distribution()
    for value in values:
        found.add(value)
    place = next(n for n in range(len(values)) if n + 1 >= share * len(values) - 1e-9)
    exact = sorted(values)[place]
    assert exact * 0.94 <= found.quantile(share) <= exact * 1.06


def test_what_was_put_longest_ago_goes_first() -> None:
    recent: Recent[str, int] = Recent(2)
    assert [recent.put(key, n) for n, key in enumerate("abac")] == [None, None, None, 1]
    assert recent.values() == [2, 3]
