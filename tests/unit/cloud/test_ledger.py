"""What the cloud knows of the steps that it has applied."""

from iotsplit_cloud.ledger import Ledger


def applied(session: str, *steps: int, expected: int = 3) -> Ledger:
    ledger = Ledger(expected=expected)
    for step in steps:
        ledger.apply(session, step)
    return ledger


def test_a_step_that_is_missing_is_lost_and_one_that_comes_twice_is_duplicated() -> None:
    ledger = applied("s", 0, 1, 1)
    assert (ledger.applied, ledger.lost, ledger.duplicated) == (2, 1, 1)


def test_steps_that_are_gone_back_over_may_come_again() -> None:
    ledger = applied("s", 0, 1, 2)
    ledger.rewind("s", 1)
    assert (ledger.steps("s"), ledger.lost) == (1, 2)
    ledger.apply("s", 1)
    assert (ledger.lost, ledger.duplicated) == (1, 0)


def test_a_restarted_cloud_counts_what_lies_before_its_checkpoint() -> None:
    ledger = Ledger(expected=3)
    ledger.rewind("s", 2)
    assert (ledger.applied, ledger.lost) == (2, 1)


def test_of_a_round_that_is_over_only_the_number_stays() -> None:
    ledger = applied("s", 0, 1, 2)
    ledger.settle()
    ledger.expected += 1
    ledger.apply("t", 0)
    assert (ledger.applied, ledger.lost, ledger.steps("s")) == (4, 0, 0)
