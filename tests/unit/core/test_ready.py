"""Whose turn it is."""

from iotsplit.ready import Ready


def ready(*devices: str) -> Ready:
    made = Ready()
    for device in devices:
        made.mark(device, ready=True)
    return made


def test_without_work_it_is_nobodys_turn() -> None:
    assert not Ready()
    assert Ready().turn() is None


def test_who_has_waited_longest_comes_first() -> None:
    assert ready("b", "a").turn() == "b"


def test_a_session_is_brought_to_its_end_before_the_next() -> None:
    made = ready("a", "b")
    assert made.turn() == "a"
    made.mark("a", ready=True)
    assert made.turn() == "a"
    made.mark("a", ready=False)
    assert made.turn() == "b"
    made.mark("a", ready=True)
    assert made.turn() == "b"


def test_who_has_nothing_left_is_not_ready() -> None:
    made = ready("a")
    assert made
    made.mark("a", ready=False)
    made.mark("b", ready=False)
    assert not made
    assert made.turn() is None


def test_who_becomes_ready_again_waits_behind_the_others() -> None:
    made = ready("a", "b", "c")
    made.mark("a", ready=False)
    made.mark("a", ready=True)
    assert made.turn() == "b"
