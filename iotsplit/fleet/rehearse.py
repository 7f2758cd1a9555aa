"""``iotsplit replay --against``: whether an agent still says what it said on a tape."""

import dataclasses
import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from iotsplit.errors import DiffersError, RunFailedError, UsageError
from iotsplit.options import CommonOptions
from iotsplit.plan import Tier
from iotsplit.runtime.files import writing
from iotsplit.tape import files
from iotsplit.tape.casting import Actor, Cast, find_cast
from iotsplit.tape.comparison import Difference
from iotsplit.tape.facts import Facts, Reading, Start
from iotsplit.tape.files import PIPE, Tell
from iotsplit.tape.rehearsal import Rehearsal, play


@dataclass(frozen=True, kw_only=True)
class AgainstOptions(CommonOptions):
    """One agent instead of a broker.

    Args:
        tape: File of the tape, or - for a pipe.
        against: Run this agent from the tape instead: device, edge or cloud.
        agent: Its id, if there are several of its tier.
        model: Its model: packaged name, directory, .gguf file or hub id.
        part: Its part of the model, made by iotsplit split; instead of the model.
        data: Data of the device: file, folder or built-in set. They are never on a tape.
        columns: Columns or keys of the data, as the device had them.
        eval_limit: Most held-out sequences, as the device had it.
        kept: Copy of the cloud's output directory, as it was when the tape began.
        tolerance: Largest difference in a tensor, as a share of its largest value; 0 for the same bytes.
        report: File for the result as JSON.
    """

    tape: Path
    against: Tier | None = None
    agent: str | None = None
    model: str = "smollm2"
    part: Path | None = None
    data: str = ""
    columns: tuple[str, ...] = ()
    eval_limit: int | None = None
    kept: Path | None = None
    tolerance: float = 0.0
    report: Path | None = None


class Outcome(msgspec.Struct, kw_only=True):
    """What a replay against an agent found.

    Args:
        compared: statements that both sides have.
        largest: largest difference in a tensor, as a share of its largest value.
        skipped: sessions that had begun before the tape.
    """

    agent: str
    tier: Tier
    same: bool
    incarnations: int
    inputs: int
    compared: int
    compared_bytes: int
    tolerance: float
    largest: float
    skipped: list[str]
    difference: Difference | None = None


def rehearse(options: AgainstOptions, tier: Tier) -> int:
    """Run one agent of a tape against it, and tell of it.

    Raises:
        UsageError: tape, model or data cannot be used.
        MismatchError: another model, or a tape of another format.
        DiffersError: the agent says something else.
    """
    outcome = hold(options, tier, tell=_warn)
    _tell(options, outcome)
    if outcome.difference is not None:
        raise DiffersError(
            f"{outcome.agent} says something else than {options.tape}: {outcome.difference}",
            fix="see docs/replay.md for what may cause it",
        )
    if not outcome.compared:
        raise RunFailedError(
            f"{outcome.agent} says nothing on {options.tape} that can be compared",
            fix="record from before its first session",
        )
    return 0


def hold(options: AgainstOptions, tier: Tier, *, tell: Tell) -> Outcome:
    """Run one agent of a tape with nobody else there, and compare what it says.

    Raises:
        UsageError: tape, model or data cannot be used.
        MismatchError: another model, or a tape of another format.
    """
    _check(options, tier)
    cast = find_cast(tier)
    header = files.header(options.tape)
    if header.redacted:
        raise UsageError(
            f"the tensors in {options.tape} were replaced by zeros", fix="record without --redact-tensors"
        )
    reading = Reading(header, tier=tier, agent=options.agent)
    facts = reading.read(files.records(options.tape, tell=tell))
    if tier is Tier.CLOUD:
        _begin(options, facts)
    with tempfile.TemporaryDirectory(prefix="iotsplit-replay-") as disk:
        rehearsal = Rehearsal(
            facts,
            lambda start: _enter(cast, options, facts, start, Path(disk)),
            tolerance=options.tolerance,
        )
        play(rehearsal, files.records(options.tape))
    return _outcome(rehearsal, facts, tolerance=options.tolerance)


def _begin(options: AgainstOptions, facts: Facts) -> None:
    """See that the cloud can begin where it began.

    Raises:
        UsageError: what it knew by then is not there: its optimizer's state is never on the bus.
    """
    if options.kept is not None and next(iter(facts.starts.values())).is_retained:
        raise UsageError(
            f"{options.tape} begins when {facts.agent} was at work, later than what it kept",
            fix="begin to record before it is started on that output directory",
        )
    if options.kept is not None:
        facts.partial.clear()  # it knows how they began
    elif facts.before:
        raise UsageError(
            f"before {options.tape} began, {facts.agent} {facts.before}, and its optimizer is not on the bus",
            fix="record from its first start; or end it, copy its --output, record, start it again, "
            "and name the copy with --kept",
        )


def _check(options: AgainstOptions, tier: Tier) -> None:
    if str(options.tape) == PIPE:
        raise UsageError("a tape is read twice to be replayed against an agent", fix="record into a file")
    if not 0 <= options.tolerance < math.inf:
        raise UsageError(
            f"tolerance {options.tolerance} is not one", fix="use 0 or a small number such as 1e-6"
        )
    if tier is Tier.DEVICE and not options.data:
        raise UsageError("a device's data are not on the tape", fix="name them with --data")
    if options.kept is not None and tier is not Tier.CLOUD:
        raise UsageError(f"--kept is of a cloud, not of the {tier}", fix="leave it out")
    if options.kept is not None and not (options.kept / "state" / "cloud").is_dir():
        raise UsageError(f"{options.kept} is no copy of a cloud's output directory", fix="it holds state/cloud")
    if options.report is not None and options.report.exists():
        raise UsageError(f"{options.report} exists already", fix="choose another name, or remove it")


def _enter(cast: Cast, options: AgainstOptions, facts: Facts, start: Start, disk: Path) -> Actor:
    props = facts.props(start, model=str(options.part or options.model), disk=disk)
    return cast(
        dataclasses.replace(
            props,
            data=options.data,
            columns=options.columns,
            eval_limit=options.eval_limit,
            kept=options.kept,
        )
    )


def _outcome(rehearsal: Rehearsal, facts: Facts, *, tolerance: float) -> Outcome:
    comparison = rehearsal.comparison
    return Outcome(
        agent=facts.agent,
        tier=facts.tier,
        same=comparison.difference is None,
        incarnations=len(facts.starts),
        inputs=rehearsal.inputs,
        compared=comparison.compared,
        compared_bytes=comparison.compared_bytes,
        tolerance=tolerance,
        largest=comparison.largest,
        skipped=sorted(facts.partial),
        difference=comparison.difference,
    )


def _warn(line: str) -> None:
    sys.stderr.write(f"iotsplit replay: {line}\n")


def _tell(options: AgainstOptions, outcome: Outcome) -> None:
    found = json.dumps(msgspec.to_builtins(outcome))
    if options.report is not None:
        with writing(options.report, fix="free space there or choose another --report"):
            options.report.write_text(found + "\n", encoding="utf-8")
    if options.json:
        sys.stdout.write(found + "\n")
        return
    for session in outcome.skipped:
        _warn(f"session {session} had begun before the tape and was passed over")
    if outcome.same:
        size = f"{outcome.compared_bytes / 1e6:.2f} MB"
        near = f", tensors within {outcome.largest:.2g} of their largest value" if outcome.largest else ""
        sys.stdout.write(
            f"{outcome.tier} {outcome.agent} says the same: {outcome.compared} messages, {size}, "
            f"from {outcome.inputs} inputs{near}\n"
        )
