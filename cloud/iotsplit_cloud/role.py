"""The cloud's role: who is there, when a round runs, and what becomes of it. No I/O."""

from dataclasses import dataclass
from enum import StrEnum

from iotsplit.errors import QuorumError
from iotsplit.messages import (
    Assignment,
    Birth,
    Command,
    Event,
    Frame,
    Message,
    Metrics,
    Reply,
    Round,
    Update,
)
from iotsplit.plan import Tier
from iotsplit.role import Output
from iotsplit.rounds import deal
from iotsplit.settings import FleetSettings, TrainingSettings
from iotsplit_cloud import chronicle
from iotsplit_cloud.chronicle import Chronicle
from iotsplit_cloud.desk import Desk
from iotsplit_cloud.evaluation import EvaluationRound
from iotsplit_cloud.members import Members
from iotsplit_cloud.records import Heard, Milestone
from iotsplit_cloud.tail import Tail
from iotsplit_cloud.training import TrainingRound
from iotsplit_cloud.versions import Library

LOOK_AROUND_S = 1.0


class Phase(StrEnum):
    """Where the fleet is."""

    WAITING = "waiting"
    EVALUATING = "evaluating"
    TRAINING = "training"
    DONE = "done"


NEXT_PHASES = {
    Phase.WAITING: frozenset({Phase.EVALUATING, Phase.TRAINING}),
    Phase.EVALUATING: frozenset({Phase.WAITING, Phase.DONE}),
    Phase.TRAINING: frozenset({Phase.EVALUATING, Phase.WAITING}),
    Phase.DONE: frozenset({Phase.WAITING}),  # a person asks for one more round
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the cloud's role works with."""

    settings: TrainingSettings
    fleet: FleetSettings
    tail: Tail
    library: Library
    members: Members
    chronicle: Chronicle


class CloudRole:
    """The only writer of rounds, assignments and adapter versions.

    Args:
        birth: what the cloud says of itself.
        parts: settings and the pieces that do the work.
        run: a word that is new with each start, so that sessions of two starts are never the same.
        last_round: the last round that was finished before this start.
    """

    tier = Tier.CLOUD

    def __init__(self, *, birth: Birth, parts: Parts, run: str, last_round: int = 0) -> None:
        self.agent = birth.agent
        self.birth = birth
        self.phase = Phase.WAITING
        self._p = parts
        self._round = last_round
        self._activity: TrainingRound | EvaluationRound | None = None
        self._desk = Desk(cloud=self.agent, run=run, first_epoch=birth.incarnation, settings=parts.settings)
        self._started_at: float | None = None
        self._looked_at = float("-inf")
        self._paused = False
        self._due = self._always_due
        self._gathered = False
        self._evaluated = not parts.chronicle.needs_baseline and last_round < parts.settings.rounds

    @property
    def interests(self) -> frozenset[str]:
        """Its inbox, updates, and what agents say of themselves."""
        return frozenset({f"wan/{self.agent}/#", "update/#", "state/+", "metrics/+", "command"})

    @property
    def finished(self) -> bool:
        """Whether the rounds are done and nobody asked for more."""
        return self.phase is Phase.DONE and self._p.fleet.once

    @property
    def _always_due(self) -> bool:
        return self._p.fleet.schedule == "now" and not self._p.fleet.window

    def handle(self, message: Message, now: float) -> list[Output]:
        """Take what agents, persons and the round clock say."""
        match message:
            case Frame():
                return self._frame(message, now)
            case Birth() if message.agent != self.agent:
                return self._birth(message, now)
            case Metrics() if message.agent != self.agent:
                return self._metrics(message, now)
            case Command():
                return self._command(message, now)
        return []

    def tick(self, now: float) -> list[Output]:
        """Look around: who is silent or too slow, and whether something can begin."""
        if self._started_at is None:
            self._started_at = now
            kept = [self._p.library.current]
            return [*kept, *self._p.library.publish(), *self._p.chronicle.resumed(self.agent), *self._enter()]
        self._looked_at = now
        said: list[Output] = [
            self._event("agent_lost", agent, "silent") for agent in self._p.members.silent(now)
        ]
        if self._activity is not None:
            said += self._drop_lost(now)
            said += self._activity.tick(now)
            return said + self._after(now)
        return said + self._begin(now)

    def next_tick(self, now: float) -> float:
        """Every second, and when something is late."""
        if self._started_at is None:
            return now
        late = self._activity.next_due if self._activity else float("inf")
        return min(late, self._looked_at + LOOK_AROUND_S)

    def _frame(self, frame: Frame, now: float) -> list[Output]:
        if self._activity is None:
            return []
        if isinstance(frame.content, Update):
            self._p.chronicle.count_update(frame)
        return self._activity.handle(frame, now) + self._after(now)

    def _birth(self, birth: Birth, now: float) -> list[Output]:
        change = self._p.members.take(birth, now)
        if not change:
            return []
        said: list[Output] = [self._event(f"agent_{change}", birth.agent, birth.problem)]
        refusal = self._p.members.refusal(birth)
        if refusal and birth.online:
            said.append(self._event("agent_refused", birth.agent, refusal))
            said.append(self._desk.rest(birth.agent, problem=refusal))
        elif refusal:
            said.append(self._desk.rest(birth.agent))  # the retained refusal must not meet the mended agent
        elif birth.role is Tier.DEVICE and birth.agent not in self._desk:
            said.append(self._desk.rest(birth.agent))
        if change == "restarted" and self._activity is not None:
            said += self._drop_of(birth.agent, "restarted", now)
        return said

    def _metrics(self, metrics: Metrics, now: float) -> list[Output]:
        if metrics.agent not in self._p.members:
            return []  # it has not said who it is, and may be nobody
        was_lost = self._p.members.heard(metrics.agent, now)
        self._p.chronicle.take(metrics)
        said: list[Output] = [self._event("agent_back", metrics.agent, "")] if was_lost else []
        return [*said, Heard(metrics=metrics)]

    def _command(self, command: Command, now: float) -> list[Output]:
        del now
        match command.verb:
            case "due":
                self._due = not self._paused
                return []
            case "now" if self.phase is Phase.DONE:
                detail = f"all {self._round} rounds are done; start the cloud with more --rounds"
            case "now":
                self._due, self._paused = True, False
                detail = ""
            case "pause" | "resume":
                self._paused = command.verb == "pause"
                self._due = self._always_due and not self._paused
                detail = ""
            case "rollback" if command.version is not None:
                return self._roll_back(command.id, command.version)
            case _:
                detail = f"{command.verb!r} is not something the cloud can do"
        return [Reply(id=command.id, ok=not detail, detail=detail)]

    def _roll_back(self, command: str, version: int) -> list[Output]:
        if self._activity is not None:
            busy = "a round is under way; pause rounds and ask again when it is over"
            return [Reply(id=command, ok=False, detail=busy)]
        problem = self._p.library.roll_back(version)
        if problem:
            return [Reply(id=command, ok=False, detail=problem)]
        self._p.tail.load(self._p.library.current.sections[Tier.CLOUD])
        return [
            self._p.library.current,  # exported anew
            *self._p.library.publish(),
            self._event("rolled_back", self.agent, f"to version {version}"),
            self._milestone(),
            self._state(),
            Reply(id=command, ok=True, detail=f"version {version} is current"),
        ]

    # --- what begins, and what comes after it

    def _begin(self, now: float) -> list[Output]:
        if self.phase is Phase.DONE:
            return []
        devices, edges = (self._p.members.present(tier) for tier in (Tier.DEVICE, Tier.EDGE))
        # The whole fleet is waited for once; later rounds run with who is there.
        fleet = self._p.fleet
        need = (1, 1) if self._gathered else (fleet.devices, fleet.edges)
        if len(devices) < need[0] or len(edges) < need[1]:
            self._check_patience(len(devices), len(edges), now)
            return []
        self._gathered = True
        if not self._evaluated:
            return self._evaluate(devices, edges, now)
        return self._train(devices, edges, now) if self._due and not self._paused else []

    def _check_patience(self, devices: int, edges: int, now: float) -> None:
        patience = self._p.fleet.wait_timeout
        if patience and self._started_at is not None and now - self._started_at > patience:
            raise QuorumError(
                f"after {patience:.0f} s there are {devices} devices and {edges} edges",
                fix=f"start the others: {self._p.fleet.devices} devices and {self._p.fleet.edges} edges",
            )

    def _evaluate(self, devices: list[str], edges: list[str], now: float) -> list[Output]:
        # Everyone's held-out data counts, whoever trains in a round.
        pairs = deal(devices, edges, devices_per_edge=None, seed=self._p.settings.seed, round_=1)
        assignments = self._desk.assign(pairs, "evaluate", self._round, self._p.library)
        self._activity = EvaluationRound(assignments, self._p.settings, self._p.tail, now=now)
        return [*self._enter(Phase.EVALUATING), *self._hand_out(assignments)]

    def _train(self, devices: list[str], edges: list[str], now: float) -> list[Output]:
        self._round += 1
        self._due = self._always_due
        pairs = deal(
            devices,
            edges,
            devices_per_edge=self._p.fleet.devices_per_edge,
            seed=self._p.settings.seed,
            round_=self._round,
        )
        assignments = self._desk.assign(pairs, "train", self._round, self._p.library)
        self._activity = TrainingRound(
            assignments,
            self._p.settings,
            self._p.tail,
            self._p.chronicle.ledger,
            check=self._p.library.check,
            now=now,
        )
        self._p.chronicle.round_started(now)
        started = self._event("round_started", self.agent, f"round {self._round}, {len(pairs)} devices")
        return [started, *self._enter(Phase.TRAINING), *self._hand_out(assignments)]

    def _after(self, now: float) -> list[Output]:
        """What follows when the activity at hand is over."""
        activity = self._activity
        if activity is None or not activity.done:
            return []
        self._activity = None
        if isinstance(activity, TrainingRound):
            return self._trained(activity, now)
        if not activity.sessions:
            return self._enter(Phase.WAITING)  # nobody is left to be scored; again when someone is back
        when = "before" if self._p.chronicle.needs_baseline else "after"
        self._evaluated = True
        answering = self._p.members.answering()
        detail = self._p.chronicle.scored(activity, when, answering=answering)
        last = self._round >= self._p.settings.rounds
        entered = self._enter(Phase.DONE if last else Phase.WAITING)
        said: list[Output] = [self._event("evaluated", self.agent, detail), *entered]
        if last:
            said += self._hand_out({})
            said.append(self._event("finished", self.agent, f"after {self._round} rounds"))
        return [*said, self._milestone(), *self._begin(now)]

    def _trained(self, training: TrainingRound, now: float) -> list[Output]:
        p = self._p
        said: list[Output] = []
        if training.sessions:
            version = p.library.add(
                training.updates,
                cloud=p.tail.adapter(),
                rule=p.settings.aggregation,
                round_=self._round,
            )
            said += [version, *p.library.publish(), *p.library.forget()]
        else:
            p.tail.load(p.library.current.sections[Tier.CLOUD])  # its steps were for nothing
        row = p.chronicle.round_finished(
            training, round_=self._round, version=p.library.current.version, now=now
        )
        said.append(self._event("round_finished", self.agent, chronicle.in_short(row)))
        last = self._round >= p.settings.rounds
        self._evaluated = not (last or p.settings.evaluate == "rounds")
        said += self._enter(Phase.WAITING)
        return [*said, self._milestone(), *self._begin(now)]

    # --- who is dropped

    def _drop_lost(self, now: float) -> list[Output]:
        said: list[Output] = []
        activity = self._activity
        if activity is None:
            return said
        waits_for = activity.waits_for()
        for device in list(activity.sessions):
            session = activity.sessions[device]
            gone = [a for a in (device, session.assignment.edge) if self._p.members.gone(a, now)]
            slow = device in waits_for and now - session.progress_at > self._p.fleet.step_timeout
            if gone:
                said += self._drop(device, f"{gone[0]} is gone", now)
            elif slow:
                said += self._drop(device, f"nothing came for {self._p.fleet.step_timeout:.0f} s", now)
        return said

    def _drop_of(self, agent: str, reason: str, now: float) -> list[Output]:
        """Drop the sessions of an agent that has lost its memory."""
        activity = self._activity
        said: list[Output] = []
        for device, session in list(activity.sessions.items()) if activity else []:
            if agent in (device, session.assignment.edge):
                said += self._drop(device, f"{agent} {reason}", now)
        return said + self._after(now)

    def _drop(self, device: str, reason: str, now: float) -> list[Output]:
        if self._activity is None:
            return []
        return [
            self._event("session_dropped", device, reason),
            self._desk.rest(device),
            *self._activity.drop(device, reason, now),
        ]

    # --- what is said

    def _hand_out(self, assignments: dict[str, Assignment]) -> list[Assignment]:
        self._p.chronicle.count_fetches(assignments.values(), self._p.library.current)
        return self._desk.hand_out(assignments)

    def _enter(self, phase: Phase = Phase.WAITING) -> list[Output]:
        if phase is not self.phase:
            assert phase in NEXT_PHASES[self.phase]  # noqa: S101 - a wrong order is our own mistake
            self.phase = phase
        return [self._state()]

    def _state(self) -> Round:
        return Round(
            round=self._round,
            phase=self.phase,
            version=self._p.library.current.version,
            sessions=len(self._activity.sessions) if self._activity else 0,
        )

    def _event(self, kind: str, agent: str, detail: str) -> Event:
        return Event(kind=kind, agent=agent, detail=detail)

    def _milestone(self) -> Milestone:
        done = self.phase is Phase.DONE
        return Milestone(
            report=self._p.chronicle.report_now(self._p.members.all(), self.birth, done=done),
            round=self._round,
            version=self._p.library.current.version,
            optimizer=self._p.tail.optimizer_state(),
            final=done,
        )
