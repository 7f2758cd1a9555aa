"""Results side by side: rows for people, for a CSV file and for a page. Pure."""

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from iotsplit.bench.cells import Case
from iotsplit.bench.figures import Figures, spread
from iotsplit.bench.outcomes import Outcome
from iotsplit.bench.schemes import TITLES, Scheme

MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Column:
    """A figure of a scheme.

    Args:
        title: at its head.
        of: takes it out of a cell's figures; none if there is none.
        form: how it is written.
    """

    title: str
    of: Callable[[Figures], float | None]
    form: str = ".0f"


def _exact(figures: Figures) -> float | None:
    return figures.after.get("exact_match")


COLUMNS = (
    Column(title="device MB", of=lambda f: f.tiers["device"].total / MB or None),
    Column(title="servers MB", of=lambda f: f.peaks["servers"] / MB),
    Column(title="all MB", of=lambda f: (f.peaks["servers"] + f.peaks["devices"]) / MB),
    Column(title="moved MB", of=lambda f: f.network_bytes / MB, form=".1f"),
    Column(title="s per round", of=lambda f: f.round_s, form=".1f"),
    Column(title="loss", of=lambda f: f.after.get("loss"), form=".3f"),
    Column(title="ppl", of=lambda f: f.after.get("perplexity"), form=".2f"),
    Column(title="exact", of=_exact, form=".0%"),
)
"""Of the table that everybody sees first. MB are of 10^6 bytes, peaks at once of all processes of a kind."""


ENOUGH_TEXTS = 8
"""So many texts are scored by BLEU: of fewer it tells nothing."""


def by_setting(outcomes: Sequence[Outcome]) -> dict[Case, dict[Scheme, list[Outcome]]]:
    """Results of all seeds together, setting by setting."""
    found: dict[Case, dict[Scheme, list[Outcome]]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.case.setting, {}).setdefault(outcome.scheme, []).append(outcome)
    return found


def table_of(schemes: Mapping[Scheme, Sequence[Outcome]]) -> list[list[str]]:
    """Heads, then a row for each scheme of a setting: its name, then medians with least and most over seeds."""
    every = [each for outcomes in schemes.values() for each in outcomes]
    scored = any(each.bleu is not None and len(each.texts) >= ENOUGH_TEXTS for each in every)
    heads = ["scheme", *(column.title for column in COLUMNS), *(["BLEU"] if scored else [])]
    rows = [heads]
    for scheme, outcomes in schemes.items():
        done = [each.figures for each in outcomes if each.figures is not None]
        if not done:
            rows.append([TITLES[scheme], outcomes[0].state, *[""] * (len(heads) - 2)])
            continue
        row = [TITLES[scheme], *(_cell(map(column.of, done), column.form) for column in COLUMNS)]
        rows.append([*row, _cell((each.bleu for each in outcomes), ".1f")] if scored else row)
    return rows


def _cell(found: Iterable[float | None], form: str) -> str:
    values = [value for value in found if value is not None]
    return spread(values, form) if values else "-"


def to_csv(outcomes: Sequence[Outcome]) -> str:
    """A line for each cell, with every figure."""
    out = io.StringIO(newline="")
    tiers = ("device", "edge", "cloud")
    parts = ("imports", "weights", "optimizer", "activations")
    heads = ["partition", "samples", "devices", "mbits", "seed", "scheme", "state", "reason", "wall_s"]
    heads += [f"{tier}_{part}_bytes" for tier in tiers for part in (*parts, "peak", "expected")]
    heads += ["devices_peak_bytes", "servers_peak_bytes", "network_bytes"]
    heads += [
        f"{hop}_{way}_bytes" for hop in ("device_edge", "edge_cloud", "adapters") for way in ("up", "down")
    ]
    heads += ["round_s", "tokens", "tokens_per_second", "loss_before", "loss_after", "perplexity_after"]
    heads += ["exact_match_after", "bleu"]
    writer = csv.DictWriter(out, heads, restval="")
    writer.writeheader()
    for outcome in outcomes:
        row: dict[str, object] = {
            "partition": outcome.case.partition,
            "samples": outcome.case.samples or "all",
            "devices": outcome.case.devices,
            "mbits": outcome.case.mbits or "",
            "seed": outcome.case.seed,
            "scheme": outcome.scheme,
            "state": outcome.state,
            "reason": outcome.reason,
            "wall_s": round(outcome.wall_s, 3),
            "bleu": "" if outcome.bleu is None else outcome.bleu,
        }
        row |= {f"{tier}_expected_bytes": value for tier, value in outcome.needed.items()}
        if outcome.figures is not None:
            row |= _figures_row(outcome.figures)
        writer.writerow(row)
    return out.getvalue()


def _figures_row(figures: Figures) -> dict[str, object]:
    row: dict[str, object] = {}
    for tier, memory in figures.tiers.items():
        for part in ("imports", "weights", "optimizer", "activations"):
            row[f"{tier}_{part}_bytes"] = getattr(memory, part)
        row[f"{tier}_peak_bytes"] = memory.total
    for hop, ways in figures.bytes.items():
        row |= {f"{hop}_{way}_bytes": count for way, count in ways.items()}
    return row | {
        "devices_peak_bytes": figures.peaks["devices"],
        "servers_peak_bytes": figures.peaks["servers"],
        "network_bytes": figures.network_bytes,
        "round_s": figures.round_s,
        "tokens": figures.tokens,
        "tokens_per_second": figures.tokens_per_second,
        "loss_before": figures.before.get("loss", ""),
        "loss_after": figures.after.get("loss", ""),
        "perplexity_after": figures.after.get("perplexity", ""),
        "exact_match_after": figures.after.get("exact_match", ""),
    }


def headlines(schemes: Mapping[Scheme, Sequence[Outcome]]) -> list[str]:
    """What the comparison comes to, in sentences: SplitLLM beside the worst of the others, and beside FL."""
    figures = {
        scheme: [each.figures for each in outcomes if each.figures is not None]
        for scheme, outcomes in schemes.items()
    }
    ours = figures.get(Scheme.SPLITLLM, [])
    others = {scheme: found for scheme, found in figures.items() if scheme in BASELINES and found}
    if not ours or not others:
        return []
    said = []
    for column in COLUMNS[:2]:
        worst = max(others, key=lambda scheme: _middle(column, others[scheme]))
        least, most = _middle(column, ours), _middle(column, others[worst])
        change = (1 - least / most) * 100
        under = f"{abs(change):.0f} % {'under' if change >= 0 else 'over'}"
        said.append(f"peak of {column.title.split()[0]}: {least:.0f} MB, {under} {TITLES[worst]} ({most:.0f})")
    if figures.get(Scheme.FL):
        loss = next(column for column in COLUMNS if column.title == "loss")
        both = _middle(loss, ours), _middle(loss, figures[Scheme.FL])
        said.append(f"held-out loss at equal tokens: {both[0]:.3f}, FL {both[1]:.3f}")
    return said


BASELINES = (Scheme.FL, Scheme.SL, Scheme.SFL)
"""What the paper compares with."""


def _middle(column: Column, done: Sequence[Figures]) -> float:
    values = [value for value in map(column.of, done) if value is not None]
    return statistics.median(values) if values else float("nan")
