"""The example configurations are those that the commands of their README make today."""

import shlex
from pathlib import Path

import pytest

from iotsplit_broker.command import main

EXAMPLES = Path(__file__).parents[1] / "broker" / "examples"
README = EXAMPLES / "README.md"
COMMANDS = [
    line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("iotsplit broker")
]


def files(place: Path) -> dict[str, str]:
    found = (path for path in place.rglob("*") if path.is_file() and path.name != "README.md")
    return {str(path.relative_to(place)): path.read_text(encoding="utf-8") for path in found}


def test_the_examples_are_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IOTSPLIT_PASSWORD", "change-me")
    for line in COMMANDS:
        main(shlex.split(line)[2:])
    made = files(tmp_path)
    assert len(made) == 17
    assert made == files(EXAMPLES), "run the commands of broker/examples/README.md there, with --force"
