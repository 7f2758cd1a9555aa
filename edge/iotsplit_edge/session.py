"""One session on the edge: activations go up, gradients come down, what concerns only the ends is passed on."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from iotsplit.errors import PeerError, TensorRefusedError
from iotsplit.messages import (
    Activation,
    CloudRows,
    DeviceRows,
    Frame,
    Gradient,
    Identity,
    Message,
    Resume,
    Stuck,
    TailGradient,
    TailHidden,
    Update,
    Want,
)
from iotsplit.plan import Labels, Tier
from iotsplit.retained import clear_checkpoint, cut_checkpoint
from iotsplit.role import Output, Refused
from iotsplit.session import Awaited, Backup, Turns, reach, steps_kept, wanted_by
from iotsplit.settings import TrainingSettings
from iotsplit.states import Assignment, CheckpointHead, Metrics
from iotsplit.tensors.exchange import CodecError
from iotsplit_edge.relay import answer, pass_on
from iotsplit_edge.remembering import ROWS
from iotsplit_edge.start import Start
from iotsplit_edge.work import EdgeWork, Key

SOURCE = {
    "activation": Tier.DEVICE,
    "tail_hidden": Tier.CLOUD,
    "tail_gradient": Tier.DEVICE,
    "gradient": Tier.CLOUD,
}
"""Which side each kind comes from in a training session."""


class EdgeSession(Protocol):
    """A session from the edge's side."""

    backup: Backup
    awaited: Awaited
    rewind_to: int | None
    """A step that the session has to go back to, with a checkpoint that it does not hold."""

    def begin(self, now: float) -> list[Output]:
        """Start."""

    def end_early(self, assignment: Assignment) -> list[Output]:
        """The session is over after the assignment's steps: the others have gone on without it."""

    def handle(self, frame: Frame, now: float) -> list[Output]:
        """Take a frame from the device or from the cloud."""

    def ask(self, now: float) -> list[Output]:
        """Requests for what is late."""

    def codec_errors(self) -> list[CodecError]:
        """What the codec has lost of tensors that were sent since the last call."""

    def owned(self) -> dict[str, Sequence[Message]]:
        """What the session has on the broker: messages by the path of their head."""


