"""What a check of a broker says: lines for people, an object for programs; pure."""

from collections.abc import Sequence
from typing import Any

from iotsplit_broker.checking.findings import Finding, Verdict

MARK_WIDTH, POINT_WIDTH = 6, 16


def lines_of(finding: Finding) -> str:
    """A line for the point, and one below for each setting to change."""
    mark = "ok" if finding.verdict is Verdict.OK else "FAIL" if finding.fails else "warn"
    verdict = "" if finding.verdict is Verdict.OK else f"{finding.verdict}: "
    lines = [f"{mark:<{MARK_WIDTH}}{finding.point:<{POINT_WIDTH}}{verdict}{finding.said}"]
    lines += [f"{'':<{MARK_WIDTH + POINT_WIDTH}}- {who}: {what}" for who, what in finding.fixes.items()]
    return "\n".join(lines) + "\n"


def conclusion(findings: Sequence[Finding]) -> str:
    """One line about all of them."""
    failing = [each.point for each in findings if each.fails]
    warnings = [each.point for each in findings if not each.fails and each.verdict is not Verdict.OK]
    if failing:
        return f"not fit for fleets: {', '.join(failing)}\n"
    return "fit for fleets" + (f", with what it says of {', '.join(warnings)}" if warnings else "") + "\n"


def is_fit(findings: Sequence[Finding]) -> bool:
    """Whether fleets work there."""
    return not any(each.fails for each in findings)


def as_object(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The points with stable keys."""
    return [
        {
            "point": each.point,
            "verdict": str(each.verdict),
            "needed": each.needed,
            "fails": each.fails,
            "said": each.said,
            "measured": dict(each.measured),
            "fixes": dict(each.fixes),
        }
        for each in findings
    ]
