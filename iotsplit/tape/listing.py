"""A tape's summary as text for people. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MOST_ROWS = 40
"""Agents and sessions that are listed; --json has them all."""


def lines(rows: Mapping[str, Any]) -> Iterator[str]:
    """What `Summary.rows` gives, line by line."""
    size = rows["payload_bytes"]
    yield f"{rows['records']} messages, {_bytes(size)} in {rows['seconds']:.1f} s"
    yield from _table(
        ("topics", "messages", "bytes"),
        [(name or "others", each["records"], _bytes(each["bytes"])) for name, each in rows["classes"].items()],
    )
    yield from _agents(rows["agents"])
    yield from _rounds(rows["rounds"])
    yield from _sessions(rows["sessions"])
    yield from _table(
        ("latency", "steps", "mean", "p50", "p95", "max"),
        [
            (name, row["count"], *(_seconds(row[key]) for key in ("mean", "p50", "p95", "max")))
            for name, row in rows["hops_s"].items()
        ],
    )
    yield from _tensors(rows["tensors"])
    yield from _table(("event", "times"), sorted(rows["events"].items()))
    chunks = rows["chunks"]
    if rows["sessions"] or chunks["missing"] or chunks["repeated"]:
        yield ""
        yield f"chunks: {chunks['missing']} missing, {chunks['repeated']} repeated"


def _agents(agents: Mapping[str, Any]) -> Iterator[str]:
    yield from _table(
        ("agent", "role", "starts", "lost", "threads", "model", "said", "bytes"),
        [
            (
                name,
                row["role"],
                row["incarnations"],
                row["lost"],
                row["threads"],
                row["model"][:12] or "-",
                row["sent"],
                _bytes(row["sent_bytes"]) + (f"  {row['problem']}" if row["problem"] else ""),
            )
            for name, row in agents.items()
        ],
    )


def _rounds(rounds: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rows = []
    for row in rounds:
        detail = row["detail"]
        ended = row["ended_s"]
        took = f"{ended - row['began_s']:.2f} s" if ended is not None else "not finished"
        loss = f"{detail['loss']:.4f}" if "loss" in detail else "-"
        rows.append((row["round"], took, detail.get("devices", "-"), detail.get("dropped", "-"), loss))
    yield from _table(("round", "took", "devices", "dropped", "loss"), rows)


def _sessions(sessions: Mapping[str, Any]) -> Iterator[str]:
    yield from _table(
        ("session", "task", "round", "edges", "epochs", "fail-overs", "steps", "frames", "wants", "resumes"),
        [
            (
                name,
                row["task"],
                row["round"],
                "→".join(row["edges"]),
                *(row[key] for key in ("epochs", "moves", "steps", "frames", "wants", "resumes")),
            )
            for name, row in sessions.items()
        ],
    )


def _tensors(tensors: Mapping[str, Any]) -> Iterator[str]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    yield from _table(
        ("tensors", "count", "shape", "dtype", "min", "max", "mean", "norm", "NaN"),
        [
            (
                name,
                row["tensors"],
                "x".join(map(str, row["shape"])),
                row["dtype"],
                *(number(row[key]) for key in ("min", "max", "mean", "norm")),
                row["nan"] or (f"{row['unreadable']} unreadable" if row["unreadable"] else 0),
            )
            for name, row in tensors.items()
        ],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    if not rows:
        return
    shown = [[str(cell) for cell in row] for row in rows[:MOST_ROWS]]
    widths = [max(len(row[place]) for row in [list(head), *shown]) for place in range(len(head))]
    yield ""
    for row in [list(head), *shown]:
        cells = [
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
    if len(rows) > MOST_ROWS:
        yield f"… and {len(rows) - MOST_ROWS} more (--json has all)"


def _bytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 10_000 else f"{size} B"  # noqa: PLR2004 - small numbers read better whole


def _seconds(value: float) -> str:
    return f"{value:.3f} s" if value >= 1 else f"{value * 1e3:.2f} ms"
