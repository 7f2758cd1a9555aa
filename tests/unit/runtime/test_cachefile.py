"""A cache on disk: what was written comes back, twice written is once written, damage costs only the cache."""

import contextlib
import dataclasses
import sqlite3
from pathlib import Path

import pytest

from iotsplit.cache import CacheChange, Row, nothing_of
from iotsplit.runtime.cachefile import CacheFile

TABLES = ("owners", "samples", "waiting")


def change(*, session: str = "s2", emptied: bool = False, owner: str = "a", **rows: list[Row]) -> CacheChange:
    return CacheChange(
        owner=owner,
        base="s1",
        session=session,
        emptied=emptied,
        rows=tuple(rows.get("rows", [])),
        waiting=tuple(rows.get("waiting", [])),
    )


def row(sample: int, step: int = 0, data: bytes = b"data") -> Row:
    return Row(sample=sample, place=(step, 0, 0), data=data, digest=b"digest")


def written(file: Path, *changes: CacheChange) -> dict[str, CacheChange]:
    with contextlib.closing(CacheFile(file)) as held:
        for each in changes:
            held.take(each)
    with contextlib.closing(CacheFile(file)) as held:
        return held.load()


def test_nothing_is_made_before_something_is_written(tmp_path: Path) -> None:
    assert written(tmp_path / "samples.db") == {}
    assert not list(tmp_path.iterdir())


def test_what_is_gone_is_deleted_and_who_is_forgotten_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "samples.db"
    first = change(rows=[row(1), row(2)], waiting=[row(3)])
    gone = dataclasses.replace(change(rows=[row(4)]), gone=(1,))
    held = written(file, first, gone, change(owner="b", rows=[row(5)], waiting=[row(6)]))
    assert [each.sample for each in held["a"].rows] == [2, 4]
    assert set(written(file, nothing_of("b"))) == {"a"}
    with contextlib.closing(sqlite3.connect(file)) as database:
        left = [database.execute(f"SELECT DISTINCT owner FROM {table}").fetchall() for table in TABLES]
    assert left == [[("a",)]] * 3


def test_what_was_written_comes_back_by_its_owner(tmp_path: Path) -> None:
    one = change(rows=[row(1), row(2)], waiting=[row(1, 0), row(2, 1)])
    other = change(owner="b", waiting=[row(9, 3)])
    assert written(tmp_path / "new" / "samples.db", one, other, one) == {"a": one, "b": other}


def test_a_later_row_replaces_an_earlier_one_and_another_session_what_waited(tmp_path: Path) -> None:
    first = change(rows=[row(1), row(2)], waiting=[row(1, 0)])
    second = change(session="s3", rows=[row(1, data=b"new")], waiting=[row(2, 0)])
    (held,) = written(tmp_path / "samples.db", first, second).values()
    assert {each.sample: each.data for each in held.rows} == {1: b"new", 2: b"data"}
    assert held.waiting == (row(2, 0),)


def test_what_was_emptied_is_gone(tmp_path: Path) -> None:
    emptied = change(emptied=True, rows=[row(5)])
    assert written(tmp_path / "samples.db", change(rows=[row(1)]), emptied)["a"].rows == (row(5),)


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "samples.db"
    file.write_bytes(b"not a database, by far" * 100)
    assert written(file) == {}
    assert written(file, change(rows=[row(1)]))["a"].rows == (row(1),)


def test_a_row_that_has_rotted_is_found(tmp_path: Path) -> None:
    file = tmp_path / "samples.db"
    written(file, change(rows=[row(1, data=b"sound and whole")]))
    file.write_bytes(file.read_bytes().replace(b"sound and whole", b"sound and Whole"))
    with contextlib.closing(CacheFile(file)) as held:
        assert held.load() == {}


def test_a_disk_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "samples.db").mkdir()
    with pytest.raises(OSError, match=r"samples\.db"):
        written(tmp_path / "samples.db", change())
