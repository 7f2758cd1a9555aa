"""One agent of a tape plays its part again, with nobody else there: no broker, no clock but the tape's."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from iotsplit.agent import Agent
from iotsplit.errors import RunFailedError, UsageError
from iotsplit.mailbox import Mailbox
from iotsplit.messages import Message
from iotsplit.packet import Packet
from iotsplit.runtime.memory import matches
from iotsplit.states import Birth, decode_state
from iotsplit.tape.casting import Actor
from iotsplit.tape.comparison import Comparison, Difference
from iotsplit.tape.facts import Facts, Start
from iotsplit.tape.format import Record
from iotsplit.tape.letters import FRAMES, Letter, Listener, is_retained
from iotsplit.tape.statements import Speaker, Statement

PROMPTS_S = (0.0, 0.001, 0.01, 0.1, 1.0)
"""How much later it is for an agent that has not said yet what it says on the tape."""
MOST_TURNS = 100_000
"""Between two records: more are a role that is never done."""


@dataclass(slots=True)
class _Playing:
    """The incarnation that is on the stage."""

    actor: Actor
    agent: Agent
    start: Start
    filters: frozenset[str] = frozenset()
    inbox: deque[Packet] = field(default_factory=deque)
    is_connected: bool = True
    is_checked: bool = False


class Rehearsal:
    """Feeds an agent what it was told, in the order and at the times of the tape, and compares what it says.

    Args:
        facts: of the agent, from a first reading of the tape.
        cast: makes an incarnation.
        tolerance: of each tensor, as a share of its largest value; 0 for the same bytes.
    """

    def __init__(self, facts: Facts, cast: Callable[[Start], Actor], *, tolerance: float = 0.0) -> None:
        self.comparison = Comparison(tolerance)
        self.inputs = 0
        """Packets that the agent was given."""
        self._facts, self._cast = facts, cast
        self._exact = tolerance == 0.0
        self._listener = Listener(facts.topics)
        self._recorded = Speaker(exact=self._exact)
        self._says, self._said = Listener(facts.topics), Speaker(exact=self._exact)
        self._retained: dict[str, Packet] = {}
        self._playing: _Playing | None = None
        self._incarnation = -1
        self._before = self._now = 0.0  # times of the record before and of this one
        self._records = 0

    @property
    def difference(self) -> Difference | None:
        """The first thing that is not the same, once there is one."""
        return self.comparison.difference

    def take(self, record: Record) -> None:
        """Go on to the next record."""
        self._records += 1
        self._before, self._now = self._now, max(self._now, record.mono_ns / 1e9)
        letter = self._listener.take(record)
        # The replay's own frames do not tell who serves whom; the tape does.
        self._says.learn(self._listener)
        if self._playing is not None:
            self._run(self._playing)
        self._note_retained(record)
        if letter is not None and letter.first == "state" and letter.words == (self._facts.agent,):
            self._own_state(letter)
        if self._playing is not None and not self._is_partial(letter, record):
            self._deliver(self._playing, record)
        if letter is not None and letter.sender == self._facts.agent and not self._is_partial(letter, record):
            self._own(letter)

    def finish(self) -> None:
        """The tape is at its end."""
        self.comparison.finish()
        self.close()

    def close(self) -> None:
        """End the incarnation that is on the stage."""
        if self._playing is not None:
            self._playing.actor.close()
            self._playing = None

    # --- what the tape says of the agent

    def _own_state(self, letter: Letter) -> None:
        start = self._start_of(letter)
        if start is None:
            if self._playing is not None:
                self._playing.is_connected = False  # its last will, or its own goodbye
            return
        if start.birth.incarnation > self._incarnation:
            self._enter(start)
        elif self._playing is not None and not self._playing.is_connected:
            self._playing.is_connected = True
            playing = self._playing
            self._say(playing, playing.agent.encode(playing.actor.role.reconnected(self._now)))

    def _start_of(self, letter: Letter) -> Start | None:
        """The incarnation that says it is there; None for a last will."""
        birth = decode_state(letter.body, Birth) if letter.body else None
        if birth is None or not birth.online:
            return None
        return self._facts.starts.get(birth.incarnation)

    def _enter(self, start: Start) -> None:
        if self._playing is not None:
            self.comparison.died()
            self._playing.actor.close()
            self._recorded, self._said = Speaker(exact=self._exact), Speaker(exact=self._exact)
        self._incarnation = start.birth.incarnation
        actor = self._cast(start)
        mailbox = Mailbox(self._facts.topics, self._facts.agent, chunk_bytes=self._facts.chunk_bytes)
        agent = Agent(actor.role, mailbox, sink=actor.sink)
        self._playing = _Playing(actor, agent, start)
        self._settle(self._playing)
        self._run(self._playing)

    def _deliver(self, playing: _Playing, record: Record) -> None:
        if any(matches(each, record.topic) for each in playing.filters):
            playing.inbox.append(record.packet)
            self._run(playing)

    def _own(self, letter: Letter) -> None:
        if letter.record.retain:
            return  # it said so before the tape
        for statement in self._recorded.statements(letter, record=self._records):
            if self._playing is not None and self.comparison.expects(statement):
                self._prompt(self._playing, letter, statement)
            self.comparison.recorded(statement)

    def _prompt(self, playing: _Playing, letter: Letter, statement: Statement) -> None:
        """It said something that it does not say by itself yet: what its clocks told it is not on the bus.

        It may have waited for a time that was over for it a little earlier than for who recorded it.
        """
        for message in playing.actor.prompt(letter):
            self._hand_over(playing, message)
        at = letter.record.mono_ns / 1e9
        for later_s in PROMPTS_S:
            self._now = max(self._now, at + later_s)
            self._say(playing, playing.agent.encode(playing.agent.tick(self._now)))
            self._run(playing)
            if not self.comparison.expects(statement):
                return

    def _is_partial(self, letter: Letter | None, record: Record) -> bool:
        """Whether it belongs to a session whose beginning is not on the tape."""
        if not self._facts.partial:
            return False
        if letter is not None and letter.session:
            return letter.session in self._facts.partial
        words = record.topic[len(self._facts.topics.root) :].split("/")
        if words[0] in FRAMES:
            return any(word in self._facts.partial for word in words)
        return words[0] == "assign" and any(name.encode() in record.payload for name in self._facts.partial)

    # --- what the agent does

    def _run(self, playing: _Playing) -> None:
        """Let it read what has come and do what is due, until there is nothing of either."""
        for _ in range(MOST_TURNS):
            due = playing.actor.role.next_tick(self._now)
            if playing.inbox:
                self._read(playing, playing.inbox.popleft())
            elif due <= self._now:
                self._say(playing, playing.agent.encode(playing.agent.tick(max(due, self._before))))
            else:
                return
        raise RunFailedError(
            f"{self._facts.agent} is never done at {self._now:.3f} s of the tape", fix="report this as a bug"
        )

    def _read(self, playing: _Playing, packet: Packet) -> None:
        self.inputs += 1
        message = playing.agent.decode(packet)
        if message is not None:
            self._hand_over(playing, message)

    def _hand_over(self, playing: _Playing, message: Message) -> None:
        self._say(playing, playing.agent.encode(playing.agent.handle(message, self._now)))

    def _say(self, playing: _Playing, packets: list[Packet]) -> None:
        self._compare(packets)
        self._settle(playing)

    def _settle(self, playing: _Playing) -> None:
        """Say what it is now, and give it what is retained on the topics that it newly wants."""
        self._compare(playing.agent.birth())
        self._check_data(playing)
        new = playing.agent.filters - playing.filters
        playing.filters = playing.agent.filters
        if new:
            found = [p for topic, p in self._retained.items() if any(matches(each, topic) for each in new)]
            playing.inbox.extend(found)

    def _compare(self, packets: list[Packet]) -> None:
        for packet in packets:
            record = Record(int(self._now * 1e9), 0, packet.topic, packet.payload, packet.qos, packet.retain)
            letter = self._says.take(record)
            if letter is not None:
                for statement in self._said.statements(letter):
                    self.comparison.said(statement)

    def _check_data(self, playing: _Playing) -> None:
        told, data = playing.start.fingerprint, playing.actor.role.birth.data
        if playing.is_checked or data is None:
            return
        playing.is_checked = True
        if told and data.fingerprint != told:
            raise UsageError(
                f"the data is not what {self._facts.agent} had: fingerprint {data.fingerprint[:12]}, "
                f"on the tape {told[:12]}",
                fix="give the device's own data with --data, and --columns and --eval-limit as it had them",
            )

    def _note_retained(self, record: Record) -> None:
        if not record.payload:
            self._retained.pop(record.topic, None)
        elif record.retain or is_retained(record.topic[len(self._facts.topics.root) :]):
            packet = record.packet
            self._retained[record.topic] = Packet(
                topic=packet.topic, payload=packet.payload, qos=packet.qos, retain=True
            )


def play(rehearsal: Rehearsal, records: Iterator[Record]) -> None:
    """Play a whole tape, or until something differs."""
    try:
        for record in records:
            rehearsal.take(record)
            if rehearsal.difference is not None:
                return
        rehearsal.finish()
    finally:
        rehearsal.close()
