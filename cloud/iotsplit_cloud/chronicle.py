"""What the cloud remembers of a run for its report: counted as it happens. No I/O."""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from iotsplit.messages import Frame, Update
from iotsplit.plan import Tier
from iotsplit.role import Output
from iotsplit.states import (
    MAX_AGENTS,
    Assignment,
    Birth,
    Event,
    Metrics,
)
from iotsplit_cloud.evaluation import EvaluationRound
from iotsplit_cloud.ledger import Ledger
from iotsplit_cloud.members import Member
from iotsplit_cloud.report import (
    Report,
    Row,
    agent_rows,
    bytes_row,
    codec_row,
    enter_best,
    enter_scores,
    ledger_row,
    session_rows,
)
from iotsplit_cloud.training import TrainingRound
from iotsplit_cloud.versions import Version


class Chronicle:
    """Keeps the report.

    Args:
        report: of this run so far.
        row: of the newest round, if an earlier start has finished one: it is gone on with.
    """

    def __init__(self, report: Report, row: Row | None = None) -> None:
        self._report = report
        self._resumed = row is not None
        self.row = row
        self.ledger = Ledger()
        self._earlier = dict(report.ledger)
        self._peaks: dict[str, int] = {}
        self._last: dict[tuple[str, Tier], Metrics] = {}
        self._codec_errors: dict[str, list[float]] = defaultdict(list)  # of the round, by who sent what
        self._held: dict[str, int] = {}  # the version that each agent has fetched last
        self._up = self._down = 0
        self._round_at = 0.0
        self._training_s = 0.0
        self._tokens = 0

    @property
    def needs_baseline(self) -> bool:
        """Whether held-out data has not been scored before training."""
        return "before" not in self._report.eval

    def wants_scores(self, round_: int) -> bool:
        """Whether held-out data has to be scored before more is trained than these rounds."""
        settings = self._report.settings
        each = settings["evaluate"] == "rounds" and self.row is not None and "eval" not in self.row
        return self.needs_baseline or round_ >= settings["rounds"] or each

    def resumed(self, agent: str) -> list[Output]:
        """An event if the run goes on from an earlier start."""
        if not self._resumed or self.row is None:
            return []
        return [Event(kind="cloud_resumed", agent=agent, detail=f"after round {self.row['round']}")]

    def take(self, metrics: Metrics) -> None:
        """Note another agent's metrics."""
        self._peaks[metrics.agent] = max(self._peaks.get(metrics.agent, 0), metrics.peak_rss_bytes)
        key = (metrics.session or "", metrics.role)
        if metrics.session is not None and (key in self._last or len(self._last) < MAX_AGENTS):
            self._last[key] = metrics
        for kind, error in metrics.codec_error.items():
            errors = self._codec_errors[f"{metrics.role} {kind}"]
            if len(errors) < MAX_AGENTS:
                errors.append(error)

    def count_update(self, frame: Frame) -> None:
        """Count the bytes of a LoRA update."""
        if isinstance(frame.content, Update):
            self._up += len(frame.content.tensors)

    def count_fetches(self, assignments: Iterable[Assignment], version: Version) -> None:
        """Count the adapter sections that these assignments make agents fetch."""
        for assignment in assignments:
            for agent, tier in ((assignment.device, Tier.DEVICE), (assignment.edge, Tier.EDGE)):
                if agent and self._held.get(agent) != version.version:
                    self._held[agent] = version.version
                    self._down += len(version.sections[tier])

    def round_started(self, now: float) -> None:
        """Note when a round began."""
        self._round_at = now

    def round_finished(
        self,
        training: TrainingRound,
        *,
        round_: int,
        version: int,
        late: Mapping[str, Mapping[Tier, Update]],
        now: float,
    ) -> dict[str, Any]:
        """Enter a round; `late` are the updates of sessions that had left their round and came after all."""
        wall_s = now - self._round_at
        sessions = session_rows(training)
        names = [row["session"] for row in sessions]
        row = {
            "round": round_,
            "adapter_version": version,
            "wall_s": wall_s,
            "sessions": sessions,
            "bytes": bytes_row(self._last, names, up=self._up, down=self._down),
            "codec_error": codec_row(self._codec_errors),
            "dropped": [{"device": device, "reason": reason} for device, reason in training.dropped.items()],
            "late": [{"device": device, "tokens": both[Tier.DEVICE].tokens} for device, both in late.items()],
        }
        self.row = row
        self._training_s += wall_s
        self._tokens += sum(int(each["tokens"]) for each in sessions)
        self._up = self._down = 0
        self._last.clear()
        self._codec_errors.clear()
        self.ledger.settle()
        return row

    def scored(
        self, evaluation: EvaluationRound, version: Version, when: str, *, answering: Container[str]
    ) -> str:
        """Enter an evaluation of that version; gives its sums as JSON."""
        row = enter_scores(self._report, evaluation, when, answering=answering)
        if self._report.settings["evaluate"] == "rounds":
            number, round_ = version.version, version.round
            enter_best(self._report, evaluation, number, round_=round_, answering=answering)
        if self.row is not None:
            self.row = {**self.row, "eval": row}
        return msgspec.json.encode({"when": when, **row}).decode()

    def report_now(self, members: Sequence[Member], cloud: Birth, *, done: bool) -> Report:
        """The report as it stands."""
        own = Member(cloud, 0.0)
        self._report.agents = agent_rows([own, *members], self._peaks)
        row = ledger_row(self.ledger)
        self._report.ledger = {key: row[key] + self._earlier.get(key, 0) for key in row}
        if self._training_s > 0:
            self._report.tokens_per_second = self._tokens / self._training_s
        self._report.state = "done" if done else "running"
        return msgspec.convert(msgspec.to_builtins(self._report), Report)


def in_short(row: dict[str, Any]) -> str:
    """A round as one line of JSON, for people who watch."""
    sessions = row["sessions"]
    tokens = sum(each["tokens"] for each in sessions)
    told = [each for each in sessions if each["loss_last"] is not None]
    loss = sum(each["loss_last"] * each["tokens"] for each in told) / max(
        1, sum(each["tokens"] for each in told)
    )
    short = {
        "round": row["round"],
        "devices": len(sessions),
        "dropped": len(row["dropped"]),
        "loss": loss,
        "tokens": tokens,
        "wall_s": row["wall_s"],
        "bytes": row["bytes"],
    }
    return msgspec.json.encode(short).decode()
