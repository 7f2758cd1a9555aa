"""The store of a tap: each text once, bounded, and whole whenever it is cut off."""

import contextlib
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotsplit.errors import RunFailedError, UsageError
from iotsplit_device.textstore import ROW_BYTES, TextStore

DAY_S = 86400.0


def opened(directory: Path, *, max_bytes: int = 10_000, keep_s: float = DAY_S, least: int = 2) -> TextStore:
    return TextStore(directory / "tap" / "texts.sqlite", max_bytes=max_bytes, keep_s=keep_s, least=least)


def test_texts_are_there_after_a_restart_in_their_order(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert store.add(["b", "a"], 1.0) == 2
    assert store.add(["c"], 2.0) == 1
    store.close()
    with contextlib.closing(opened(tmp_path)) as again:
        assert again.texts() == ["b", "a", "c"]


def test_a_text_is_kept_once_and_where_it_came_first(tmp_path: Path) -> None:
    with contextlib.closing(opened(tmp_path)) as store:
        store.add(["a", "b"], 1.0)
        assert store.add(["a", "c", "c"], 2.0) == 1
        assert store.texts() == ["a", "b", "c"]


def test_old_texts_are_dropped_but_for_as_many_as_are_needed(tmp_path: Path) -> None:
    with contextlib.closing(opened(tmp_path, least=2)) as store:
        store.add(["a", "b", "c"], 0.0)
        store.add(["d"], DAY_S + 1)
        assert store.texts() == ["c", "d"]
        store.add([], 10 * DAY_S)
        assert store.texts() == ["c", "d"]


def test_what_came_before_the_clock_was_set_is_of_the_moment_when_it_was(tmp_path: Path) -> None:
    store = opened(tmp_path, least=1)
    store.add(["a", "b"], now=40.0)  # in 1970
    today = 1.8e9
    store.add(["c"], now=today)
    assert store.texts() == ["a", "b", "c"]
    store.add(["d"], now=today + DAY_S + 1)
    assert store.texts() == ["d"]
    store.close()


def test_the_oldest_make_room(tmp_path: Path) -> None:
    with contextlib.closing(opened(tmp_path, max_bytes=3 * (ROW_BYTES + 10))) as store:
        store.add([letter * 10 for letter in "abcde"], 0.0)
        assert store.texts() == ["c" * 10, "d" * 10, "e" * 10]
        assert store.add(["x" * 10_000], 0.0) == 0
        assert len(store) == 3


batches = st.lists(st.tuples(st.lists(st.text(max_size=40), max_size=8), st.floats(0, 3 * DAY_S)), max_size=8)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(batches, st.integers(200, 2000))
def test_it_is_bounded_and_without_repetition(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[list[str], float]], max_bytes: int
) -> None:
    directory = tmp_path_factory.mktemp("store")
    with contextlib.closing(opened(directory, max_bytes=max_bytes)) as store:
        for texts, now in batches:
            store.add(texts, now)
            kept = store.texts()
            assert store.size_bytes == sum(len(text.encode()) + ROW_BYTES for text in kept) <= max_bytes
            assert len(set(kept)) == len(kept) == len(store)
            assert set(kept) <= {text for texts, _ in batches for text in texts}


@pytest.mark.slow
@settings(deadline=None, max_examples=25)  # disks are copied
@given(st.lists(st.sampled_from("abcdefgh"), max_size=5), st.lists(st.sampled_from("abcdefgh"), min_size=1))
def test_a_cut_between_any_two_writes_leaves_all_of_an_addition_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, first: list[str], second: list[str]
) -> None:
    directory = tmp_path_factory.mktemp("store")
    room = 4 * (ROW_BYTES + 1)
    disks: list[Path] = []

    def cut(statement: str) -> None:
        """Keep the disk as it is just before a statement."""
        del statement
        disks.append(directory / f"cut {len(disks)}")
        shutil.copytree(directory / "tap", disks[-1] / "tap")

    with contextlib.closing(opened(directory, max_bytes=room)) as store:
        store.add(first, 0.0)
        before = store.texts()
        store._connection.set_trace_callback(cut)
        store.add(second, 1.0)
        store._connection.set_trace_callback(None)
        after = store.texts()
    assert len(disks) > 3
    for disk in disks:
        with contextlib.closing(opened(disk, max_bytes=room)) as again:
            assert again.texts() in (before, after)
            again.add(second, 1.0)
            assert again.texts() == after


def test_a_full_disk_loses_an_addition_and_nothing_else(tmp_path: Path) -> None:
    with contextlib.closing(opened(tmp_path)) as store:
        store.add(["a"], 0.0)
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(RunFailedError, match=r"texts\.sqlite: database or disk is full; free space there"):
            store.add(["x" * 9000], 1.0)
        assert store.texts() == ["a"]
        store._connection.execute("PRAGMA max_page_count = 1000")
        store.add(["b"], 2.0)
        assert store.texts() == ["a", "b"]


def test_what_is_no_store_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "tap").mkdir()
    (tmp_path / "tap" / "texts.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(UsageError, match=r"texts\.sqlite cannot be gone on with: .*; remove it"):
        opened(tmp_path)


def test_a_store_that_is_damaged_within_is_refused_too(tmp_path: Path) -> None:
    with contextlib.closing(opened(tmp_path, max_bytes=1_000_000)) as store:
        store.add([f"text {number} " * 50 for number in range(100)], 0.0)
    file = tmp_path / "tap" / "texts.sqlite"
    content = bytearray(file.read_bytes())
    content[3 * 4096 :] = b"\xff" * (len(content) - 3 * 4096)
    file.write_bytes(content)
    with (
        contextlib.closing(opened(tmp_path)) as store,
        pytest.raises(UsageError, match=r"malformed; remove it \(texts are gathered anew\)"),
    ):
        store.texts()


def test_a_store_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path).close()
    monkeypatch.setattr("iotsplit_device.textstore.FORMAT", 2)
    with pytest.raises(UsageError, match="it has format 1, this version of iotsplit writes 2"):
        opened(tmp_path)


def test_where_nothing_can_be_written_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "tap").write_text("a file")
    with pytest.raises(RunFailedError, match=r"cannot write .*; free space there"):
        opened(tmp_path)
