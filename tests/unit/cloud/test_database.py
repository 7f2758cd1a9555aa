"""The cloud's facts: written together or not at all, and refused when they cannot be understood."""

import sqlite3
from pathlib import Path

import pytest

from iotsplit.errors import RunFailedError, UsageError
from iotsplit_cloud.database import Database


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def test_a_fact_is_found_after_a_restart(file: Path) -> None:
    Database(file).write({"a": {"x": 1}, "b": [2]})
    again = Database(file)
    assert again.fact("a", dict[str, int]) == {"x": 1}
    assert again.fact("b", list[int]) == [2]
    assert again.fact("c", int) is None


def test_a_fact_is_replaced_or_removed(file: Path) -> None:
    made = Database(file)
    made.write({"a": 1, "b": 2})
    made.write({"a": 3, "b": None})
    assert (made.fact("a", int), made.fact("b", int)) == (3, None)


def test_facts_are_written_together_or_not_at_all(file: Path) -> None:
    made = Database(file)
    made.write({"a": 1})
    with pytest.raises(TypeError):
        made.write({"a": 2, "b": object()})
    assert Database(file).fact("a", int) == 1


def test_checkpoints_are_listed_and_forgotten_with_the_round(file: Path) -> None:
    made = Database(file)
    made.add_checkpoint("1", "d1", {"step": 1}, remove=[])
    made.add_checkpoint("2", "d2", {"step": 2}, remove=[])
    made.add_checkpoint("3", "d3", {"step": 3}, remove=["1"])
    assert made.checkpoints(dict[str, int]) == [("2", "d2", {"step": 2}), ("3", "d3", {"step": 3})]
    made.write({"round": None}, forget_checkpoints=True)
    assert made.checkpoints(dict[str, int]) == []


def test_a_killed_writer_leaves_the_state_before(file: Path) -> None:
    made = Database(file)
    made.write({"a": 1})
    made._connection.execute("BEGIN IMMEDIATE")
    made._connection.execute("INSERT OR REPLACE INTO facts VALUES ('a', '2')")
    made.close()
    assert Database(file).fact("a", int) == 1


def test_a_file_that_is_no_database_is_refused(file: Path) -> None:
    file.write_bytes(b"not a database, but long enough to look at" * 50)
    with pytest.raises(UsageError, match=r"cannot be gone on with.*--fresh"):
        Database(file)


def test_a_database_of_a_later_version_is_refused(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(UsageError, match="format 7"):
        Database(file)


def test_a_fact_that_cannot_be_understood_is_refused(file: Path) -> None:
    made = Database(file)
    made.write({"a": "words"})
    with pytest.raises(UsageError, match="cannot be gone on with"):
        made.fact("a", int)


def test_a_directory_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match="cannot write"):
        Database(tmp_path / "missing" / "state.db")
