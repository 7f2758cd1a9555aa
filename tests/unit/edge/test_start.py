"""What an edge begins a session with: the adapter version, or the best checkpoint that is whole."""

from typing import Any

import pytest

from iotsplit.errors import MalformedMessageError
from iotsplit.retained import cut_checkpoint
from iotsplit.settings import TrainingSettings
from iotsplit.states import CHECKPOINT_SLOTS, Assignment, CheckpointChunk, CheckpointHead
from iotsplit_edge.start import PATIENCE_S, Start

EVERY = 5
SETTINGS = TrainingSettings(local_steps=40, checkpoint_every=EVERY)
HEADS = "checkpoint/d1/+/head"


def start(checkpoint: int | None = None, *, at_most: int | None = None) -> Start:
    assignment = Assignment(
        device="d1",
        task="train",
        session="s",
        epoch=9,
        edge="e1",
        cloud="c",
        checkpoint=checkpoint,
        settings=SETTINGS,
    )
    return Start(assignment, now=100.0, at_most=at_most)


def saved(step: int, *, epoch: int = 4, session: str = "s") -> tuple[list[CheckpointChunk], CheckpointHead]:
    body = f"{session} {epoch} {step}".encode()
    return cut_checkpoint(body, place=("d1", session, epoch, step), every=EVERY, tokens=step, chunk_bytes=4)


def show(into: Start, *steps: int, now: float = 100.0, **changes: Any) -> None:
    for step in steps:
        into.take_head(saved(step, **changes)[1], now)


def fetch(into: Start, step: int, *, epoch: int = 4, now: float = 100.0) -> None:
    for chunk in saved(step, epoch=epoch)[0]:
        into.take_chunk(chunk, now)


def chosen(of: Start) -> tuple[int, int] | None:
    return None if of.chosen is None else (of.chosen.step, of.chosen.epoch)


def test_a_new_session_begins_with_the_adapter_version_and_is_never_stuck() -> None:
    made = start()
    assert not made.takes_over
    assert made.may_begin_anew
    assert not made.is_stuck(1e9)


def test_a_new_session_passes_over_checkpoints() -> None:
    made = start()
    show(made, 10)
    assert made.chosen is None


def test_a_session_that_was_elsewhere_begins_with_its_newest_checkpoint() -> None:
    made = start(10)
    show(made, 10, 15)
    assert made.takes_over
    assert not made.may_begin_anew
    assert chosen(made) == (15, 4)
    fetch(made, 15)
    assert made.body == b"s 4 15"
    assert made.interests == {HEADS}


@pytest.mark.parametrize("epochs", [(5, 6), (6, 5)])
def test_of_two_checkpoints_of_the_same_step_the_one_of_the_later_epoch_is_taken(
    epochs: tuple[int, int],
) -> None:
    made = start(10)
    for epoch in epochs:
        show(made, 10, epoch=epoch)
    assert chosen(made) == (10, 6)


def test_a_better_checkpoint_that_shows_later_takes_the_place_of_what_was_fetched() -> None:
    made = start(10)
    show(made, 10)
    fetch(made, 10)
    show(made, 15)
    assert (chosen(made), made.body) == ((15, 4), None)


def test_a_checkpoint_from_before_what_the_cloud_knows_of_is_not_enough() -> None:
    made = start(15)
    show(made, 10)
    assert made.chosen is None
    assert not made.may_begin_anew


def test_who_has_to_go_back_takes_the_newest_checkpoint_of_that_step_or_before() -> None:
    made = start(15, at_most=12)
    show(made, 15, 10)
    assert chosen(made) == (10, 4)


def test_who_has_to_go_back_waits_for_the_step_where_all_save_though_an_older_one_shows_first() -> None:
    made = start(10, at_most=17)
    show(made, 10)
    assert made.chosen is None
    show(made, 15)
    assert chosen(made) == (15, 4)


def test_when_the_right_checkpoint_does_not_come_the_one_before_will_do() -> None:
    made = start(10, at_most=17)
    show(made, 10)
    assert not made.is_stuck(100.0 + PATIENCE_S)
    assert chosen(made) == (10, 4)


def test_the_heads_and_the_pieces_of_the_chosen_checkpoint_are_looked_for() -> None:
    made = start(10)
    assert made.interests == {HEADS}
    show(made, 10)
    assert made.interests == {HEADS, "checkpoint/d1/4.2/0", "checkpoint/d1/4.2/1"}


