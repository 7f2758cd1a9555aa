"""``iotsplit split`` writes three directories and says what they hold."""

import json
from pathlib import Path

import pytest

from iotsplit.errors import RunFailedError, UsageError
from iotsplit.fleet import split
from tests.support import tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def test_parts_are_written_and_listed(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert split.main([f"--model={model}", "--cut=1,3", f"--output={tmp_path / 'parts'}", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["tier"], row["layers"]) for row in rows] == [
        ("device", "0-0"),
        ("edge", "1-2"),
        ("cloud", "3-4 + head"),
    ]
    assert all(row["size_bytes"] > 0 and Path(row["path"]).is_dir() for row in rows)


def test_a_cut_out_of_range_writes_nothing(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 < A < B < 5"):
        split.main([f"--model={model}", "--cut=1,9", f"--output={tmp_path / 'parts'}"])
    assert not (tmp_path / "parts").exists()


def test_a_place_that_cannot_be_written_is_one_clear_line(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        split.main([f"--model={model}", "--cut=1,3", f"--output={tmp_path / 'file'}"])
    with pytest.raises(RunFailedError, match="cannot write"):
        split.main([f"--model={model}", "--cut=1,3", f"--output={tmp_path / 'file' / 'parts'}"])
