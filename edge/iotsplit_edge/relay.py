"""What an edge only passes on: it concerns the two ends of a session."""

from iotsplit.messages import Frame, TailGradient, TailHidden, Want
from iotsplit.plan import Tier
from iotsplit.role import Output
from iotsplit.session import Backup, wanted_by
from iotsplit_edge.work import EdgeWork

OTHER_END = {Tier.DEVICE: Tier.CLOUD, Tier.CLOUD: Tier.DEVICE}


def pass_on(backup: Backup, work: EdgeWork, frame: Frame) -> list[Output]:
    """Hand a frame that concerns only the ends to the other end, once.

    Raises:
        PeerError: its tensor does not fit. What is kept is not taken a second time: garbage would stand in
            the way of the real one.
    """
    key = (frame.step, frame.micro_batch)
    if frame.identity in backup:
        return []
    if isinstance(frame.content, TailHidden | TailGradient):
        if not work.knows(key):
            return []
        work.check(key, frame.content)
    return [backup.keep(frame.content, OTHER_END[frame.tier], key)]


def answer(backup: Backup, frame: Frame, want: Want) -> list[Output]:
    """What was asked for, or the question passed on to the other end; what is remembered only edges ask for."""
    again = backup.again(wanted_by(frame, want))
    if again is not None and again.to_tier is frame.tier:
        return [again]
    if want.samples:
        return []
    return [backup.send(want, OTHER_END[frame.tier], (frame.step, frame.micro_batch))]
