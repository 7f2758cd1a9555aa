"""What is kept, what is waited for, and where a session goes on after a loss."""

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.messages import (
    Frame,
    Gradient,
    Identity,
    Resume,
    TailHidden,
    Update,
    Want,
)
from iotsplit.plan import Tier
from iotsplit.session import (
    FIRST_PATIENCE_S,
    LEAST_PATIENCE_S,
    MAX_PATIENCE_S,
    SLOWEST_TIMES,
    Awaited,
    Backup,
    Turns,
    steps_kept,
    wanted_by,
)
from iotsplit.states import Assignment
from tests.unit.core.samples import TENSOR, frame

EVERY = 3
ASSIGNMENT = Assignment(device="d1", task="train", session="s", epoch=5, edge="e1", cloud="c")


def identity(step: int = 0, micro_batch: int = 0) -> Identity:
    return Identity("s", step, micro_batch, "gradient")


def edge(steps: int = 0, **changes: Any) -> Backup:
    """An edge's backup that has said a gradient in each of so many steps."""
    made = Backup(msgspec.structs.replace(ASSIGNMENT, **changes), Tier.EDGE, every=EVERY)
    for step in range(steps):
        made.keep(Gradient(gradient=TENSOR), Tier.DEVICE, (step, 0))
    return made


def from_device(checkpoint: int) -> Frame:
    return frame(Want(wanted="x"), checkpoint=checkpoint)


def steps_of(frames: list[Frame]) -> list[int]:
    return [each.step for each in frames]


# --- kept


def test_what_is_kept_is_addressed_by_the_assignment() -> None:
    said = edge().keep(TailHidden(hidden=TENSOR), Tier.DEVICE, (4, 1))
    assert (said.sender, said.to, said.epoch, said.session) == ("e1", "d1", 5, "s")
    assert (said.step, said.micro_batch, said.tier, said.to_tier) == (4, 1, Tier.EDGE, Tier.DEVICE)


def test_a_kept_frame_is_said_again_with_the_same_content() -> None:
    backup = edge(2)
    again = backup.again(identity(1))
    assert again is not None
    assert again.content == Gradient(gradient=TENSOR)
    assert identity(1) in backup


def test_what_was_only_sent_or_never_said_cannot_be_said_again() -> None:
    backup = edge()
    backup.send(Gradient(gradient=TENSOR), Tier.DEVICE, (1, 0))
    assert backup.again(identity(1)) is None
    assert len(backup) == 0


def test_after_a_move_kept_frames_go_to_the_new_edge_under_the_new_epoch() -> None:
    device = Backup(ASSIGNMENT, Tier.DEVICE, every=EVERY)
    device.keep(Gradient(gradient=TENSOR), Tier.EDGE, (0, 0))
    device.reassign(msgspec.structs.replace(ASSIGNMENT, edge="e2", epoch=6))
    again = device.again(identity())
    assert again is not None
    assert (again.to, again.epoch) == ("e2", 6)


def test_every_frame_carries_the_newest_checkpoint_also_when_it_is_said_again() -> None:
    backup = edge(1)
    backup.checkpoint = 6
    again = backup.again(identity())
    assert again is not None
    assert again.checkpoint == 6
    assert backup.send(Want(wanted="x"), Tier.CLOUD).checkpoint == 6


def test_a_request_names_the_frame_of_its_own_step_and_micro_batch() -> None:
    want = Want(wanted="gradient")
    assert wanted_by(frame(want, session="s", step=3, micro_batch=1), want) == identity(3, 1)


# --- what may be let go


def test_frames_are_kept_from_the_neighbours_last_but_one_checkpoint_on() -> None:
    backup = edge(10)
    backup.hear(from_device(checkpoint=EVERY))
    assert steps_of(backup.since(Tier.DEVICE, 0)) == list(range(10))
    backup.hear(from_device(checkpoint=2 * EVERY))
    assert steps_of(backup.since(Tier.DEVICE, 0)) == list(range(EVERY, 10))


def test_an_older_checkpoint_that_comes_late_changes_nothing() -> None:
    backup = edge(10)
    backup.hear(from_device(checkpoint=9))
    backup.hear(from_device(checkpoint=3))
    assert backup.newest(Tier.DEVICE) == 9
    assert backup.floor(Tier.DEVICE) == 6


