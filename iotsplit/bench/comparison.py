"""A comparison from its first cell to its page."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from iotsplit import __version__
from iotsplit.bench import dealing, plots, running, tables, texts
from iotsplit.bench.cells import Case, Cell
from iotsplit.bench.choices import BenchOptions
from iotsplit.bench.estimate import Model, needed
from iotsplit.bench.outcomes import Outcome
from iotsplit.bench.page import Section, page
from iotsplit.bench.running import Job
from iotsplit.bench.schemes import Scheme, place
from iotsplit.datasets import partition
from iotsplit.errors import UsageError, UserError
from iotsplit.runtime import files

MB, GB = 1e6, 1e9
MOST_NEW_TOKENS = 48


@dataclass(frozen=True, kw_only=True)
class Grounds:
    """What is the same for all cells.

    Args:
        path: directory of the model.
        model: that is trained.
        imports: bytes of an agent before it has a model, by tier.
    """

    path: Path
    model: Model
    imports: Mapping[str, int]


def run(options: BenchOptions, console: Console) -> list[Outcome]:
    """Run the cells that are missing, one after the other, and show what all came to.

    A cell that fails is told of, and the others go on.

    Raises:
        UserError: model or data cannot be used, or the disk is full.
    """
    cells, outcomes = options.cells, list[Outcome]()
    console.print(
        f"iotsplit bench · {options.model} · {options.data} · {len(cells)} cells · {options.output}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    with console.status("preparing the model"):
        grounds = _grounds(options)
    for number, cell in enumerate(cells, start=1):
        found = running.earlier(cell.directory(options.output))
        if found is None or found.state != "done":
            with console.status(f"{number}/{len(cells)} {cell.name}"):
                found = _outcome(cell, options, grounds)
            running.keep(cell.directory(options.output), found)
        outcomes.append(found)
        console.print(f"{number}/{len(cells)} {_line(found)}", markup=False, highlight=False, soft_wrap=True)
        if number == len(cells) or cells[number].case != cell.case:
            _write_page(options, grounds, outcomes)
    _show(options, outcomes, console)
    return outcomes


def _grounds(options: BenchOptions) -> Grounds:
    from iotsplit.runtime.serve import cache_directory  # noqa: PLC0415 - keeps --help quick
    from iotsplit.tensors import adapters  # noqa: PLC0415 - needs torch
    from iotsplit.tensors.models import describe, resolve  # noqa: PLC0415 - needs torch

    partition.load(options.data, devices=1, partition="iid", columns=options.columns)  # that it can be read
    path = resolve(options.model, cache_directory()).absolute()
    info = describe(path)
    shapes = adapters.shapes(path, options.training)
    model = Model(
        layers=info.layers,
        width=info.hidden_size,
        vocabulary=info.vocabulary,
        parameters=info.parameters,
        trainable=sum(rows * columns for rows, columns in shapes.values()),
    )
    for scheme in map(Scheme, options.schemes):  # what cannot be cut shows before the first cell
        needed(place(scheme, options.training, layers=model.layers, devices=1, edges=1), model, {})
    return Grounds(path=path, model=model, imports=running.weigh_imports())


def _outcome(cell: Cell, options: BenchOptions, grounds: Grounds) -> Outcome:
    training = replace(options.training, seed=cell.case.seed)
    placement = place(
        cell.scheme,
        training,
        layers=grounds.model.layers,
        devices=cell.case.devices,
        edges=min(options.edges, cell.case.devices),
    )
    expected = needed(placement, grounds.model, grounds.imports)
    outcome = Outcome(scheme=cell.scheme, case=cell.case, state="left out", needed=expected)
    total, free = sum(expected.values()), psutil.virtual_memory().available
    if total > free and not options.ignore_memory:
        outcome.reason = (
            f"needs about {total / GB:.1f} GB, {free / GB:.1f} are free; "
            "use fewer --devices, or try all the same with --ignore-memory"
        )
        return outcome
    try:
        dealt = _dealt(cell.case, options)
    except UsageError as error:  # too little for so many devices, for example: other cases have fewer
        outcome.state, outcome.reason = "failed", str(error)
        return outcome
    apart, together = dealing.write(options.output / "data" / cell.case.name, dealt.shares)
    words = [f"--threads={options.threads}"]
    words += ["--gradient-checkpointing"] if options.gradient_checkpointing else []
    words += ["--return-memory"] if options.return_memory else []
    job = Job(
        cell=cell,
        placement=placement,
        directory=cell.directory(options.output),
        model=grounds.path,
        data=together if placement.pooled else apart,
        words=tuple(words),
        imports=grounds.imports,
        table=grounds.model.vocabulary * grounds.model.width,
    )
    outcome = running.run(job)
    outcome.needed = expected
    if outcome.state == "done":
        _let_write(outcome, job, dealt, options.prompts)
    return outcome


def _dealt(case: Case, options: BenchOptions) -> dealing.Dealt:
    return dealing.deal(
        options.data,
        case,
        columns=options.columns,
        sequence_length=options.training.sequence_length,
        held_out=options.held_out,
    )


def _let_write(outcome: Outcome, job: Job, dealt: dealing.Dealt, prompts: int) -> None:
    """Let the model answer held-out prompts; that it cannot does not spoil the rest."""
    try:
        pairs = dealing.asked(dealt.shares, prompts)
        outcome.texts = texts.write(str(job.model), job.directory / "run" / "adapter", pairs, MOST_NEW_TOKENS)
        outcome.bleu = texts.bleu(outcome.texts, dealt.answers)
    except UserError as error:
        outcome.reason = f"trained, but {error}"


def _line(outcome: Outcome) -> str:
    if outcome.figures is None:
        return f"{outcome.cell.name}: {outcome.state}: {outcome.reason}"
    loss, memory = outcome.figures.after.get("loss", float("nan")), sum(outcome.figures.peaks.values())
    told = f"held-out loss {loss:.3f}, {memory / MB:.0f} MB in all, {outcome.wall_s:.0f} s"
    return f"{outcome.cell.name}: {told}" + (f" ({outcome.reason})" if outcome.reason else "")


def _write_page(options: BenchOptions, grounds: Grounds, outcomes: Sequence[Outcome]) -> None:
    """Page, pictures and table of what there is so far."""
    output, sections = options.output, []
    for setting, schemes in tables.by_setting(outcomes).items():
        pictures = {}
        if any(each.figures for found in schemes.values() for each in found):
            pictures = {"loss": plots.losses(schemes), "memory": plots.memory(schemes)}
        for name, image in pictures.items():
            files.replace(output / f"{name}-{setting.name}.png", image)
        sections.append(Section(title=str(setting), schemes=schemes, pictures=pictures))
    text = page("iotsplit bench", _facts(options, grounds), sections)
    files.replace(output / "bench.html", text.encode())
    files.replace(output / "results.csv", tables.to_csv(outcomes).encode())


def _facts(options: BenchOptions, grounds: Grounds) -> dict[str, str]:
    training, model = options.training, grounds.model
    steps = f"{training.rounds} rounds of {training.local_steps} steps"
    batch = f"batches of {training.batch_size} x {training.sequence_length} tokens at most"
    return {
        "model": f"{options.model}, {model.parameters / 1e6:.0f} M parameters, {model.layers} layers",
        "data": options.data,
        "training": f"{steps}, {batch}, {training.optimizer} at {training.learning_rate:g}",
        "adapter": f"LoRA r={training.rank} on {', '.join(training.target_modules)}, {training.aggregation}",
        "cut": f"before layers {training.cut[0]} and {training.cut[1]}; two tiers before {training.cut[0]}",
        "codec": training.codec,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, "
        f"{options.threads} threads an agent, iotsplit {__version__}",
    }


def _show(options: BenchOptions, outcomes: Sequence[Outcome], console: Console) -> None:
    for setting, schemes in tables.by_setting(outcomes).items():
        console.print(_table(setting, schemes))
        for line in tables.headlines(schemes):
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    names = ("bench.html", "results.csv")
    line = "   ".join(str(options.output / each) for each in names)
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(setting: Case, schemes: Mapping[Scheme, Sequence[Outcome]]) -> Table:
    table = Table(title=str(setting), title_justify="left", box=None, pad_edge=False, header_style="bold")
    heads, *rows = tables.table_of(schemes)
    for place_, heading in enumerate(heads):
        table.add_column(heading, justify="right" if place_ else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace(" (", "\n(") for cell in row))  # a range has a line of its own
    return table
