"""What begins in the cloud, and what comes after it: evaluations and rounds, one at a time. No I/O."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from iotsplit.errors import QuorumError
from iotsplit.messages import Frame, Update
from iotsplit.plan import Tier
from iotsplit.role import Output
from iotsplit.rounds import deal
from iotsplit.session import Turns
from iotsplit.settings import FleetSettings, Stragglers, TrainingSettings
from iotsplit.states import (
    Assignment,
    Birth,
    Event,
    Metrics,
    Round,
)
from iotsplit_cloud import chronicle
from iotsplit_cloud.caches import Caches
from iotsplit_cloud.carried import Carried
from iotsplit_cloud.chronicle import Chronicle
from iotsplit_cloud.desk import AGAIN, Desk
from iotsplit_cloud.evaluation import EvaluationRound
from iotsplit_cloud.federated import FederatedEvaluation, FederatedRound
from iotsplit_cloud.journal import CarriedSession, Earlier, RoundCheckpoint, RoundState
from iotsplit_cloud.lockstep import LockstepRound
from iotsplit_cloud.members import Members
from iotsplit_cloud.records import Milestone
from iotsplit_cloud.tail import Tail
from iotsplit_cloud.training import Equipment, TrainingRound
from iotsplit_cloud.versions import Library
from iotsplit_cloud.watch import Watch


class Phase(StrEnum):
    """Where the fleet is."""

    WAITING = "waiting"
    EVALUATING = "evaluating"
    TRAINING = "training"
    DONE = "done"


NO_EDGE = ""
"""Stands for the edge of a session that needs none."""

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
    caches: Caches


class Conductor:
    """Begins evaluations and rounds, and says what follows from their end.

    Args:
        birth: gives what the cloud says of itself.
        parts: settings and the pieces that do the work.
        desk: writes assignments.
        earlier: where an earlier start stood.
    """

    def __init__(self, *, birth: Callable[[], Birth], parts: Parts, desk: Desk, earlier: Earlier) -> None:
        last_round, paused = earlier.round, earlier.paused
        self.phase = Phase.WAITING
        self.round = last_round
        self.activity: TrainingRound | EvaluationRound | None = None
        self.paused = paused
        self.due = parts.fleet.always_due and not paused
        self._birth = birth
        self._p = parts
        self._desk = desk
        self._carried = Carried(parts.settings, parts.library.check, parts.caches)
        self._watch = Watch(parts.members, parts.fleet, desk, self._carried)
        self._turns = Turns(lambda: birth().incarnation)
        self._attempt = 0
        self._written: RoundState | None = None
        self._gathered = False
        self._evaluated = not parts.chronicle.wants_scores(last_round)

    @property
    def _agent(self) -> str:
        return self._birth().agent

    def take_up_carried(self, carried: Mapping[str, CarriedSession], now: float) -> list[Output]:
        """Go on waiting for sessions that were too late for their round before this start."""
        self._desk.adopt({device: each.assignment for device, each in carried.items()})
        return self._carried.take_up(carried, now)

    def take_up(self, state: RoundState, saved: Sequence[RoundCheckpoint], now: float) -> list[Output]:
        """Go on with the round that an earlier start was in: with its decisions, from its checkpoints."""
        self.round, self._attempt, self._written = state.round, state.attempt, state
        self._gathered = self._evaluated = True
        self._desk.adopt(state.assignments)
        assignments = dict(state.assignments)
        if self._p.settings.federated:  # devices say what they have brought again when the epoch is new
            assignments = {
                device: self._desk.move(each, each.edge, checkpoint=0) for device, each in assignments.items()
            }
        self._p.chronicle.round_started(now)  # what came before is not known
        training = self._new_round(assignments, now)
        training.dropped.update(state.dropped)
        self.activity = training
        resumed = training.resume(saved, now)
        if self._p.caches.has_lost(assignments.values()):
            training.stuck = "the cloud has lost what it remembered of samples"
        detail = f"in round {self.round} at step {training.step}"
        return [
            Event(kind="cloud_resumed", agent=self._agent, detail=detail),
            *self.enter(Phase.TRAINING),
            *assignments.values(),
            *resumed,
        ]

    def _journaled(self, said: list[Output]) -> list[Output]:
        """Write down what was decided about the round before it is said: every decision is an assignment."""
        training = self.activity
        decided = any(isinstance(output, Assignment) for output in said)
        if not decided or not isinstance(training, TrainingRound):
            return said
        state = self._state_of(training)
        if state == self._written:
            return said
        self._written = state
        # After what is said of the round before, whose end strikes out what was written of it.
        ends = [place + 1 for place, output in enumerate(said) if isinstance(output, Milestone)]
        place = max(ends, default=0)
        return [*said[:place], state, *said[place:]]

    def _state_of(self, training: TrainingRound) -> RoundState:
        return RoundState(
            round=self.round,
            attempt=self._attempt,
            assignments={device: session.assignment for device, session in training.sessions.items()},
            dropped=dict(training.dropped),
            carried=self._carried.record(),
            paused=self.paused,
        )

    def pause(self, paused: bool) -> list[Output]:
        """Begin no more rounds, or begin them again; it is written down, so that no restart undoes it."""
        self.paused = paused
        self.due = self._p.fleet.always_due and not paused
        if isinstance(self.activity, TrainingRound):
            self._written = self._state_of(self.activity)
            return [self._written]
        return [self.milestone()]

    def frame(self, frame: Frame, now: float) -> list[Output]:
        """Take a frame for what is under way."""
        if isinstance(frame.content, Update):
            self._p.chronicle.count_update(frame)
        if carried := self._carried.sessions.get(frame.device):
            return [*self._carried.handle(frame, now), *carried.arrival()]
        if self.activity is None:
            return []
        session = self.activity.sessions.get(frame.device)
        said = self.activity.handle(frame, now)
        said += session.arrival() if session is not None else []
        return self._journaled([*said, *self._after(now)])

    def hear(self, metrics: Metrics, now: float) -> None:
        """Take what an agent tells of its work."""
        if isinstance(self.activity, TrainingRound):
            self.activity.hear(metrics, now)

    def hurry(self, now: float) -> None:
        """Ask for what is waited for: it may have been lost with a connection."""
        for activity in (self._carried, self.activity):
            for session in activity.sessions.values() if activity else ():
                session.awaited.hurry(now)

    def look(self, now: float) -> list[Output]:
        """Look after what is under way, or begin something."""
        before = self._carried.record()
        said = [*self._carried.tick(now), *self._watch.look(self._carried, now)]
        if before != self._carried.record() and not isinstance(self.activity, TrainingRound):
            said = [self.milestone(), *said]
        if self.activity is None:
            return self._journaled([*said, *self._begin(now)])
        said += [*self._watch.look(self.activity, now), *self.activity.tick(now)]
        return self._journaled([*said, *self._after(now)])

    def _begin(self, now: float) -> list[Output]:
        if self.phase is Phase.DONE:
            return []
        devices = self._p.members.present(Tier.DEVICE)
        edges = self._p.members.edges(standby=self._gathered)
        # The whole fleet is waited for once; later rounds run with who is there, unless nobody may miss one.
        fleet, no_edges = self._p.fleet, self._p.settings.federated
        later = (fleet.devices if fleet.stragglers is Stragglers.WAIT else 1, 0 if no_edges else 1)
        need = later if self._gathered else (fleet.devices, 0 if no_edges else fleet.edges)
        if len(devices) < need[0] or len(edges) < need[1]:
            self._check_patience(len(devices), len(edges), now)
            return []
        self._gathered = True
        devices = [device for device in devices if device not in self._carried.sessions]
        if not devices:
            given_up = self._watch.give_up_late(self._carried, now)
            return [*given_up, self.milestone()] if given_up else []
        if not self._evaluated:
            return self._evaluate(devices, edges, now)
        return self._train(devices, edges, now) if self.due and not self.paused else []

    def _check_patience(self, devices: int, edges: int, now: float) -> None:
        patience = 0 if self._gathered else self._p.fleet.wait_timeout
        if patience and now - self._p.members.opened_at > patience:
            raise QuorumError(
                f"after {patience:.0f} s there are {devices} devices and {edges} edges",
                fix=f"start the others: {self._p.fleet.devices} devices and {self._p.fleet.edges} edges",
            )

    def _evaluate(self, devices: list[str], edges: list[str], now: float) -> list[Output]:
        # Everyone's held-out data counts, whoever trains in a round.
        settings = self._p.settings
        pairs = dict.fromkeys(devices, NO_EDGE)
        if not settings.federated:
            pairs = deal(devices, edges, devices_per_edge=None, seed=settings.seed, round_=1)
        assignments = self._desk.assign(pairs, "evaluate", str(self.round), self._p.library)
        kind = FederatedEvaluation if settings.federated else EvaluationRound
        self.activity = kind(assignments, settings, self._p.tail, now=now)
        return [*self.enter(Phase.EVALUATING), *self._hand_out(assignments)]

    def _train(self, devices: list[str], edges: list[str], now: float) -> list[Output]:
        self.round += 1
        self.due = self._p.fleet.always_due
        pairs = dict.fromkeys(devices, NO_EDGE)
        if not self._p.settings.federated:
            pairs = deal(
                devices,
                edges,
                devices_per_edge=self._p.fleet.devices_per_edge,
                rooms=self._p.members.rooms(),
                seed=self._p.settings.seed,
                round_=self.round,
                stay=bool(self._p.settings.cache_bytes),
            )
        self._attempt = 0
        self._to_round_start()
        self._p.chronicle.round_started(now)
        started = self._event("round_started", self._agent, f"round {self.round}, {len(pairs)} devices")
        assignments = self._train_pairs(pairs, now)
        return [started, *self.enter(Phase.TRAINING), *self._hand_out(assignments)]

    def _train_pairs(self, pairs: dict[str, str], now: float) -> dict[str, Assignment]:
        name = f"{self.round}{AGAIN}{self._attempt}" if self._attempt else str(self.round)
        bases = self._p.caches.bases(pairs, again=self._attempt > 0)
        assignments = self._desk.assign(pairs, "train", name, self._p.library, bases=bases)
        self.activity = self._new_round(assignments, now)
        return assignments

    def _new_round(self, assignments: dict[str, Assignment], now: float) -> TrainingRound:
        equipment = Equipment(
            tail=self._p.tail,
            ledger=self._p.chronicle.ledger,
            turns=self._turns,
            check=self._p.library.check,
            caches=self._p.caches,
            to_start=self._to_round_start,
        )
        self._p.tail.caches = self._p.caches.begin(assignments.values())
        kind = FederatedRound if self._p.settings.federated else LockstepRound
        return kind(assignments, self._p.settings, equipment, now=now)

    def _to_round_start(self) -> None:
        self._p.tail.load(self._p.library.current.sections[Tier.CLOUD])

    def _do_again(self, training: TrainingRound, now: float) -> list[Output]:
        """Do the round again from its start: too much was lost at once to go on with it."""
        said: list[Output] = [self._event("round_again", self._agent, f"round {self.round}: {training.stuck}")]
        self._attempt += 1
        training.void()
        said += self._give_up_carried(self.round + 1, "the round is done again", now)
        self._to_round_start()
        pairs: dict[str, str] = {}
        for device, session in training.sessions.items():
            edge = self._p.members.edge_with_room(Counter(pairs.values()))
            pairs[device] = edge or session.assignment.edge
        assignments = self._train_pairs(pairs, now)
        if isinstance(self.activity, TrainingRound):
            self.activity.dropped.update(training.dropped)
        return [*said, *self._hand_out(assignments)]

    def _after(self, now: float) -> list[Output]:
        """What follows when the activity at hand is over."""
        activity = self.activity
        if isinstance(activity, TrainingRound) and activity.stuck:
            return self._do_again(activity, now)
        if activity is None or not activity.done:
            return []
        self.activity = None
        if isinstance(activity, TrainingRound):
            return self._trained(activity, now)
        if not activity.sessions:
            activity.check_fitness(self._p.library.current.version)
            return self.enter(Phase.WAITING)  # nobody is left to be scored; again when someone is back
        when = "before" if self._p.chronicle.needs_baseline else "after"
        self._evaluated = True
        answering = self._p.members.answering()
        detail = self._p.chronicle.scored(activity, self._p.library.current, when, answering=answering)
        last = self.round >= self._p.settings.rounds
        entered = self.enter(Phase.DONE if last else Phase.WAITING)
        said: list[Output] = [self._event("evaluated", self._agent, detail), *entered]
        if last:
            said += self._hand_out({})
            said.append(self._event("finished", self._agent, f"after {self.round} rounds"))
        return [*said, self.milestone(), *self._begin(now)]

    def _trained(self, training: TrainingRound, now: float) -> list[Output]:
        p = self._p
        last = self.round >= p.settings.rounds
        late = self._carried.arrived(p.library) if training.sessions else {}
        no_next = last or not training.sessions
        said: list[Output] = [*p.caches.take_changes()]
        said += self._give_up_carried(self.round + 1 if no_next else self.round, "too late", now)
        if training.sessions:
            version = p.library.add(
                training.updates | late,
                cloud=p.tail.adapter(),
                round_=self.round,
            )
            said += [version, *p.library.publish(), *p.library.forget()]
        else:
            self._to_round_start()  # its steps were for nothing
        row = p.chronicle.round_finished(
            training, round_=self.round, version=p.library.current.version, late=late, now=now
        )
        said.append(self._event("round_finished", self._agent, chronicle.in_short(row)))
        self._evaluated = not p.chronicle.wants_scores(self.round)
        said += self.enter(Phase.WAITING)
        return [*said, self.milestone(), *self._begin(now)]

    def _give_up_carried(self, before_round: int, reason: str, now: float) -> list[Output]:
        said: list[Output] = []
        for device in self._carried.of_rounds_before(before_round):
            said += self._watch.drop(self._carried, device, reason, now)
        return said

    # --- what is said

    def _hand_out(self, assignments: dict[str, Assignment]) -> list[Assignment]:
        self._p.chronicle.count_fetches(assignments.values(), self._p.library.current)
        return self._desk.hand_out(assignments, spared=self._carried.sessions)

    def enter(self, phase: Phase = Phase.WAITING) -> list[Output]:
        """Go over into a phase, and say so."""
        if phase is not self.phase:
            assert phase in NEXT_PHASES[self.phase]  # noqa: S101 - a wrong order is our own mistake
            self.phase = phase
        return [self.state()]

    def state(self) -> Round:
        """Where the fleet is."""
        return Round(
            round=self.round,
            phase=self.phase,
            version=self._p.library.current.version,
            sessions=len(self.activity.sessions) if self.activity else 0,
        )

    def _event(self, kind: str, agent: str, detail: str) -> Event:
        return Event(kind=kind, agent=agent, detail=detail)

    def milestone(self) -> Milestone:
        """What a restarted cloud goes on from."""
        done = self.phase is Phase.DONE
        return Milestone(
            report=self._p.chronicle.report_now(self._p.members.all(), self._birth(), done=done),
            row=self._p.chronicle.row,
            round=self.round,
            version=self._p.library.current.version,
            carried=self._carried.record(),
            paused=self.paused,
            final=done,
        )
