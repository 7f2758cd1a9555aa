"""A session of held-out data on the edge: up it goes, and the scores come back. No I/O."""

from collections.abc import Sequence

import msgspec

from iotsplit.errors import DivergedError
from iotsplit.messages import Activation, Frame, Message, Score, Stuck, TailHidden, Want
from iotsplit.plan import Labels, Tier
from iotsplit.role import Output
from iotsplit.session import Awaited, Backup
from iotsplit.settings import TrainingSettings
from iotsplit.states import Assignment
from iotsplit.tensors.exchange import CodecError
from iotsplit_edge.relay import OTHER_END, answer, pass_on
from iotsplit_edge.work import EdgeWork

KEPT_EVALUATIONS = 8
"""Micro-batches of an evaluation that are kept: more than are on their way at once."""


class Evaluation:
    """Held-out data: every micro-batch by itself, in any order; nothing is remembered but what was sent.

    It needs no timers: the ends ask for what is late, and the edge answers or passes the question on.
    """

    def __init__(self, assignment: Assignment, settings: TrainingSettings, work: EdgeWork) -> None:
        self.rewind_to: int | None = None
        self.awaited = Awaited()
        self.backup = Backup(assignment, Tier.EDGE, every=settings.checkpoint_every)
        self._work = work
        scorer = Tier.DEVICE if settings.labels is Labels.DEVICE else Tier.CLOUD
        self._source = {TailHidden: Tier.CLOUD, Score: scorer}

    def begin(self, now: float) -> list[Output]:
        """Nothing has to be found first."""
        del now
        return []

    def end_early(self, assignment: Assignment) -> list[Output]:
        """Nothing: scores are not carried."""
        del assignment
        return []

    def handle(self, frame: Frame, now: float) -> list[Output]:
        """Take a frame from the device or from the cloud."""
        del now
        match frame.content:
            case Want() if frame.tier is Tier.DEVICE and not self._work.knows((frame.step, 0)):
                # It went through another edge: here it has to come by first.
                return [self.backup.send(Want(wanted="activation"), Tier.DEVICE, (frame.step, 0))]
            case Want() as want:
                return answer(self.backup, frame, want)
            case Activation() as content if frame.tier is Tier.DEVICE:
                return [self._answered(frame) or self._send_up(frame.step, content)]
            case TailHidden() | Score() as content if frame.tier is self._source[type(content)]:
                return pass_on(self.backup, self._work, frame)
            case Stuck(unfit=True) as stuck if frame.tier is Tier.DEVICE:
                return [self.backup.send(stuck, Tier.CLOUD, (frame.step, frame.micro_batch))]
        return []

    def _answered(self, frame: Frame) -> Frame | None:
        """The answer that is here already: the device has started again and goes through all its data."""
        kinds = ("score", "tail_hidden")
        answers = [self.backup.again(msgspec.structs.replace(frame.identity, kind=kind)) for kind in kinds]
        return next((each for each in answers if each is not None and each.to_tier is Tier.DEVICE), None)

    def _send_up(self, step: int, content: Activation) -> Frame:
        try:
            up = self._work.forward((step, 0), content, training=False)
        except DivergedError as error:
            return self.backup.send(Stuck(reason=str(error), unfit=True), Tier.CLOUD, (step, 0))
        for tier in OTHER_END:
            self.backup.trim(tier, step - KEPT_EVALUATIONS)
        self._work.trim(step - KEPT_EVALUATIONS)
        return self.backup.keep(up, Tier.CLOUD, (step, 0))

    def ask(self, now: float) -> list[Output]:
        """Nothing."""
        del now
        return []

    def codec_errors(self) -> list[CodecError]:
        """Nothing: what is lost of held-out data is not measured."""
        return []

    def owned(self) -> dict[str, Sequence[Message]]:
        """Nothing."""
        return {}
