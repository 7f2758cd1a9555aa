"""``iotsplit demo``: a run with the packaged model and data, and what it was good for."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from iotsplit.datasets.records import Pair, Record, read, write_jsonl
from iotsplit.errors import RunFailedError
from iotsplit.fleet import run as fleet
from iotsplit.fleet import summary
from iotsplit.fleet.completions import Request, write
from iotsplit.fleet.launcher import interruptible
from iotsplit.fleet.output import Output
from iotsplit.options import parse
from iotsplit.settings import TrainingSettings

# How long a demo takes is decided here.
ROUNDS = 3
LOCAL_STEPS = 12
COMPLETION_TOKENS = 32
COMPLETION_S = 300
ALONE = "pump"
NEXT = "next:  iotsplit run --help · iotsplit run --data python-reference · iotsplit cloud --help"
EXAMPLES = ("iotsplit demo", "iotsplit demo --rounds 5 --output demo --fresh", "iotsplit demo --labels device")
DEMO_TRAINING = TrainingSettings(
    rounds=ROUNDS,
    local_steps=LOCAL_STEPS,
    target_modules=("all-linear",),
    learning_rate=1e-3,
    evaluate="rounds",
)


@dataclass(frozen=True, kw_only=True)
class DemoOptions(fleet.RunOptions):
    """The demo.

    Trains together, shows what changed, and trains one device alone to compare.

    Args:
        skip_alone: Do not train one device alone for comparison.
    """

    devices: int | None = 4
    edges: int = 2
    skip_alone: bool = False
    training: TrainingSettings = field(default=DEMO_TRAINING)


def main(words: Sequence[str]) -> int:
    """Train together, show what changed, train one device alone, compare."""
    options = parse(DemoOptions, words, name="iotsplit demo", examples=EXAMPLES)
    console = fleet.console_for(options)
    try:
        with interruptible():
            result = demo(options, console)
    except KeyboardInterrupt:
        console.print(fleet.stopped(options))
        return fleet.INTERRUPTED
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0


def demo(options: DemoOptions, console: Console) -> dict[str, Any]:
    """Run the demo; gives the report with the comparison under ``demo``."""
    report = fleet.run(options, console, title="iotsplit demo")
    summary.show(report, options.output, console)
    prompts = [pair.lead for pair in _held_out(Output(options.output))[:1]]
    result: dict[str, Any] = {"completions": _completions(options, prompts, console)}
    if not options.skip_alone:
        result |= _alone(options, report, console)
    console.print(NEXT, markup=False, highlight=False, soft_wrap=True)
    return {**report, "demo": result}


def _held_out(output: Output) -> list[Pair]:
    records = [record for device in output.devices() for record in read(output.data / f"{device}.jsonl")]
    return [record for record in records if isinstance(record, Pair) and record.split == "eval"]


def _completions(options: DemoOptions, prompts: Sequence[str], console: Console) -> list[dict[str, str]]:
    if not prompts:
        return []
    request = Request(
        model=options.model,
        adapter=str(options.output / "adapter"),
        prompts=list(prompts),
        max_new_tokens=COMPLETION_TOKENS,
    )
    try:
        with console.status("writing with the new adapter"):
            found = write(request, patience_s=COMPLETION_S)
    except RunFailedError as error:
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return []
    for each in found:
        lines = [f"  {when:<8}{' '.join(each[when].split())}" for when in ("before", "after")]
        for line in (each["prompt"].strip(), *lines):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    return found


def _alone(options: DemoOptions, together: Mapping[str, Any], console: Console) -> dict[str, Any]:
    """Train one device with its own data only, as many steps, and score it on everybody's held-out data."""
    output = Output(options.output)
    device = ALONE if ALONE in output.devices() else output.devices()[0]
    data = options.output / "alone-data"
    data.mkdir(exist_ok=True)
    write_jsonl(data / f"{device}.jsonl", alone_records(output, device))
    console.print(f"\nfor comparison {device} alone, with as many steps:")
    lonely = dataclasses.replace(
        options,
        devices=1,
        edges=1,
        devices_per_edge=None,
        data=str(data / f"{device}.jsonl"),
        columns=(),  # it is a file of ours
        output=options.output / "alone",
        training=dataclasses.replace(options.training, evaluate="ends"),
    )
    report = fleet.run(lonely, console, title=f"{device} alone")
    scores = {"alone": report["eval"]["after"], "together": together["eval"]["after"]}
    names = {"alone": f"alone (device {device})", "together": "together"}
    shown = "      ".join(
        f"{names[each]}: {summary.exact(score)}, loss {score['loss']:.3f}" for each, score in scores.items()
    )
    console.print(shown, markup=False, highlight=False, soft_wrap=True)
    return {"device": device, **scores}


def alone_records(output: Output, device: str) -> list[Record]:
    """One device's training data, and the held-out data of all."""
    own = [record for record in read(output.data / f"{device}.jsonl") if record.split != "eval"]
    return [*own, *_held_out(output)]
