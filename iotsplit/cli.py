"""The command ``iotsplit``: finds the command that the first word names, hands over, explains errors."""

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points

from iotsplit import __version__
from iotsplit.errors import RunFailedError, UsageError, UserError

Main = Callable[[list[str]], int]

INTERRUPTED = 130
DISK_IS_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
SUMMARIES = {
    "demo": "fine-tune SmolLM2 with four devices and two edges on this machine",
    "run": "start a whole fleet on this machine and train",
    "bench": "train with five schemes beside each other, and show what each takes",
    "cloud": "run the cloud of a fleet: rounds, head and adapter versions",
    "edge": "run an edge: the middle layers",
    "device": "run a device: the data and the first layers",
    "broker": "run a broker that is ready for fleets",
    "adapters": "list, show or roll back adapter versions of a live fleet",
    "export": "write a live fleet's adapter as a PEFT directory",
    "record": "write what is on a broker to a tape",
    "inspect": "look into a tape",
    "replay": "say a tape again, or hold one agent to it",
    "tape": "compare, cut, merge and convert tapes",
    "split": "cut a model into a part for each tier",
}
EXAMPLES = """\
iotsplit fine-tunes a language model cut in three: device, edge and cloud, over MQTT.

Examples:
  iotsplit demo
  iotsplit run --model smollm2 --data logs/ --devices 4 --edges 2 --rounds 3 --output out
  iotsplit device --broker mqtts://broker.plant7:8883 --id press-3 --data notes.jsonl
  iotsplit adapters list --broker mqtt://broker.plant7
  iotsplit record --rounds 2 run.tape && iotsplit replay run.tape --against edge

Usage: iotsplit COMMAND [OPTIONS]

Commands:
"""
FOOTER = """
iotsplit COMMAND --help shows the options of a command; iotsplit --version the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except SystemExit as end:
        return _exit_code(end)
    except UserError as error:
        _explain(error, as_json="--json" in words)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _hang_up()
    except Exception as error:  # noqa: BLE001  # the last place: nothing may end in a bare traceback
        return _report_bug(error, words)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in {"--help", "-h", "help"}:
        sys.stdout.write(_help())
        sys.stdout.flush()
        return 0
    if words[0] in {"--version", "-V"}:
        sys.stdout.write(f"iotsplit {__version__}\n")
        return 0
    return _load(words[0])(words[1:])


def _load(word: str) -> Main:
    commands = _commands()
    if word not in commands:
        close = get_close_matches(word, commands, n=1)
        raise UsageError(
            f"no command {word!r}",
            fix=f"did you mean iotsplit {close[0]}?" if close else "see iotsplit --help",
        )
    try:
        command: Main = commands[word].load()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("iotsplit"):
            raise
        raise UsageError(
            f"iotsplit {word} needs the package {error.name}, which is not installed",
            fix=f"pip install 'iotsplit[{word if word in EXTRAS else 'demo'}]'",
        ) from None
    return command


EXTRAS = frozenset({"device", "edge", "cloud", "demo"})


def _commands() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="iotsplit.commands")}


def _help() -> str:
    known = _commands()
    ordered = [*(name for name in SUMMARIES if name in known), *sorted(known.keys() - SUMMARIES)]
    lines = [f"  {name:<10}{SUMMARIES.get(name, known[name].value)}\n" for name in ordered]
    return EXAMPLES + "".join(lines) + FOOTER


def _explain(error: UserError, *, as_json: bool) -> None:
    if as_json:
        told = {"code": error.exit_code, "message": error.message, "fix": error.fix}
        line = json.dumps(told)
    else:
        line = f"iotsplit: error: {error}"
    sys.stderr.write(line + "\n")


def _report_bug(error: Exception, words: list[str]) -> int:
    if {"-v", "--verbose"}.intersection(words):
        traceback.print_exception(error)
    what = " ".join(f"{type(error).__name__}: {error}".split())
    is_full = isinstance(error, OSError) and error.errno in DISK_IS_FULL
    fix = "free space on that disk" if is_full else "run again with -v to see where it came from"
    _explain(RunFailedError(what, fix=fix), as_json="--json" in words)
    return RunFailedError.exit_code


def _exit_code(end: SystemExit) -> int:
    if isinstance(end.__context__, BrokenPipeError):  # rich ends so when a pipe is closed
        return _hang_up()
    return end.code if isinstance(end.code, int) else 1


def _hang_up() -> int:
    # The reader of stdout is gone; without this the interpreter complains once more when it flushes.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + 13