def test_a_checkpoint_of_one_neighbour_says_nothing_of_the_other() -> None:
    backup = edge(10)
    backup.hear(frame(Want(wanted="x"), tier=Tier.CLOUD, checkpoint=9))
    assert steps_of(backup.since(Tier.DEVICE, 0)) == list(range(10))
    assert backup.floor(Tier.DEVICE) == 0


def test_frames_for_one_neighbour_are_told_apart_from_those_for_the_other() -> None:
    backup = edge(2)
    backup.keep(Update(tier=Tier.EDGE, tokens=1, tensors=b""), Tier.CLOUD, (9, 1))
    assert steps_of(backup.since(Tier.CLOUD, 0)) == [9]
    assert steps_of(backup.since(Tier.DEVICE, 1)) == [1]


@given(st.integers(1, 6), st.integers(1, 40), st.randoms())
def test_no_more_steps_are_kept_than_the_bound(every: int, steps: int, chance: Any) -> None:
    # Neighbours save before each multiple of `every`, and say so with their next frame: the device with the
    # activation that a gradient answers, the cloud with the gradient that answers an activation.
    backup = Backup(ASSIGNMENT, Tier.EDGE, every=every)
    for step in range(steps):
        saved = step // every * every
        backup.hear(from_device(checkpoint=saved))
        for micro_batch in range(chance.randint(1, 3)):
            for tier in (Tier.CLOUD, Tier.DEVICE):
                backup.keep(Gradient(gradient=TENSOR), tier, (step, micro_batch))
                assert len(set(steps_of(backup.since(tier, 0)))) <= steps_kept(every)
        backup.hear(frame(Want(wanted="x"), tier=Tier.CLOUD, checkpoint=saved))


@pytest.mark.parametrize(("every", "device", "cloud"), [(1, 8, 9), (2, 8, 8), (5, 5, 5)])
def test_who_saves_before_each_step_goes_back_one_more(every: int, device: int, cloud: int) -> None:
    backup = Backup(ASSIGNMENT, Tier.EDGE, every=every)
    for tier in (Tier.DEVICE, Tier.CLOUD):
        backup.learn(tier, 10)
    assert (backup.floor(Tier.DEVICE), backup.floor(Tier.CLOUD)) == (device, cloud)


# --- who has come back


def test_what_was_said_is_covered_from_where_we_began_and_what_is_kept() -> None:
    backup = edge(10)
    assert backup.covers(Tier.DEVICE, 0)
    backup.hear(from_device(checkpoint=9))
    assert not backup.covers(Tier.DEVICE, 5)
    assert backup.covers(Tier.DEVICE, 6)
    backup.restart(8, newest=8)
    assert not backup.covers(Tier.DEVICE, 7)
    assert backup.covers(Tier.DEVICE, 8)


def test_frames_are_said_again_in_their_order() -> None:
    backup = edge()
    for place in [(2, 1), (0, 0), (2, 0), (1, 0)]:
        backup.keep(Gradient(gradient=TENSOR), Tier.DEVICE, place)
    again = backup.since(Tier.DEVICE, 1)
    assert [(each.step, each.micro_batch) for each in again] == [(1, 0), (2, 0), (2, 1)]


def test_a_resume_counts_once_and_only_if_it_is_the_latest() -> None:
    backup = edge()
    assert backup.is_news(frame(Resume(step=0, turn=7)), Resume(step=0, turn=7))
    assert not backup.is_news(frame(Resume(step=0, turn=7)), Resume(step=0, turn=7))
    assert not backup.is_news(frame(Resume(step=0, turn=6)), Resume(step=0, turn=6))
    assert backup.is_news(frame(Resume(step=0, turn=1), tier=Tier.CLOUD), Resume(step=0, turn=1))


