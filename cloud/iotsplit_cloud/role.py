"""The cloud's role: who is there, what persons ask for, and what the broker has to remember. No I/O."""

from iotsplit.errors import PeerError
from iotsplit.messages import Frame, Message
from iotsplit.plan import Tier
from iotsplit.retained import Shelf
from iotsplit.role import Output, Refused
from iotsplit.states import (
    MAX_AGENTS,
    AdapterHead,
    AdapterLatest,
    Birth,
    Command,
    Event,
    Metrics,
    Reply,
)
from iotsplit.tensors.exchange import as_metrics
from iotsplit_cloud.conductor import Conductor, Parts, Phase
from iotsplit_cloud.desk import Desk
from iotsplit_cloud.journal import Earlier
from iotsplit_cloud.records import Heard

LOOK_AROUND_S = 1.0


class CloudRole:
    """The only writer of rounds, assignments and adapter versions.

    Args:
        birth: what the cloud says of itself.
        parts: settings and the pieces that do the work.
        run: a word that is new with each start, so that sessions of two starts are never the same.
        earlier: where an earlier start stood.
    """

    tier = Tier.CLOUD

    def __init__(
        self,
        *,
        birth: Birth,
        parts: Parts,
        run: str,
        earlier: Earlier | None = None,
    ) -> None:
        self.agent = birth.agent
        self.birth = birth
        self._p = parts
        self._desk = Desk(
            cloud=self.agent,
            run=run,
            first_epoch=lambda: self.birth.incarnation,
            settings=parts.settings,
            members=parts.members,
        )
        self._earlier = earlier or Earlier()
        self._conductor = Conductor(
            birth=lambda: self.birth, parts=parts, desk=self._desk, earlier=self._earlier
        )
        self._shelf = Shelf()
        self._warned: set[tuple[str, str]] = set()  # agents and kinds of tensors
        self._is_open = False
        self._early: list[Message] = []  # what is retained can come before the first tick
        self._looked_at = float("-inf")

    @property
    def phase(self) -> Phase:
        """Where the fleet is."""
        return self._conductor.phase

    @property
    def interests(self) -> frozenset[str]:
        """Its inbox, updates, what agents say of themselves, and versions that it looks for."""
        own = {f"wan/{self.agent}/#", "update/#", "state/+", "metrics/+", "command"}
        return self._shelf.interests | own

    @property
    def finished(self) -> bool:
        """Whether the rounds are done and nobody asked for more."""
        return self.phase is Phase.DONE and self._p.fleet.once

    def handle(self, message: Message, now: float) -> list[Output]:
        """Take what agents, persons and the round clock say; what comes before the first tick waits for it."""
        if self._is_open:
            return self._take(message, now)
        if len(self._early) < MAX_AGENTS:
            self._early.append(message)
        return []

    def _take(self, message: Message, now: float) -> list[Output]:
        match message:
            case Frame():
                return self._with_codec_errors(self._conductor.frame(message, now))
            case Birth() if message.agent != self.agent:
                return self._birth(message, now)
            case Metrics() if message.agent != self.agent:
                return self._metrics(message, now)
            case Command():
                return self._command(message)
            case AdapterHead():
                self._shelf.seen(_head_path(message.version), message)
        return []

    def tick(self, now: float) -> list[Output]:
        """Look around: who is silent or too slow, and whether something can begin."""
        if not self._is_open:
            return self._open(now)
        self._looked_at = now
        said: list[Output] = [self._lost(agent, "silent") for agent in self._p.members.silent(now)]
        for path in self._shelf.lost(now):
            said += self._p.library.publish() if path == _head_path(self._p.library.current.version) else []
        return self._with_codec_errors([*said, *self._conductor.look(now)])

    def next_tick(self, now: float) -> float:
        """Every second: soon enough to ask for what is late, and cheap to say after each message."""
        if not self._is_open:
            return now
        return min(self._looked_at + LOOK_AROUND_S, self._shelf.next_due)

    def reconnected(self, now: float) -> list[Output]:
        """Say again what is retained and small, look for the adapter version, ask for what is waited for."""
        self._conductor.hurry(now)
        self._looked_at = float("-inf")
        head = self._p.library.head
        self._shelf.look({_head_path(head.version): head} if head is not None else {}, now)
        latest = AdapterLatest(version=self._p.library.current.version)
        return [latest, self._conductor.state(), *self._desk.all()]

    def _open(self, now: float) -> list[Output]:
        """Say what is current, and go on with what was under way."""
        self._is_open = True
        self._p.members.opened_at = now
        said: list[Output] = [self._p.library.current, *self._p.library.publish()]
        said += [*self._p.chronicle.resumed(self.agent), *self._conductor.enter()]
        said += self._conductor.take_up_carried(self._earlier.carried, now)
        if self._earlier.interrupted is not None:
            said += self._conductor.take_up(self._earlier.interrupted, self._earlier.checkpoints, now)
        early, self._early = self._early, []
        for message in early:
            try:
                said += self._take(message, now)
            except PeerError as error:
                said.append(Refused(message=message, error=error))
        return said

    def _birth(self, birth: Birth, now: float) -> list[Output]:
        change = self._p.members.take(birth, now)
        if not change:
            return []
        said: list[Output] = [Event(kind=f"{birth.role}_{change}", agent=birth.agent, detail=birth.problem)]
        refusal = self._p.members.refusal(birth)
        if refusal and birth.online:
            said.append(Event(kind="agent_refused", agent=birth.agent, detail=refusal))
            said.append(self._desk.rest(birth.agent, problem=refusal))
        elif refusal:
            said.append(self._desk.rest(birth.agent))  # the retained refusal must not meet the mended agent
        elif birth.role is Tier.DEVICE and birth.agent not in self._desk:
            said.append(self._desk.rest(birth.agent))
        return said

    def _lost(self, agent: str, detail: str) -> Event:
        return Event(kind=f"{self._p.members[agent].birth.role}_lost", agent=agent, detail=detail)

    def _metrics(self, metrics: Metrics, now: float) -> list[Output]:
        if metrics.agent not in self._p.members:
            return []  # it has not said who it is, and may be nobody
        was_lost = self._p.members.heard(metrics.agent, now)
        self._p.chronicle.take(metrics)
        self._conductor.hear(metrics, now)
        said: list[Output] = [Event(kind=f"{metrics.role}_back", agent=metrics.agent)] if was_lost else []
        return [*said, Heard(metrics=metrics), *self._codec_warnings(metrics)]

    def _with_codec_errors(self, said: list[Output]) -> list[Output]:
        errors = self._p.tail.codec_errors()
        for metrics in as_metrics(errors, agent=self.agent, role=self.tier, round_=self._conductor.round):
            self._p.chronicle.take(metrics)
            said += [metrics, *self._codec_warnings(metrics)]
        return said

    def _codec_warnings(self, metrics: Metrics) -> list[Output]:
        """An event for each agent and kind of tensor of which the codec has lost more than it may."""
        said: list[Output] = []
        for kind, error in metrics.codec_error.items():
            largest = self._p.tail.largest_codec_error(kind)
            if error > largest and (metrics.agent, kind) not in self._warned:
                self._warned.add((metrics.agent, kind))
                detail = f"{error:.3g} of {kind} lost in step {metrics.step} of {metrics.session}, "
                detail += f"{self._p.settings.codec} loses {largest:.3g} at most"
                said.append(Event(kind="codec_error", agent=metrics.agent, detail=detail))
        return said

    def _command(self, command: Command) -> list[Output]:
        conductor, detail = self._conductor, ""
        said: list[Output] = []
        match command.verb:
            case "due":
                conductor.due = not conductor.paused
                return []
            case "now" if conductor.phase is Phase.DONE:
                detail = f"all {conductor.round} rounds are done; start the cloud with more --rounds"
            case "now":
                said = conductor.pause(False)
                conductor.due = True
            case "pause" | "resume":
                said = conductor.pause(command.verb == "pause")
            case "rollback" if command.version is not None:
                return self._roll_back(command.id, command.version)
            case _:
                detail = f"{command.verb!r} is not something the cloud can do"
        return [*said, Reply(id=command.id, ok=not detail, detail=detail)]

    def _roll_back(self, command: str, version: int) -> list[Output]:
        if self._conductor.activity is not None:
            busy = "a round is under way; pause rounds and ask again when it is over"
            return [Reply(id=command, ok=False, detail=busy)]
        problem = self._p.library.roll_back(version)
        if problem:
            return [Reply(id=command, ok=False, detail=problem)]
        self._p.tail.load(self._p.library.current.sections[Tier.CLOUD])
        return [
            self._p.library.current,  # exported anew
            *self._p.library.publish(),
            Event(kind="rolled_back", agent=self.agent, detail=f"to version {version}"),
            self._conductor.milestone(),
            self._conductor.state(),
            Reply(id=command, ok=True, detail=f"version {version} is current"),
        ]


def _head_path(version: int) -> str:
    return f"adapter/{version}/head"
