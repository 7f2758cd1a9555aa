"""What a run came to, as a table for people, from its report."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from iotsplit.plan import Labels

TIERS = ("device", "edge", "cloud", "broker")
LEAVES = {
    Labels.CLOUD: "what leaves a device: activations, and the token ids of its training text reach the cloud",
    Labels.DEVICE: "what leaves a device: activations, gradients and the loss as a number, not its text",
}
"""What a run says first, by where the labels are."""
LEAVES_WHOLE_DEVICE = "what leaves a device: LoRA parameters and the loss as a number"
"""The same where each device trains the whole model."""


def show(report: Mapping[str, Any], output: Path, console: Console) -> None:
    """Print scores per device, bytes per hop, memory per tier, and where the results are."""
    for table in (scores_table(report), bytes_table(report), tiers_table(report)):
        if table.row_count:
            console.print(table)
    ledger = report.get("ledger", {})
    if ledger:
        counts = ", ".join(f"{value} {key}" for key, value in ledger.items())
        console.print(f"steps: {counts}", highlight=False)
    if turned := when_it_turned(report):
        console.print(turned, highlight=False)
    found = [(name, output / file) for name, file in RESULTS if (output / file).exists()]
    line = "   ".join(f"{name}: {path}" for name, path in found)
    console.print(line, markup=False, highlight=False, soft_wrap=True)


RESULTS = (("adapter", "adapter"), ("best", "adapter-best"), ("report", "report.json"), ("plot", "loss.png"))


def when_it_turned(report: Mapping[str, Any]) -> str:
    """A line about held-out loss that was less in an earlier round than at the end; empty if it was not."""
    scores, rounds = report.get("eval", {}), report.get("rounds", [])
    best, after = scores.get("best"), scores.get("after")
    if not (best and after and rounds) or best["adapter_version"] == rounds[-1]["adapter_version"]:
        return ""
    when = f"after round {best['round']}" if best["round"] else "before training"
    return (
        f"held-out loss was least {when}: {best['loss']:.3f}, and {after['loss']:.3f} at the end; "
        f"adapter-best is from then"
    )


def scores_table(report: Mapping[str, Any]) -> Table:
    """Loss, perplexity and exact matches before and after training, per device."""
    table = _table("held out on", "loss", "perplexity", "exact")
    scores = report.get("eval", {})
    rows = [*sorted(scores.get("devices", {}).items()), ("all", scores)]
    for name, row in rows:
        before, after = row.get("before"), row.get("after")
        if before and after:
            table.add_row(
                name,
                f"{before['loss']:.3f} -> {after['loss']:.3f}",
                f"{_perplexity(before)} -> {_perplexity(after)}",
                f"{exact(before)} -> {exact(after)}" if "exact" in before else "-",
            )
    return table


def bytes_table(report: Mapping[str, Any]) -> Table:
    """Bytes of all rounds per hop."""
    table = _table("hop", "MB up", "MB down")
    for hop in ("device_edge", "edge_cloud", "adapters"):
        rows = [each["bytes"][hop] for each in report.get("rounds", []) if hop in each.get("bytes", {})]
        if rows:
            up, down = (sum(each[way] for each in rows) / 1e6 for way in ("up", "down"))
            table.add_row(hop.replace("_", " - "), f"{up:.1f}", f"{down:.1f}")
    return table


def tiers_table(report: Mapping[str, Any]) -> Table:
    """Peak memory and parameters of the largest agent of each tier."""
    table = _table("tier", "agents", "peak MB", "parameters", "trained")
    for tier, agents in _by_tier(report):
        cells = [max(each.get(key) or 0 for each in agents) for key in COLUMNS]
        table.add_row(
            tier,
            str(len(agents)),
            f"{cells[0] / 1e6:.0f}" if cells[0] else "-",  # it was over before anybody said
            *(f"{each:,}" if each else "-" for each in cells[1:]),
        )
    return table


COLUMNS = ("peak_rss_bytes", "part_parameters", "trainable_parameters")


def exact(score: Mapping[str, Any]) -> str:
    """Exact matches as a fraction of what was scored."""
    return f"{score.get('exact', 0)}/{score.get('sequences', 0)}"


def _by_tier(report: Mapping[str, Any]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    for tier in TIERS:
        agents = [each for each in report.get("agents", []) if each.get("role") == tier]
        if agents:
            yield tier, agents


def _perplexity(score: Mapping[str, Any]) -> str:
    value = score.get("perplexity", math.inf)
    return f"{value:.2f}" if value < 1e5 else f"{value:.1e}"  # noqa: PLR2004 - where digits stop helping


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left", no_wrap=True)
    return table
