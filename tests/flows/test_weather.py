"""Loss, repetition and reordering change nothing but the time it takes."""

import functools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from iotsplit.plan import Labels
from iotsplit.settings import Aggregation, Codec, TrainingSettings
from tests.flows.weather import PATIENT, Storm, WeatherFleet, settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick")]


SHORT = settings(rounds=1, cut=(1, 2))
NO_SHRINKING = (Phase.explicit, Phase.generate)  # a smaller storm is another one


@functools.cache
def in_calm(model: Path, wanted: TrainingSettings, edges: int = 1) -> dict[str, bytes]:
    """The adapter of an undisturbed run."""
    fleet = WeatherFleet(model, wanted, edges=edges)
    fleet.run()
    return dict(fleet.versions[-1].sections)


def check(model: Path, wanted: TrainingSettings, storm: Storm, *, edges: int = 1) -> None:
    fleet = WeatherFleet(model, wanted, edges=edges, fate=storm, step_timeout=PATIENT)
    fleet.run()
    steps = wanted.rounds * wanted.local_steps * 2
    assert fleet.report.ledger == {"expected": steps, "applied": steps, "lost": 0, "duplicated": 0}
    assert fleet.versions[-1].sections == in_calm(model, wanted, edges)
    assert fleet.dropped == 0


def test_the_same_seed_twice_gives_the_same_bytes(model: Path) -> None:
    once, again, other = (WeatherFleet(model, settings(seed=seed)) for seed in (0, 0, 1))
    for fleet in (once, again, other):
        fleet.run()
    assert once.versions[-1].sections == again.versions[-1].sections
    assert once.versions[-1].sections != other.versions[-1].sections


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("changes", [{}, {"labels": Labels.DEVICE}, {"codec": Codec.INT8}], ids=str)
def test_the_order_of_arrival_does_not_matter(model: Path, changes: dict[str, object]) -> None:
    for seed in range(10):
        check(model, settings(**changes), Storm(seed, delay_s=3.0), edges=2)


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("first", range(0, 200, 25))
def test_whatever_is_lost_repeated_or_reordered_is_made_up_for(small_model: Path, first: int) -> None:
    for seed in range(first, first + 25):
        check(small_model, SHORT, Storm(seed, lose=0.15, repeat=0.15, delay_s=2.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": Labels.DEVICE},
        {"aggregation": Aggregation.FLEXLORA},
        {"aggregation": Aggregation.ROLORA},
        {"micro_batches": 1},
    ],
    ids=str,
)
def test_every_way_of_training_weathers_a_storm(model: Path, changes: dict[str, object]) -> None:
    for seed in range(5):
        check(model, settings(**changes), Storm(seed, lose=0.15, repeat=0.15, delay_s=2.0), edges=2)


@pytest.mark.usefixtures("unmeasured")
@given(
    seed=st.integers(0, 2**32),
    lose=st.floats(0.0, 0.4),
    repeat=st.floats(0.0, 0.5),
    delay_s=st.floats(0.0, 20.0),
    labels=st.sampled_from(Labels),
)
@examples(
    max_examples=30,
    phases=NO_SHRINKING,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_storm_ends_in_the_same_adapter(
    model: Path, seed: int, lose: float, repeat: float, delay_s: float, labels: Labels
) -> None:
    check(model, settings(rounds=1, labels=labels), Storm(seed, lose=lose, repeat=repeat, delay_s=delay_s))


def test_an_undisturbed_fleet_asks_for_nothing_twice(model: Path) -> None:
    fleet = WeatherFleet(model, settings(), "abc", edges=2)
    seen: list[bytes] = []

    def watch(name: str, packet: object) -> list[tuple[float, object]]:
        del name
        seen.append(packet.payload)  # type: ignore[attr-defined]  # a packet
        return [(0.01, packet)]

    fleet.fate = watch  # type: ignore[assignment]  # as above
    fleet.run()
    assert not [payload for payload in seen if b"want" in payload]
