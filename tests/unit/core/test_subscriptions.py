"""What is subscribed to anew when nothing comes of it, and what a broker is asked for after a reconnect."""

from iotsplit.messages import Message
from iotsplit.retained import AGAIN_S, LOOK_S, Again, Shelf
from iotsplit.states import Forget

NEVER = float("inf")


def test_nothing_is_due_before_something_is_subscribed_to() -> None:
    again = Again()
    again.tick(1e9)
    assert (again.resting, again.due) == (False, NEVER)


def test_a_subscription_that_nothing_came_of_rests_until_the_next_tick() -> None:
    again = Again()
    again.begin(100.0)
    again.tick(100.0 + AGAIN_S - 0.1)
    assert not again.resting
    again.tick(100.0 + AGAIN_S)
    assert again.resting
    assert again.due == 100.0 + AGAIN_S
    again.tick(again.due)
    assert not again.resting
    assert again.due == 100.0 + 2 * AGAIN_S


def test_what_comes_puts_the_rest_off() -> None:
    again = Again()
    again.begin(100.0)
    again.begin(103.0)
    again.tick(100.0 + AGAIN_S)
    assert not again.resting
    assert again.due == 103.0 + AGAIN_S


def test_nothing_rests_when_nothing_is_waited_for_any_more() -> None:
    again = Again()
    again.begin(100.0)
    again.tick(100.0 + AGAIN_S)
    again.end()
    assert not again.resting
    again.tick(1e9)
    assert not again.resting


# --- the shelf


def head(of: str) -> Message:
    return Forget(path=of)


def heads(*paths: str) -> dict[str, Message]:
    return {path: head(path) for path in paths}


def test_a_shelf_looks_for_heads_until_the_broker_has_shown_them() -> None:
    shelf = Shelf()
    shelf.look(heads("a/head", "b/head"), 100.0)
    assert shelf.interests == {"a/head", "b/head"}
    shelf.seen("a/head", head("a/head"))
    assert shelf.interests == {"b/head"}


def test_what_the_broker_has_not_shown_in_time_is_lost_and_told_once() -> None:
    shelf = Shelf()
    shelf.look(heads("b/head", "a/head", "c/head"), 100.0)
    shelf.seen("c/head", head("c/head"))
    assert shelf.next_due == 100.0 + LOOK_S
    assert shelf.lost(100.0 + LOOK_S - 0.1) == []
    assert shelf.lost(100.0 + LOOK_S) == ["a/head", "b/head"]
    assert shelf.lost(1e9) == []
    assert (shelf.interests, shelf.next_due) == (frozenset(), NEVER)


def test_a_shelf_without_heads_is_never_due() -> None:
    shelf = Shelf()
    shelf.look({}, 100.0)
    assert shelf.next_due == NEVER
    assert shelf.lost(1e9) == []


def test_heads_that_nobody_looks_for_change_nothing() -> None:
    shelf = Shelf()
    shelf.seen("a/head", head("a/head"))
    shelf.look(heads("a/head"), 100.0)
    shelf.seen("b/head", head("b/head"))
    assert shelf.lost(100.0 + LOOK_S) == ["a/head"]


def test_an_older_head_that_the_broker_has_kept_in_the_place_of_ours_does_not_count() -> None:
    shelf = Shelf()
    shelf.look(heads("a/head"), 100.0)
    shelf.seen("a/head", head("an older one"))
    assert shelf.lost(100.0 + LOOK_S) == ["a/head"]


def test_looking_again_begins_the_time_anew() -> None:
    shelf = Shelf()
    shelf.look(heads("a/head"), 100.0)
    shelf.look(heads("a/head"), 103.0)
    assert shelf.lost(100.0 + LOOK_S) == []
    assert shelf.lost(103.0 + LOOK_S) == ["a/head"]
