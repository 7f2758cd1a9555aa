"""The first word, and how errors end."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from iotsplit import cli
from iotsplit.errors import MismatchError

Put = Callable[[object], None]
Capture = pytest.CaptureFixture[str]


class Point:
    """An entry point that leads to a function of the test."""

    def __init__(self, command: object) -> None:
        self.command, self.value, self.name = command, "somewhere", "trial"

    def load(self) -> object:
        if isinstance(self.command, Exception):
            raise self.command
        return self.command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Put:
    def put(function: object) -> None:
        monkeypatch.setattr(cli, "_commands", lambda: {"trial": Point(function)})

    return put


def raising(error: BaseException) -> Callable[[list[str]], int]:
    def run(words: list[str]) -> int:
        raise error

    return run


def test_the_other_words_go_to_the_command(command: Put) -> None:
    command(lambda words: 7 if words == ["a", "--help"] else 0)
    assert cli.main(["trial", "a", "--help"]) == 7


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_shows_examples_before_commands(words: list[str], capsys: Capture) -> None:
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert 0 < shown.index("Examples:") < shown.index("Commands:") < shown.index("  run ")


def test_every_command_has_a_summary() -> None:
    assert set(cli._commands()) == set(cli.SUMMARIES)


def test_a_typo_is_answered_with_the_command_meant(capsys: Capture) -> None:
    assert cli.main(["devise"]) == 2
    assert "did you mean iotsplit device?" in capsys.readouterr().err


def test_a_user_error_is_one_line_with_its_exit_code(command: Put, capsys: Capture) -> None:
    command(raising(MismatchError("cut differs", fix="use 4,15")))
    assert cli.main(["trial"]) == 6
    assert capsys.readouterr().err == "iotsplit: error: cut differs; use 4,15\n"


def test_with_json_an_error_is_an_object(command: Put, capsys: Capture) -> None:
    command(raising(MismatchError("cut differs", fix="use 4,15")))
    cli.main(["trial", "--json"])
    told = capsys.readouterr()
    assert json.loads(told.err) == {"code": 6, "message": "cut differs", "fix": "use 4,15"}
    assert told.out == ""


def test_an_unexpected_error_is_one_line_unless_asked(command: Put, capsys: Capture) -> None:
    command(raising(ValueError("a\nb")))
    assert cli.main(["trial"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(["trial", "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_ends_with_130(command: Put) -> None:
    command(raising(KeyboardInterrupt()))
    assert cli.main(["trial"]) == 130


def test_an_exit_keeps_its_code(command: Put) -> None:
    command(raising(SystemExit(0)))
    assert cli.main(["trial"]) == 0


def test_a_full_disk_is_no_bug_of_ours(command: Put, capsys: Capture) -> None:
    command(raising(OSError(errno.ENOSPC, "No space left on device")))
    assert cli.main(["trial"]) == 1
    assert "No space left on device; free space on that disk" in capsys.readouterr().err


def test_a_package_that_is_not_installed_is_named_with_its_extra(command: Put, capsys: Capture) -> None:
    command(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert cli.main(["trial"]) == 2
    assert "pip install 'iotsplit[demo]'" in capsys.readouterr().err


@pytest.mark.slow
def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from iotsplit.cli import main; main(['--help']);"
        "sys.exit(str({'torch', 'numpy', 'cyclopts', 'rich', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


@pytest.mark.slow
def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "iotsplit", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("iotsplit ")


@pytest.mark.slow
@pytest.mark.parametrize("words", ["--help", "run --help", "adapters --help"])
def test_a_reader_that_goes_away_is_no_error(words: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-m", "iotsplit", *words.split()]
    done = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