class Training:
    """Training steps, strictly in the order of steps and micro-batches.

    Args:
        start: the session, and what of it was found on the broker.
        settings: the fleet's.
        work: the tensor side, at the state that the session begins with.
        turns: numbers the edge's Resume messages.
        chunk_bytes: largest chunk of a checkpoint.
    """

    def __init__(
        self, start: Start, settings: TrainingSettings, work: EdgeWork, *, turns: Turns, chunk_bytes: int
    ) -> None:
        self.awaited = Awaited()
        self.backup = Backup(start.assignment, Tier.EDGE, every=settings.checkpoint_every)
        self.rewind_to: int | None = None
        self._settings = settings
        self._work = work
        self._turns = turns
        self._chunk_bytes = chunk_bytes
        self._takes_over = start.takes_over
        self._on_broker: list[CheckpointHead] = list(start.heads.values())
        self._owned: dict[str, list[Message]] = {}
        self._trained_tokens = start.chosen.tokens if start.chosen else 0
        first = start.chosen.step if start.chosen else 0
        self.backup.restart(first, newest=max([first, *(head.step for head in self._on_broker)]))
        self._forward: Key = (first, 0)  # next to go up
        self._backward: Key = (first, 0)  # next to come down
        self._early: dict[Key, Frame] = {}
        self._gradients: dict[Key, Frame] = {}
        self._step_tokens = 0
        self._problem = ""
        self._labels_stay = settings.labels is Labels.DEVICE

    def begin(self, now: float) -> list[Output]:
        """Ask both neighbours for what they kept, if the session has been somewhere before."""
        if self._is_over:
            return [self._update()]
        self._expect_activations(now)
        if not self._takes_over:
            return []
        return [self._resume(Tier.DEVICE), self._resume(Tier.CLOUD)]

    def end_early(self, assignment: Assignment) -> list[Output]:
        """Forget what is of later steps, and bring what was trained once we have come so far."""
        self.backup.reassign(assignment)
        self.awaited.forget_from(assignment.steps)
        for held in (self._early, self._gradients):
            for key in [key for key in held if key[0] >= assignment.steps]:
                del held[key]
        if self._backward[0] > assignment.steps:
            self.rewind_to = assignment.steps
            return []
        return [self._update()] if self._is_over else []

    @property
    def _is_over(self) -> bool:
        return self._backward[0] >= self.backup.assignment.steps

    def _update(self) -> Frame:
        update = Update(tier=Tier.EDGE, tokens=self._trained_tokens, tensors=self._work.update())
        return self.backup.keep(update, Tier.CLOUD, (self._backward[0], 1))

    def handle(self, frame: Frame, now: float) -> list[Output]:
        """Take a frame from the device or from the cloud."""
        if self._problem:
            return self._give_up(self._problem)  # the cloud may not have heard of it
        if isinstance(frame.content, Want | Resume | Stuck | DeviceRows | CloudRows):
            return self._reply(frame, now)
        key = (frame.step, frame.micro_batch)
        from_below = frame.tier is Tier.DEVICE
        match frame.content:
            case Activation() if from_below and self._forward <= key and self._is_near(key):
                self._early[key] = frame
            case Gradient() if not from_below and self._backward <= key and self._is_near(key):
                self._gradients[key] = frame
            case TailHidden() if not from_below and key < self._forward:
                return self._pass_on(frame, now)
            case TailGradient() if from_below and key < self._forward:
                return self._pass_on(frame, now)
            case _:
                return []  # a repetition, or from the wrong side
        return self._go_on(now)

    def _pass_on(self, frame: Frame, now: float) -> list[Output]:
        try:
            said = pass_on(self.backup, self._work, frame)
        except PeerError as error:
            if self.awaited.is_hopeless(frame.identity, error):
                return self._give_up(str(error))
            raise
        key = (frame.step, frame.micro_batch)
        self.awaited.arrived(frame.identity, now)
        if said and isinstance(frame.content, TailHidden):
            self.awaited.expect(self._identity("tail_gradient", key), now)
        return said

    def _give_up(self, problem: str) -> list[Output]:
        """Leave the round: no step can follow this one."""
        self._problem = problem
        self._early.clear()
        self._gradients.clear()
        self.awaited = Awaited()
        return [self.backup.send(Stuck(reason=problem, unfit=True), Tier.CLOUD)]

    def _reply(self, frame: Frame, now: float) -> list[Output]:
        match frame.content:
            case DeviceRows() | CloudRows() as rows:
                return self._recall(frame, rows, now)
            case Want() as want:
                return self._answer(frame, want)
            case Resume() as resume if self.backup.is_news(frame, resume):
                return self._send_again(frame, resume.step)
            case Stuck(unfit=True) as stuck if frame.tier is Tier.DEVICE:
                return [self.backup.send(stuck, Tier.CLOUD, (frame.step, frame.micro_batch))]
        return []

    def ask(self, now: float) -> list[Output]:
        """Requests for what is late."""
        return [self._want(late) for late in self.awaited.late(now, self._here)]

    def _want(self, identity: Identity) -> Frame:
        samples = tuple(self._lost().get(identity.kind, ()))
        source = (SOURCE | ROWS)[identity.kind]
        want = Want(wanted=identity.kind, samples=samples)
        return self.backup.send(want, source, (identity.step, identity.micro_batch))

    def codec_errors(self) -> list[CodecError]:
        """What the codec has lost of tensors that were sent since the last call."""
        return self._work.codec_errors()

    def owned(self) -> dict[str, Sequence[Message]]:
        """The last checkpoints, by the path of their head."""
        return dict(self._owned)

    def clear(self) -> list[Output]:
        """Take the session's checkpoints off the broker: it is over."""
        cleared: list[Output] = [message for head in self._on_broker for message in clear_checkpoint(head)]
        self._on_broker, self._owned = [], {}
        return cleared

    def _is_near(self, key: Key) -> bool:
        """Whether a place is among those that may be held; what comes later will be asked for."""
        far = self._backward[0] + steps_kept(self._settings.checkpoint_every)
        return key[0] < min(far, self.backup.assignment.steps) and key[1] < self._settings.micro_batches

    @property
    def _here(self) -> set[Identity]:
        """What has come and waits for its turn."""
        return {frame.identity for held in (self._early, self._gradients) for frame in held.values()}

    def _go_on(self, now: float) -> list[Output]:
        said: list[Output] = []
        while (frame := self._next_frame()) is not None:
            try:
                match frame.content:
                    case Activation() as content:
                        said += self._send_up(content, now)
                    case Gradient() as content:
                        said += self._send_down(content, now)
            except PeerError as error:
                said.append(Refused(message=frame, error=error))
                if self.awaited.is_hopeless(frame.identity, error):
                    said += self._give_up(str(error))
        return [*said, *self._ask_for_rows(now)]

    def _next_frame(self) -> Frame | None:
        """What can be treated now; activations of a step only when the step before is over."""
        if self._forward[0] == self._backward[0] and self._forward in self._early and not self._lost():
            return self._early.pop(self._forward)
        return self._gradients.pop(self._backward, None) if self._backward < self._forward else None

    def _lost(self) -> Mapping[str, Sequence[int]]:
        """Samples that the next activation needs and that are lost, by the kind of frame that has them."""
        frame = self._early.get(self._forward)
        if frame is None or not isinstance(frame.content, Activation):
            return {}
        try:
            return self._work.missing(self._forward, frame.content)
        except PeerError:
            return {}  # it is refused when its turn comes

    def _ask_for_rows(self, now: float) -> list[Output]:
        asked = [self._identity(kind, self._forward) for kind in self._lost()]
        new = [identity for identity in asked if identity not in self.awaited]
        for identity in new:
            self.awaited.expect(identity, now)
        return [self._want(identity) for identity in new]

    def _recall(self, frame: Frame, rows: DeviceRows | CloudRows, now: float) -> list[Output]:
        """Take in what a neighbour still remembers of the next activation's samples."""
        activation = self._early.get(self._forward)
        wanted = frame.identity in self.awaited and frame.tier is ROWS[frame.identity.kind]
        if not wanted or activation is None or not isinstance(activation.content, Activation):
            return []
        try:
            self._work.recall(self._forward, activation.content, rows)
            if frame.identity.kind in self._lost():
                raise TensorRefusedError("not all that was asked for is remembered")
        except PeerError as error:
            if self.awaited.is_hopeless(frame.identity, error):
                return self._give_up(str(error))
            raise
        self.awaited.arrived(frame.identity, now)
        return self._go_on(now)

    def _send_up(self, content: Activation, now: float) -> list[Output]:
        key = self._forward
        up = self._work.forward(key, content, training=True)
        if key[1] == 0:
            self._step_tokens = content.step_tokens
        self._forward = self._after(key)
        for kind in ("activation", *ROWS):
            self.awaited.arrived(self._identity(kind, key), now)
        self.awaited.expect(self._identity("gradient", key), now)
        if self._labels_stay:
            self.awaited.expect(self._identity("tail_hidden", key), now)
        return [self.backup.keep(up, Tier.CLOUD, key)]

    def _send_down(self, content: Gradient, now: float) -> list[Output]:
        key = self._backward
        down = self._work.backward(key, content)
        self._backward = self._after(key)
        for kind in ("tail_hidden", "tail_gradient", "gradient"):
            self.awaited.arrived(self._identity(kind, key), now)
        said: list[Output] = [self.backup.keep(down, Tier.DEVICE, key)]
        return [*said, *self._finish_step(key[0], now)] if self._backward[0] > key[0] else said

    def _finish_step(self, step: int, now: float) -> list[Output]:
        self._work.step()
        self._work.trim(self.backup.floor(Tier.DEVICE))
        self._trained_tokens += self._step_tokens
        said: list[Output] = [self._metrics(step)]
        if self._is_over:
            return [*said, self._update()]
        said += self._save(step + 1)
        self._expect_activations(now)
        return said

    def _save(self, step: int) -> list[Output]:
        """Put a checkpoint on the broker: it is whole there before anything that is said later arrives."""
        if step % self._settings.checkpoint_every or step <= self.backup.checkpoint:
            return []
        assignment = self.backup.assignment
        chunks, head = cut_checkpoint(
            self._work.checkpoint(),
            place=(assignment.device, assignment.session, assignment.epoch, step),
            every=self._settings.checkpoint_every,
            tokens=self._trained_tokens,
            chunk_bytes=self._chunk_bytes,
        )
        said: list[Message] = [*chunks, head]
        self._owned[f"{head.path}/head"] = said
        self.backup.checkpoint = step
        self._on_broker.append(head)
        return [*said, *self._clear_before(step - reach(Tier.EDGE, self._settings.checkpoint_every))]

    def _clear_before(self, step: int) -> list[Output]:
        old = [head for head in self._on_broker if head.step < step]
        self._on_broker = [head for head in self._on_broker if head.step >= step]
        for head in old:
            self._owned.pop(f"{head.path}/head", None)
        return [message for head in old for message in clear_checkpoint(head)]

    def _send_again(self, frame: Frame, step: int) -> list[Output]:
        """What a neighbour needs from a step on; it has come back and stands there."""
        if step > self._backward[0]:
            return [self._resume(frame.tier)]  # it has come back further ahead than we have
        if self.backup.covers(frame.tier, step):
            return list(self.backup.since(frame.tier, step))
        if step < self.backup.floor(frame.tier):
            # Going back as well would send the neighbours back in turn, again and again.
            return [self._stuck(frame)]
        self.rewind_to = step
        return []

    def _stuck(self, frame: Frame) -> Frame:
        """A neighbour has lost what it had saved: the round has to be done again."""
        reason = f"{frame.sender} has lost what it had saved"
        return self.backup.send(Stuck(reason=reason), Tier.CLOUD)

    def _answer(self, frame: Frame, want: Want) -> list[Output]:
        ours = {Tier.DEVICE: "gradient", Tier.CLOUD: "activation"}[frame.tier]
        made = want.wanted == ours and frame.step < self._backward[0]
        if made and wanted_by(frame, want) not in self.backup:
            if frame.step >= self.backup.floor(frame.tier):
                self.rewind_to = frame.step  # its Resume was lost
                return []
            # What is older than its checkpoint is an old question; who has no checkpoint any more says less.
            has_lost = frame.checkpoint < self.backup.newest(frame.tier)
            return [self._stuck(frame)] if has_lost else []
        return answer(self.backup, frame, want)

    def _resume(self, to: Tier) -> Frame:
        return self.backup.send(self._turns.resume(self._backward[0]), to)

    def _expect_activations(self, now: float) -> None:
        for micro_batch in range(self._settings.micro_batches):
            self.awaited.expect(self._identity("activation", (self._backward[0], micro_batch)), now)

    def _identity(self, kind: str, key: Key) -> Identity:
        return Identity(self.backup.assignment.session, *key, kind)

    def _metrics(self, step: int) -> Metrics:
        assignment = self.backup.assignment
        return Metrics(
            agent=assignment.edge,
            role=Tier.EDGE,
            round=assignment.round,
            session=assignment.session,
            step=step,
            tokens=self._step_tokens,
        )

    def _after(self, key: Key) -> Key:
        step, micro_batch = key
        last = micro_batch == self._settings.micro_batches - 1
        return (step + 1, 0) if last else (step, micro_batch + 1)
