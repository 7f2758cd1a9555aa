"""``iotsplit bench``: which scheme is best for this model, these data and this machine."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from iotsplit.bench import comparison, plots, running
from iotsplit.bench.choices import BenchOptions, PaperOptions
from iotsplit.errors import RunFailedError, UsageError
from iotsplit.fleet.launcher import interruptible
from iotsplit.fleet.output import Output
from iotsplit.fleet.run import INTERRUPTED, console_for
from iotsplit.options import parse
from iotsplit.runtime import files

PLAN = "bench.json"
EXAMPLES = (
    "iotsplit bench --quick",
    "iotsplit bench --data logs/ --partitions files,iid --schemes splitllm,fl --seeds 0,1,2 --output bench",
    "iotsplit bench --paper --output paper         # hours; the same again goes on, and so does --resume",
)


def main(words: Sequence[str]) -> int:
    """Run what is missing of a comparison, and show it."""
    spec = PaperOptions if "--paper" in words else BenchOptions
    options: BenchOptions = parse(spec, words, name="iotsplit bench", examples=EXAMPLES)
    console = console_for(options)
    output = options.output
    plots.check()
    if options.resume and not (output / PLAN).exists():
        raise UsageError(f"{output} holds no comparison to go on with", fix="leave out --resume")
    try:
        with interruptible(), Output(output).claimed():
            options = _plan(options)
            outcomes = comparison.run(options, console)
    except KeyboardInterrupt:
        console.print(f"stopped; iotsplit bench --resume --output {output} goes on with the next cell")
        return INTERRUPTED
    if options.json:
        sys.stdout.write(json.dumps([msgspec.to_builtins(each) for each in outcomes]) + "\n")
    return 0 if all(each.state == "done" for each in outcomes) else RunFailedError.exit_code


def _plan(options: BenchOptions) -> BenchOptions:
    """Write down what is compared, or find it: one directory holds one comparison.

    Raises:
        UsageError: it holds another one.
    """
    plan, output = options.output / PLAN, options.output
    earlier = None if options.fresh else _plan_in(plan)
    if options.resume and earlier is not None:
        return replace(earlier, output=output, json=options.json, verbose=options.verbose)
    mine = replace(options, resume=False, fresh=False, json=False, verbose=False, quick=False, paper=False)
    mine = replace(mine, config=None, output=Path())
    encoded = msgspec.json.encode(mine, enc_hook=str)
    if earlier is not None and msgspec.json.encode(earlier, enc_hook=str) != encoded:
        raise UsageError(
            f"{output} holds another comparison",
            fix="go on with it by --resume, start over by --fresh, or choose another --output",
        )
    if options.fresh:
        for cell in (output / "cells").glob("*/" + running.RESULT):
            cell.unlink()
    files.replace(plan, msgspec.json.format(encoded, indent=1))
    return options


def _plan_in(plan: Path) -> BenchOptions | None:
    try:
        return msgspec.json.decode(plan.read_bytes(), type=BenchOptions, dec_hook=lambda kind, text: kind(text))
    except FileNotFoundError:
        return None
    except msgspec.DecodeError:
        raise UsageError(
            f"{plan} cannot be read", fix="start over by --fresh, or choose another --output"
        ) from None
