"""Files that survive a power cut."""

import os
from pathlib import Path

import pytest

from iotsplit.errors import RunFailedError
from iotsplit.runtime.files import read_checked, replace, sha256, writing


def test_a_file_is_replaced_as_a_whole_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "state"
    replace(file, b"old")
    replace(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace"])
def test_a_power_cut_before_the_new_one_is_there_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    file = tmp_path / "state"
    replace(file, b"old")

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(call, cut)
    with pytest.raises(KeyboardInterrupt):
        replace(file, b"new")
    assert file.read_bytes() == b"old"


def test_content_is_on_the_disk_before_it_takes_the_name_and_the_name_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    renamed, synced = Path.replace, os.fsync

    def sync(descriptor: int) -> None:
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        synced(descriptor)

    def rename(draft: Path, file: Path) -> Path:
        order.append("renamed")
        return renamed(draft, file)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    replace(tmp_path / "state", b"new")
    assert order == [".state.new", "renamed", tmp_path.name]


def test_a_rest_of_an_earlier_draft_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".state.new").write_bytes(b"half of something that was longer")
    replace(tmp_path / "state", b"new")
    assert (tmp_path / "state").read_bytes() == b"new"


def test_a_file_is_read_only_if_it_is_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "state"
    digest = sha256(b"content")
    assert read_checked(file, digest) is None
    file.write_bytes(b"cont")
    assert read_checked(file, digest) is None
    file.write_bytes(b"content")
    assert read_checked(file, digest) == b"content"


def test_a_disk_error_is_one_line_with_the_file_and_the_way_out(tmp_path: Path) -> None:
    with (
        pytest.raises(RunFailedError, match=r"cannot write .*missing.*No such file or directory; free space"),
        writing(tmp_path, fix="free space"),
    ):
        replace(tmp_path / "missing" / "state", b"x")


def test_a_disk_error_without_a_file_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match=f"cannot write {tmp_path}: torn"), writing(tmp_path, fix="x"):
        raise OSError("torn")
