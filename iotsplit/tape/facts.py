"""What has to be known of an agent before a tape can be held against it: gathered in a first reading. Pure."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from iotsplit.chunks import CHUNK_BYTES
from iotsplit.errors import PeerError, UsageError
from iotsplit.flags import suggest
from iotsplit.messages import Resume, decode_content
from iotsplit.plan import Tier
from iotsplit.settings import FleetSettings, TrainingSettings
from iotsplit.states import AdapterHead, Assignment, Birth, CheckpointHead, Event, Round, decode_state
from iotsplit.tape.casting import Props
from iotsplit.tape.format import Header, Record
from iotsplit.tape.letters import Letter, Listener, find_topics
from iotsplit.tape.measures import Recent
from iotsplit.topics import Topics

MOST_INCARNATIONS = 1024
MOST_SESSIONS = 4096


@dataclass(slots=True)
class Start:
    """One incarnation of the agent.

    Args:
        birth: the first that it said.
        is_retained: it said so before the tape.
        fingerprint: of its data, if it told.
        resumed_at: the step that it first said it stands before, if it did.
        run: of the cloud: what its sessions' names begin with.
    """

    birth: Birth
    is_retained: bool = False
    fingerprint: str = ""
    resumed_at: int | None = None
    run: str = ""


@dataclass(slots=True)
class Facts:
    """An agent's part in a tape.

    Args:
        topics: of its fleet.
        agent: its id.
        starts: by incarnation, in order.
        partial: sessions that had begun before the tape did.
        training: the fleet's settings.
        fleet: who was there when the first session was dealt.
        chunk_bytes: its largest message.
        base: what its adapters say that their model is called.
        before: what the agent had done when the tape began, in words; empty if it begins with the tape.
    """

    topics: Topics
    agent: str
    starts: "OrderedDict[int, Start]" = field(default_factory=OrderedDict)
    partial: set[str] = field(default_factory=set)
    training: TrainingSettings | None = None
    fleet: FleetSettings | None = None
    chunk_bytes: int = CHUNK_BYTES
    base: str = ""
    before: str = ""

    @property
    def tier(self) -> Tier:
        """The agent's tier."""
        return next(iter(self.starts.values())).birth.role

    def props(self, start: Start, *, model: str, disk: Path) -> Props:
        """What the tape knows of an incarnation.

        Args:
            start: the incarnation.
            model: name or directory of the model, or of the agent's part.
            disk: what the agent keeps lies here, from one incarnation to the next.
        """
        return Props(
            birth=start.birth,
            model=model,
            disk=disk,
            chunk_bytes=self.chunk_bytes,
            training=self.training,
            fleet=self.fleet or FleetSettings(),
            fleet_name=self.topics.fleet,
            base=self.base,
            run=start.run,
            resumed_at=start.resumed_at,
        )