def test_the_turns_of_a_new_edge_are_its_own() -> None:
    device = Backup(ASSIGNMENT, Tier.DEVICE, every=EVERY)
    old, new = Resume(step=0, turn=900), Resume(step=0, turn=1)
    assert device.is_news(frame(old, tier=Tier.EDGE), old)
    device.reassign(msgspec.structs.replace(ASSIGNMENT, epoch=6))
    assert not device.is_news(frame(new, tier=Tier.EDGE), new)
    device.reassign(msgspec.structs.replace(ASSIGNMENT, edge="e2", epoch=7))
    assert device.is_news(frame(new, tier=Tier.EDGE), new)


def test_turns_grow_and_those_of_a_later_start_outrank_all_before() -> None:
    incarnation = 3
    turns = Turns(lambda: incarnation)
    first, second = turns.resume(4), turns.resume(2)
    assert (first.step, second.step) == (4, 2)
    assert first.turn < second.turn < Turns(lambda: 4).resume(0).turn


# --- awaited


def test_what_is_expected_is_late_only_when_patience_is_over() -> None:
    awaited = Awaited()
    awaited.expect(identity(), 100.0)
    assert awaited.next_due == 100.0 + FIRST_PATIENCE_S
    assert awaited.late(awaited.next_due - 0.001) == []
    assert awaited.late(awaited.next_due) == [identity()]


def test_nothing_awaited_is_never_due() -> None:
    assert Awaited().next_due == float("inf")


def test_a_question_is_repeated_ever_more_patiently() -> None:
    awaited = Awaited()
    awaited.expect(identity(), 0.0)
    asked = []
    for _ in range(5):
        asked.append(awaited.next_due)
        assert awaited.late(asked[-1]) == [identity()]
        assert awaited.late(asked[-1]) == []
    waits = [later - sooner for sooner, later in itertools.pairwise(asked)]
    assert waits == [2 * FIRST_PATIENCE_S, MAX_PATIENCE_S, MAX_PATIENCE_S, MAX_PATIENCE_S]


def test_what_is_here_and_waits_for_its_turn_is_not_asked_for() -> None:
    awaited = Awaited()
    awaited.expect(identity(0), 0.0)
    awaited.expect(identity(1), 0.0)
    due = awaited.next_due
    assert awaited.late(due, {identity(0)}) == [identity(1)]
    assert identity(0) in awaited
    assert awaited.next_due == due + FIRST_PATIENCE_S
    assert awaited.late(due + FIRST_PATIENCE_S) == [identity(0)]


def test_what_has_arrived_is_not_waited_for_any_more() -> None:
    awaited = Awaited()
    awaited.expect(identity(), 0.0)
    assert identity() in awaited
    awaited.arrived(identity(), 1.0)
    assert identity() not in awaited
    assert len(awaited) == 0
    assert awaited.late(1e9) == []


def test_arriving_twice_or_unasked_changes_nothing() -> None:
    awaited = Awaited()
    awaited.expect(identity(0), 0.0)
    awaited.arrived(identity(0), 1.0)
    awaited.arrived(identity(0), 1000.0)
    awaited.arrived(identity(5), 1000.0)
    awaited.expect(identity(1), 1000.0)
    assert awaited.next_due == 1000.0 + SLOWEST_TIMES


def test_in_a_hurry_everything_is_asked_for_at_once() -> None:
    awaited = Awaited()
    for step in range(3):
        awaited.expect(identity(step), 0.0)
    awaited.hurry(1.0)
    assert awaited.late(1.0) == [identity(0), identity(1), identity(2)]


def test_expecting_again_does_not_put_the_question_off() -> None:
    awaited = Awaited()
    awaited.expect(identity(), 0.0)
    awaited.expect(identity(), 10.0)
    assert awaited.next_due == FIRST_PATIENCE_S
    assert awaited.identities == [identity()]


@given(st.lists(st.floats(0.0, 1000.0), min_size=1, max_size=8))
def test_patience_is_a_few_times_the_slowest_answer_within_bounds(answers: list[float]) -> None:
    awaited = Awaited()
    for step, answer in enumerate(answers):
        awaited.expect(identity(step), 0.0)
        awaited.arrived(identity(step), answer)
    awaited.expect(identity(99), 0.0)
    expected = min(max(LEAST_PATIENCE_S, SLOWEST_TIMES * max(answers)), MAX_PATIENCE_S)
    assert awaited.next_due == expected