def test_checkpoints_of_another_session_are_not_used_but_known_for_clearing() -> None:
    made = start(10)
    show(made, 10, session="older")
    assert made.chosen is None
    assert [head.session for head in made.foreign.values()] == ["older"]


def test_pieces_of_another_checkpoint_change_nothing() -> None:
    made = start(10)
    fetch(made, 10)
    show(made, 10)
    fetch(made, 15)
    fetch(made, 10, epoch=5)
    assert made.body is None


def test_a_damaged_checkpoint_is_told_of_and_the_one_before_is_tried() -> None:
    made = start(10)
    show(made, 10, 15)
    first, second = saved(15)[0]
    made.take_chunk(CheckpointChunk(device="d1", name=first.name, index=0, data=b"xxxx"), 100.0)
    with pytest.raises(MalformedMessageError):
        made.take_chunk(second, 100.0)
    assert chosen(made) == (10, 4)
    fetch(made, 10)
    assert made.body == b"s 4 10"


def test_a_head_said_again_does_not_begin_the_fetching_anew() -> None:
    made = start(10)
    show(made, 10)
    made.take_chunk(saved(10)[0][0], 100.0)
    show(made, 10)
    assert made.interests == {HEADS, "checkpoint/d1/4.2/1"}


def test_a_checkpoint_that_was_overwritten_is_not_used_any_more() -> None:
    made = start(10)
    show(made, 10)
    made.take_chunk(saved(10)[0][0], 100.0)
    show(made, 10 + CHECKPOINT_SLOTS * EVERY)
    assert chosen(made) == (30, 4)
    assert made.interests == {HEADS, "checkpoint/d1/4.2/0", "checkpoint/d1/4.2/1"}


def test_a_checkpoint_that_was_overwritten_by_one_of_another_session_is_gone() -> None:
    made = start(10)
    show(made, 10)
    show(made, 10, session="newer")
    assert made.chosen is None
    assert not made.may_begin_anew


# --- patience


def test_a_checkpoint_whose_pieces_do_not_come_is_given_up_for_the_one_before() -> None:
    made = start(10)
    show(made, 10, 15)
    assert not made.is_stuck(made.due - 0.1)
    assert chosen(made) == (15, 4)
    assert not made.is_stuck(made.due)
    assert chosen(made) == (10, 4)


def test_without_a_checkpoint_it_is_stuck_once_in_each_time_of_patience() -> None:
    made = start(15)
    assert not made.is_stuck(100.0 + PATIENCE_S - 0.1)
    assert made.is_stuck(100.0 + PATIENCE_S)
    assert not made.is_stuck(100.0 + PATIENCE_S)
    assert made.is_stuck(100.0 + 2 * PATIENCE_S)


def test_whatever_is_new_puts_the_end_of_patience_off() -> None:
    made = start(10)
    show(made, 10, now=105.0)
    assert made.due == 105.0 + PATIENCE_S
    made.take_chunk(saved(10)[0][0], 108.0)
    assert made.due == 108.0 + PATIENCE_S


def test_who_has_its_state_is_never_stuck() -> None:
    made = start(10)
    show(made, 10)
    fetch(made, 10)
    assert not made.is_stuck(1e9)


# --- the adapter version as a checkpoint


def test_near_the_start_the_adapter_version_will_do_once_the_first_checkpoint_is_not_to_be_had() -> None:
    made = start(EVERY)
    assert not made.may_begin_anew
    assert not made.is_stuck(made.due)
    assert made.may_begin_anew


def test_who_has_to_go_back_before_the_first_checkpoint_begins_anew_at_once() -> None:
    made = start(EVERY, at_most=EVERY - 1)
    show(made, EVERY)
    assert made.may_begin_anew


def test_far_from_the_start_the_adapter_version_will_not_do() -> None:
    made = start(2 * EVERY, at_most=EVERY - 1)
    assert not made.may_begin_anew
    assert made.is_stuck(made.due)
    assert not made.may_begin_anew


def test_a_later_checkpoint_on_the_broker_says_that_the_start_is_far() -> None:
    made = start(EVERY, at_most=EVERY - 1)
    show(made, 2 * EVERY)
    assert not made.may_begin_anew


@pytest.mark.parametrize("checkpoint", [None, 0])
def test_who_goes_back_looks_for_a_checkpoint_first_whatever_the_cloud_knows(checkpoint: int | None) -> None:
    made = start(checkpoint, at_most=EVERY)
    assert not made.may_begin_anew
    show(made, EVERY)
    assert made.chosen is not None
    assert made.chosen.step == EVERY
