"""Which version did best on held-out data."""

from typing import Any

import pytest

from iotsplit.settings import TrainingSettings
from iotsplit_cloud.evaluation import Tally
from iotsplit_cloud.report import Report, enter_best, enter_scores, new_report


class Scored:
    """Stands for an evaluation that is over; ten tokens of each device."""

    def __init__(self, losses: dict[str, float]) -> None:
        self.sessions = losses

    def tallies(self) -> dict[str, Tally]:
        return {
            device: Tally(loss_sum=10 * loss, tokens=10, sequences=2) for device, loss in self.sessions.items()
        }


def score(report: Report, version: int, **losses: float) -> None:
    evaluation: Any = Scored(losses)
    enter_scores(report, evaluation, "after" if version else "before", answering=())
    enter_best(report, evaluation, version, round_=version, answering=())


@pytest.fixture
def report() -> Report:
    return new_report("plant", {}, TrainingSettings(evaluate="rounds"))


def best(report: Report) -> tuple[int, float]:
    return report.eval["best"]["adapter_version"], report.eval["best"]["loss"]


def test_the_version_with_the_least_loss_is_the_best(report: Report) -> None:
    for version, loss in enumerate((4.0, 2.0, 3.0)):
        score(report, version, a=loss, b=loss + 1)
    assert best(report) == (1, 2.5)
    assert {device: scores["best"]["loss"] for device, scores in report.eval["devices"].items()} == {
        "a": 2.0,
        "b": 3.0,
    }


def test_of_two_that_are_equal_the_earlier_is(report: Report) -> None:
    score(report, 0, a=2.0)
    score(report, 1, a=2.0)
    assert best(report) == (0, 2.0)


def test_a_version_is_not_the_best_because_a_device_with_much_loss_is_away(report: Report) -> None:
    score(report, 0, easy=1.0, hard=9.0)
    score(report, 1, easy=1.5)
    assert best(report) == (0, 5.0)
    score(report, 2, easy=0.5)
    assert best(report) == (2, 0.5)
    assert "best" not in report.eval["devices"]["hard"]
    score(report, 3, easy=0.4, hard=8.0)
    assert best(report) == (3, 4.2)


def test_nobody_or_others_than_before(report: Report) -> None:
    score(report, 0, a=2.0)
    score(report, 1)
    assert best(report) == (0, 2.0)
    score(report, 2, b=3.0)  # not to be compared: what is newer is taken
    assert best(report) == (2, 3.0)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_the_best(report: Report, loss: float) -> None:
    score(report, 0, a=loss)
    score(report, 1, a=2.0)
    score(report, 2, a=loss)
    assert best(report) == (1, 2.0)