class Reading:
    """The first reading of a tape.

    Args:
        header: of the tape.
        tier: of the agent.
        agent: its id; None for the only one of its tier.
    """

    def __init__(self, header: Header, *, tier: Tier, agent: str | None = None) -> None:
        self._header = header
        self._tier, self._wanted = tier, agent
        self._listener: Listener | None = None
        self._births: dict[str, OrderedDict[int, Start]] = {}  # of the tier, by agent
        self._online: dict[Tier, set[str]] = {each: set() for each in Tier}
        self._heard: OrderedDict[str, None] = OrderedDict()  # sessions of assignments
        self._partial: set[str] = set()
        self._begun: OrderedDict[str, None] = OrderedDict()
        self._training: TrainingSettings | None = None
        self._fleet: FleetSettings | None = None
        self._probes: dict[str, int] = {}
        self._cut_bytes = 0  # of the first piece of something that was cut
        self._pieces: Recent[tuple[str, ...], int] = Recent(MOST_SESSIONS)  # their sizes
        self._base = ""
        self._before: dict[str, str] = {}  # of the cloud's past, by what tells it

    def read(self, records: Iterable[Record]) -> Facts:
        """Read all of a tape.

        Raises:
            UsageError: the agent is not in it, or it is not clear which one is meant.
        """
        record = None
        for record in records:
            if self._listener is None:
                topics = find_topics(self._header, record.topic)
                self._listener = Listener(topics) if topics is not None else None
            if self._listener is not None and (letter := self._listener.take(record)) is not None:
                try:
                    self._take(letter)
                except PeerError:
                    continue
        if record is None:
            raise UsageError("the tape holds no messages", fix="record again")
        if self._listener is None:
            raise UsageError(
                "the tape is of no fleet of iotsplit", fix="replay it into a broker, without --against"
            )
        agent = self._agent()
        return Facts(
            topics=self._listener.topics,
            agent=agent,
            starts=self._births[agent],
            partial=self._partial,
            training=self._training,
            fleet=self._fleet,
            chunk_bytes=self._probes.get(agent) or self._cut_bytes or CHUNK_BYTES,
            base=self._base,
            before=self._past(agent),
        )

    def _past(self, agent: str) -> str:
        """What the cloud had done before the tape; others begin anew with each session."""
        first = next(iter(self._births[agent].values()))
        if agent in self._before or not first.is_retained:
            return self._before.get(agent, "")
        return self._before.get("", "")

    def _agent(self) -> str:
        known = sorted(self._births)
        if self._wanted is not None and self._wanted not in self._births:
            raise UsageError(
                f"no {self._tier} named {self._wanted} is on the tape{suggest(self._wanted, known)}",
                fix=f"there are: {', '.join(known) or 'none'}",
            )
        if self._wanted is not None:
            return self._wanted
        if not known:
            raise UsageError(f"no {self._tier} is on the tape", fix="see iotsplit inspect TAPE for who is")
        if len(known) > 1:
            raise UsageError(
                f"the tape holds {len(known)} agents of this tier",
                fix=f"say which with --agent: {', '.join(known)}",
            )
        return known[0]

    # --- what is in it

    def _take(self, letter: Letter) -> None:
        match letter.first:
            case "state" if letter.body:
                self._birth(decode_state(letter.body, Birth), letter.record)
            case "assign" if letter.body:
                self._assignment(decode_state(letter.body, Assignment), letter.record)
            case "round" | "events" if letter.body:
                self._past_told(letter)
            case "probe":
                self._probes[letter.sender] = len(letter.body)
            case "adapter":
                self._adapter(letter)
            case "checkpoint":
                self._checkpoint(letter)
            case "lan" | "wan":
                self._frame(letter)

    def _birth(self, birth: Birth, record: Record) -> None:
        if birth.online:
            self._online[birth.role].add(birth.agent)
        else:
            self._online[birth.role].discard(birth.agent)
        if birth.role is not self._tier:
            return
        starts = self._births.setdefault(birth.agent, OrderedDict())
        if birth.online and birth.incarnation not in starts and len(starts) < MOST_INCARNATIONS:
            # One that was there before the tape has loaded what it will ever load.
            said = birth if record.retain else _unbuilt(birth)
            starts[birth.incarnation] = Start(said, is_retained=record.retain)
        if birth.data is not None and birth.incarnation in starts:
            starts[birth.incarnation].fingerprint = birth.data.fingerprint

    def _assignment(self, said: Assignment, record: Record) -> None:
        if said.settings is None:
            return
        if self._fleet is None:
            self._training = said.settings
            devices, edges = (max(1, len(self._online[tier])) for tier in (Tier.DEVICE, Tier.EDGE))
            self._fleet = FleetSettings(devices=devices, edges=edges, schedule="every 1000d")
        if record.retain and said.session not in self._begun and len(self._partial) < MOST_SESSIONS:
            self._partial.add(said.session)
        if record.retain:
            self._before.setdefault("", f"was in session {said.session}")
        is_new = said.session not in self._heard and not record.retain  # others keep the word of another run
        self._heard[said.session] = None
        if len(self._heard) > MOST_SESSIONS:
            self._heard.popitem(last=False)
        if is_new and self._tier is Tier.CLOUD and said.cloud in self._births:
            start = next(reversed(self._births[said.cloud].values()), None)
            if start is not None and not start.run:
                start.run = said.session.removesuffix(f"-{said.device}").rpartition("-")[0]

    def _past_told(self, letter: Letter) -> None:
        if letter.first == "round":
            said = decode_state(letter.body, Round)
            if letter.record.retain and (said.round or said.phase != "waiting"):
                self._before.setdefault("", f"was {said.phase} in round {said.round}")
            return
        event = decode_state(letter.body, Event)
        if event.kind == "cloud_resumed" and len(self._births.get(event.agent, ())) == 1:
            self._before[event.agent] = f"went on {event.detail}"

    def _adapter(self, letter: Letter) -> None:
        if letter.words[-1] == "head" and letter.body:
            head = decode_state(letter.body, AdapterHead)
            self._base = self._base or str(head.peft.get("base_model_name_or_path", ""))
            if letter.record.retain and head.version:
                self._before.setdefault("", f"had made adapter version {head.version}")
            for section in head.sections.values():
                self._see_cut(section.chunks, (letter.words[0], str(section.first)))
        self._pieces.put(letter.words, len(letter.body))

    def _checkpoint(self, letter: Letter) -> None:
        if letter.words[-1] == "head" and letter.body:
            head = decode_state(letter.body, CheckpointHead)
            self._see_cut(head.chunks, (*letter.words[:-1], "0"))
        self._pieces.put(letter.words, len(letter.body))

    def _see_cut(self, pieces: int, first: tuple[str, ...]) -> None:
        """The first of several pieces is as large as messages may be."""
        self._cut_bytes = self._cut_bytes or ((self._pieces.get(first) or 0) if pieces > 1 else 0)

    def _frame(self, letter: Letter) -> None:
        self._begun[letter.session] = None
        if len(self._begun) > MOST_SESSIONS:
            self._begun.popitem(last=False)
        starts = self._births.get(letter.sender)
        if letter.kind != "resume" or not starts:
            return
        content = decode_content(letter.body)
        start = next(reversed(starts.values()))
        if isinstance(content, Resume) and start.resumed_at is None and len(starts) > 1:
            start.resumed_at = content.step


def _unbuilt(birth: Birth) -> Birth:
    """A birth as it was before the agent had loaded anything."""
    return msgspec.structs.replace(birth, data=None, part_parameters=0, trainable_parameters=0, problem="")
