"""Frames that are kept and frames that are waited for."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from iotsplit.messages import Frame, Identity, TailHidden, Want
from iotsplit.session import (
    FIRST_PATIENCE_S,
    LEAST_PATIENCE_S,
    MAX_PATIENCE_S,
    SLOWEST_TIMES,
    Awaited,
    Kept,
    wanted_by,
)
from tests.unit.core.samples import TENSOR, frame


def sent(step: int, micro_batch: int = 0) -> Frame:
    return frame(TailHidden(hidden=TENSOR), step=step, micro_batch=micro_batch)


def identity(step: int = 0) -> Identity:
    return sent(step).identity


# --- kept


def test_what_is_kept_is_handed_on_to_be_sent() -> None:
    said = sent(0)
    assert Kept().keep(said) is said


def test_a_kept_frame_goes_out_again_under_the_current_epoch_and_is_otherwise_the_same() -> None:
    kept = Kept()
    said = kept.keep(sent(1))
    again = kept.again(said.identity, epoch=7)
    assert again is not None
    assert again.epoch == 7
    assert (again.content, again.identity, again.to) == (said.content, said.identity, said.to)


def test_what_was_never_said_cannot_be_said_again() -> None:
    kept = Kept()
    kept.keep(sent(1))
    assert kept.again(identity(2), epoch=1) is None
    assert kept.again(frame(Want(wanted="x"), step=1).identity, epoch=1) is None


def test_trimming_forgets_only_steps_before() -> None:
    kept = Kept()
    for step in range(4):
        for micro_batch in range(2):
            kept.keep(sent(step, micro_batch))
    kept.trim(2)
    assert len(kept) == 4
    assert kept.again(sent(1, 1).identity, epoch=1) is None
    assert kept.again(sent(2).identity, epoch=1) is not None


def test_the_same_frame_is_kept_once() -> None:
    kept = Kept()
    kept.keep(sent(1))
    kept.keep(sent(1))
    assert len(kept) == 1


def test_a_request_names_the_frame_of_its_own_step_and_micro_batch() -> None:
    want = Want(wanted="tail_hidden")
    assert wanted_by(frame(want, step=3, micro_batch=1), want) == sent(3, 1).identity


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
