"""Runs one role for real: one loop for link, clock and disk, one worker thread for the role's work."""

import contextlib
import os
import queue
import resource
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from iotsplit import __version__
from iotsplit.agent import Agent
from iotsplit.errors import RefusedError, UsageError
from iotsplit.limits import fitting, is_chunk
from iotsplit.messages import Message
from iotsplit.packet import Packet
from iotsplit.plan import Tier
from iotsplit.role import Output
from iotsplit.runtime import clock
from iotsplit.runtime.link import Link, LinkChange
from iotsplit.states import Birth, Command

HEARTBEAT_S = 5.0
GREETING_S = 10.0
MAX_INBOX_PACKETS = 20_000

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Done:
    outputs: Sequence[Output]
    error: BaseException | None = None


class _NamesakeError(Exception):
    """A later incarnation of this agent is somebody else."""

    def __init__(self, refusal: RefusedError) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


class _Stop:
    """Ends the loop."""


class Runner:
    """The only place where an agent meets threads, time and the network.

    The loop thread owns link, mailbox and sink. The worker thread only runs the role, one call at a
    time, so a slow tensor step never holds up a heartbeat, and roles need no locks.

    Args:
        agent: the role with its mailbox.
        link: the connection to the bus.
        largest_bytes: largest message that the agent will send; the broker has to pass it on.
        most_filters: subscriptions that the broker allows; None for any number.
        beacons: retained messages that tell others of the agent; they stay until it has finished.
    """

    def __init__(
        self,
        agent: Agent,
        link: Link,
        *,
        largest_bytes: int = 0,
        most_filters: int | None = None,
        beacons: Sequence[Packet] = (),
    ) -> None:
        self._agent = agent
        self._link = link
        self._largest_bytes = largest_bytes
        self._most_filters = most_filters
        self._filters: frozenset[str] = frozenset()
        self._left_out = 0
        self._beacons = beacons
        self._inbox: queue.SimpleQueue[Packet | LinkChange | _Done | Message | _Stop] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[Message | LinkChange | float | None] = queue.SimpleQueue()
        self._letters: deque[Message | LinkChange] = deque()
        self._working = False
        self._stopping = False
        self._heartbeat_at = 0.0
        self._busy_s = 0.0  # written by the worker only

    def post(self, message: Message) -> None:
        """Give the role a message from this machine; any thread may call it."""
        self._inbox.put(message)

    def stop(self) -> None:
        """End the loop soon; any thread and signal handlers may call it."""
        self._inbox.put(_Stop())

    def run(self) -> None:
        """Run until the role has finished or `stop` is called.

        Raises:
            UserError: the broker refuses, or the role finds something that a person has to mend.
        """
        worker = threading.Thread(target=self._work, name="role", daemon=True)
        worker.start()
        self._link.open(self._deliver, last_will=self._agent.last_will)
        problem: str | None = ""
        try:
            self._greet()
            self._say([*self._agent.birth(renew=True), *self._beacons])
            self._loop()
            if self._agent.role.finished:
                self._say([replace(beacon, payload=b"") for beacon in self._beacons])
        except _NamesakeError as error:
            problem = None  # the state topic is the other's now
            raise error.refusal from None
        except Exception as error:
            problem = " ".join(str(error).split()) or type(error).__name__
            raise
        finally:
            self._jobs.put(None)
            with contextlib.suppress(OSError):
                if problem is not None:
                    self._say(self._agent.farewell(problem))
                self._link.close()

    def _greet(self) -> None:
        """Learn whether the broker passes our largest messages, and what it remembers of us.

        A board without a clock of its own may have started in 1970: its incarnation then follows the one
        that the broker remembers, and it connects again so that its last will carries it too.

        Raises:
            UsageError: the broker does not pass the message on.
        """
        remembered = self._send_to_self()
        if remembered >= self._agent.role.birth.incarnation:
            self._link.close()
            self._agent.renew(remembered + 1)
            self._link.open(self._deliver, last_will=self._agent.last_will)

    def _send_to_self(self) -> int:
        """Send the largest message to ourselves; gives the incarnation that comes before it, or -1."""
        own, probe = self._agent.state_topic, self._agent.probe_topic
        self._link.subscribe(frozenset({own, probe}))
        largest = Packet(topic=probe, payload=bytes(self._largest_bytes), qos=0)
        self._link.publish(largest)
        remembered = -1
        deadline = clock.now() + GREETING_S
        while True:
            try:
                event = self._inbox.get(timeout=max(0.0, deadline - clock.now()))
            except queue.Empty:
                raise UsageError(
                    f"the broker does not pass on a message of {self._largest_bytes} bytes on {probe}",
                    fix="use a smaller --chunk-bytes, or look at the broker's size limit and access rules",
                ) from None
            if isinstance(event, _Stop):
                self._stopping = True
                return remembered
            if isinstance(event, LinkChange) and event.up:
                self._link.publish(largest)  # the first one went down with the connection
            if not isinstance(event, Packet):
                continue
            if event.topic == probe:
                return remembered
            birth = self._agent.decode(event) if event.topic == own and event.retain else None
            if isinstance(birth, Birth):
                remembered = max(remembered, birth.incarnation)

    def _deliver(self, event: Packet | LinkChange) -> None:
        # Nothing relies on delivery: what is dropped here is asked for again.
        if isinstance(event, LinkChange) or self._inbox.qsize() + len(self._letters) < MAX_INBOX_PACKETS:
            self._inbox.put(event)

    def _loop(self) -> None:
        self._subscribe()
        while not self._stopping:
            self._beat()
            self._give_work(clock.now())
            with contextlib.suppress(queue.Empty):
                self._take(self._inbox.get(timeout=max(0.0, self._wait_s(clock.now()))))

    def _wait_s(self, now: float) -> float:
        until_heartbeat = self._heartbeat_at - now
        if self._working:
            return until_heartbeat
        return min(until_heartbeat, self._agent.role.next_tick(now) - now)

    def _give_work(self, now: float) -> None:
        if self._working:
            return
        if self._letters:
            self._working = True
            self._jobs.put(self._letters.popleft())
        elif self._agent.role.next_tick(now) <= now:
            self._working = True
            self._jobs.put(now)

    def _take(self, event: Packet | LinkChange | _Done | Message | _Stop) -> None:
        match event:
            case Packet():
                message = self._agent.decode(event)
                if isinstance(message, Birth) and message.agent == self._agent.role.agent:
                    self._check_own_state(message)
                if message is not None:
                    self._letters.append(message)
            case LinkChange(up=True):
                log.info("broker is back")
                self._say([*self._agent.birth(renew=True), *self._beacons])
                self._letters.append(event)
            case LinkChange():
                log.warning("broker is away", reason=event.reason)
            case _Done():
                self._finish(event)
            case _Stop():
                self._stopping = True
            case _:
                self._letters.append(event)

    def _finish(self, done: _Done) -> None:
        self._working = False
        if done.error is not None:
            raise done.error
        for packet in self._agent.encode(done.outputs):
            self._link.publish(packet)
            self._beat()  # a slow link may take long for all of it
        self._say(self._agent.birth())
        self._subscribe()
        if self._agent.role.finished and not self._letters:
            self._stopping = True

    def _beat(self) -> None:
        """Give a sign of life when it is time."""
        now = clock.now()
        if now >= self._heartbeat_at:
            self._heartbeat_at = now + HEARTBEAT_S
            self._say(self._agent.heartbeat(peak_rss_bytes(), round(self._busy_s, 3)))

    def _subscribe(self) -> None:
        wanted = self._agent.filters | {self._agent.state_topic}
        self._filters = fitting(wanted, self._filters, self._most_filters)
        self._link.subscribe(self._filters)
        left_out = sum(not is_chunk(each) for each in wanted - self._filters)
        if left_out > self._left_out:
            log.warning(
                "the broker allows too few subscriptions", allowed=self._most_filters, left_out=left_out
            )
        self._left_out = left_out

    def _check_own_state(self, birth: Birth) -> None:
        # Also when it is offline: the broker lets only one of two namesakes in, so each finds the other's will.
        if birth.incarnation > self._agent.role.birth.incarnation:
            refusal = RefusedError(
                f"another agent named {birth.agent} has joined this fleet (process {birth.pid})",
                fix="give each agent an --id of its own",
            )
            raise _NamesakeError(refusal)
        if not birth.online and birth != self._agent.role.birth:
            self._say(self._agent.birth(renew=True))  # an earlier incarnation's last words

    def _say(self, packets: Sequence[Packet]) -> None:
        for packet in packets:
            self._link.publish(packet)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                outputs = self._do(job)
                self._inbox.put(_Done(outputs))
            except BaseException as error:  # noqa: BLE001 - raised again by the loop
                self._inbox.put(_Done((), error))

    def _do(self, job: Message | LinkChange | float) -> Sequence[Output]:
        began = clock.now()
        try:
            return self._outputs(job, began)
        finally:
            self._busy_s += clock.now() - began

    def _outputs(self, job: Message | LinkChange | float, now: float) -> Sequence[Output]:
        match job:
            case float():
                return self._agent.tick(job)
            case LinkChange():
                return self._agent.role.reconnected(now)
        return self._agent.handle(job, now)


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
    if sys.platform.startswith("linux"):
        # Not getrusage: its peak begins with that of the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def new_birth(agent: str, role: Tier, *, model: str, part: str = "all", threads: int) -> Birth:
    """The birth of this start of an agent: later than any before it on this machine."""
    return Birth(
        agent=agent,
        role=role,
        online=True,
        incarnation=clock.wall_ns() // 1_000_000,
        version=__version__,
        pid=os.getpid(),
        model=model,
        part=part,
        threads=threads,
    )


def due_command() -> Command:
    """What the round clock says to the cloud."""
    return Command(id="clock", verb="due")
