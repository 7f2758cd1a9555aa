"""What the rules of aggregation promise."""

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.errors import UsageError
from iotsplit.settings import Aggregation, TrainingSettings
from iotsplit.tensors.aggregation import (
    AGGREGATORS,
    Adapter,
    clip,
    fedavg,
    flexlora,
    median_shares,
    next_version,
    step_gradient,
    trained_in,
    trimmed,
    trimmed_at_each_end,
)
from iotsplit.tensors.bounds import norm_of

A, B = "m.lora_A.weight", "m.lora_B.weight"
INPUTS, OUTPUTS, RANK = 48, 40, 4
TRIM = 0.2


def _adapters(count: int, *, inputs: int = INPUTS, outputs: int = OUTPUTS) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            A: torch.randn(RANK, inputs, generator=generator),
            B: torch.randn(outputs, RANK, generator=generator),
        }
        for _ in range(count)
    ]


def _product(adapter: dict[str, torch.Tensor]) -> torch.Tensor:
    return adapter[B].double() @ adapter[A].double()


def _mean_product(adapters: list[dict[str, torch.Tensor]], weights: list[float]) -> torch.Tensor:
    total = sum(weights)
    products = [_product(adapter) * weight / total for adapter, weight in zip(adapters, weights, strict=True)]
    return torch.stack(products).sum(dim=0)


def _best(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
    best: torch.Tensor = (u[:, :rank] * values[:rank]) @ vt[:rank]
    return best


@pytest.mark.parametrize(("round_", "trained"), [(1, [B]), (2, [A]), (3, [B])])
def test_with_rolora_rounds_train_b_and_a_in_turn_and_the_mean_is_that_of_the_products(
    round_: int, trained: list[str]
) -> None:
    settings = TrainingSettings(aggregation=Aggregation.ROLORA)
    assert trained_in(round_, [B, A], settings) == trained
    start, *others = _adapters(4)
    adapters = [start | {name: each[name] for name in trained} for each in others]
    merged = next_version(adapters, [1, 2, 3], start=start, settings=settings)
    assert torch.allclose(_product(merged), _mean_product(adapters, [1, 2, 3]), atol=1e-5)
    (resting,) = {A, B} - set(trained)
    assert torch.equal(merged[resting], start[resting])


@pytest.mark.parametrize("rule", [each for each in Aggregation if each is not Aggregation.ROLORA])
def test_with_other_rules_every_round_trains_all(rule: Aggregation) -> None:
    assert trained_in(1, [B, A], TrainingSettings(aggregation=rule)) == [A, B]


def test_every_rule_has_an_aggregator() -> None:
    assert set(AGGREGATORS) == set(Aggregation)


@pytest.mark.parametrize("rule", Aggregation)
def test_names_shapes_and_types_stay(rule: Aggregation) -> None:
    adapters = _adapters(3)
    merged = AGGREGATORS[rule](adapters, [1, 2, 3], TRIM)
    assert list(merged) == sorted(adapters[0])
    for name, tensor in merged.items():
        assert tensor.shape == adapters[0][name].shape
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()


def test_fedavg_is_the_mean_of_each_matrix_by_weight() -> None:
    adapters = [{A: torch.tensor([[value]]), B: torch.tensor([[-value]])} for value in (1.0, 4.0)]
    merged = fedavg(adapters, [3, 1])
    assert merged == {A: torch.tensor([[1.75]]), B: torch.tensor([[-1.75]])}


def test_fedavg_of_one_is_that_one_to_the_bit() -> None:
    (adapter,) = _adapters(1)
    merged = fedavg([adapter], [7.0])
    assert all(torch.equal(merged[name], adapter[name]) for name in adapter)


def test_fedavg_does_not_lose_a_small_value_among_large_ones() -> None:
    values = (1e8, 1.0, -1e8)
    merged = fedavg([{A: torch.tensor([value])} for value in values], [1, 1, 1])
    assert merged[A].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_flexlora_is_the_best_adapter_of_its_rank_for_the_mean_product(count: int) -> None:
    adapters, weights = _adapters(count), [float(number + 1) for number in range(count)]
    mean = _mean_product(adapters, weights)
    best = _best(mean, RANK)
    ours = _product(flexlora(adapters, weights))
    assert (ours - best).norm() <= 1e-6 * mean.norm()
    # What the cut to the rank costs is the same for both, and less than what fedavg's mean is off.
    assert (ours - mean).norm() <= (best - mean).norm() + 1e-6 * mean.norm()
    assert (ours - mean).norm() <= (_product(fedavg(adapters, weights)) - mean).norm() + 1e-5


def test_flexlora_keeps_the_product_of_equal_adapters_that_fedavg_loses_if_signs_differ() -> None:
    (adapter,) = _adapters(1)
    mirrored = {name: -tensor for name, tensor in adapter.items()}  # the same product
    merged = flexlora([adapter, mirrored], [1, 1])
    assert torch.allclose(_product(merged), _product(adapter), atol=1e-5)
    assert not fedavg([adapter, mirrored], [1, 1])[B].any()


def test_flexlora_leaves_unused_directions_trainable() -> None:
    fresh = _adapters(2)
    for adapter in fresh:
        adapter[B].zero_()
    merged = flexlora(fresh, [1, 1])
    assert not merged[B].any()
    norms = merged[A].norm(dim=1)
    assert torch.allclose(norms, torch.full((RANK,), 3**-0.5))


def test_flexlora_gives_the_same_bits_again() -> None:
    first, second = (flexlora(_adapters(3), [1, 2, 3]) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_flexlora_signs_do_not_depend_on_those_of_its_factors() -> None:
    adapters = _adapters(3)
    mirrored = [{name: -tensor for name, tensor in adapter.items()} for adapter in adapters]
    first, second = flexlora(adapters, [1, 1, 1]), flexlora(mirrored, [1, 1, 1])
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


def test_flexlora_makes_the_largest_entry_of_each_row_of_a_positive() -> None:
    for seed_weight in (1.0, 2.0, 3.0):
        rows = flexlora(_adapters(3), [1, seed_weight, 3])[A]
        largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
        assert (largest > 0).all()


def test_flexlora_fills_up_a_layer_narrower_than_the_rank() -> None:
    adapters = _adapters(2, inputs=3, outputs=5)
    merged = flexlora(adapters, [1, 1])
    assert merged[A].shape == (RANK, 3)
    assert torch.allclose(_product(merged), _mean_product(adapters, [1, 1]), atol=1e-6)


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [1.0, -1.0], [float("nan"), 1.0]])
@pytest.mark.parametrize("rule", Aggregation)
def test_weights_that_weigh_nothing_are_refused(rule: Aggregation, weights: list[float]) -> None:
    with pytest.raises(UsageError):
        AGGREGATORS[rule](_adapters(2), weights, TRIM)


@pytest.mark.parametrize("rule", Aggregation)
def test_no_adapters_are_refused(rule: Aggregation) -> None:
    with pytest.raises(UsageError):
        AGGREGATORS[rule]([], [], TRIM)


# --- what one bad session can do

SHARES = st.sampled_from([0.0, 0.1, 0.2, 0.34, 0.49])
ROWS = st.lists(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), min_size=1, max_size=9)


def _of_rows(rows: list[list[float]]) -> list[dict[str, torch.Tensor]]:
    return [{A: torch.tensor([row[:2]]), B: torch.tensor([row[2:]])} for row in rows]


def _stacked(adapters: Sequence[Adapter]) -> torch.Tensor:
    return torch.stack([torch.cat([each[A].flatten(), each[B].flatten()]) for each in adapters])


@given(ROWS, SHARES, st.randoms())
def test_trimmed_does_not_depend_on_the_order_of_sessions(
    rows: list[list[float]], share: float, chance: Random
) -> None:
    mixed = chance.sample(rows, len(rows))
    weights = [1.0] * len(rows)
    first, second = trimmed(_of_rows(rows), weights, share), trimmed(_of_rows(mixed), weights, share)
    assert all(torch.equal(first[name], second[name]) for name in first)


@given(ROWS)
def test_trimmed_of_nothing_is_fedavg_of_equal_weights(rows: list[list[float]]) -> None:
    adapters, weights = _of_rows(rows), [3.0] * len(rows)
    first, second = trimmed(adapters, weights, 0.0), fedavg(adapters, weights)
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


@given(
    ROWS,
    SHARES,
    st.lists(st.lists(st.floats(-(2.0**120), 2.0**120, width=32), min_size=3, max_size=3), max_size=4),
)
def test_trimmed_stays_between_good_sessions_whatever_bad_ones_send(
    good: list[list[float]], share: float, bad: list[list[float]]
) -> None:
    most = next(n for n in range(len(bad), -1, -1) if n <= trimmed_at_each_end(len(good) + n, share))
    rows = _of_rows(good + bad[:most])
    merged, honest = _stacked([trimmed(rows, [1.0] * len(rows), share)]), _stacked(_of_rows(good))
    assert (merged >= honest.amin(dim=0) - 1e-4).all()
    assert (merged <= honest.amax(dim=0) + 1e-4).all()


def test_trimmed_leaves_out_the_extremes_of_each_value() -> None:
    values = [[1.0, 9.0], [2.0, -90.0], [3.0, 1.0], [40.0, 5.0]]
    merged = trimmed([{A: torch.tensor([row])} for row in values], [1, 1, 1, 1], 0.25)
    assert merged[A].tolist() == [[2.5, 3.0]]


def test_trimmed_does_not_let_a_session_say_how_much_it_counts() -> None:
    adapters = _adapters(4)
    first, second = trimmed(adapters, [1, 1, 1, 1], TRIM), trimmed(adapters, [1, 1, 1, 1e9], TRIM)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("sessions", "share", "cut"),
    [(1, 0.2, 0), (2, 0.2, 0), (3, 0.2, 1), (4, 0.2, 1), (6, 0.2, 2), (30, 0.1, 3), (9, 0.0, 0), (5, 0.49, 2)],
)
def test_at_least_one_is_trimmed_where_three_are_and_one_is_left(sessions: int, share: float, cut: int) -> None:
    assert trimmed_at_each_end(sessions, share) == cut


@given(ROWS, st.integers(0, 8))
def test_clipping_shortens_to_the_median_and_keeps_the_direction(rows: list[list[float]], pick: int) -> None:
    start, *updates = _of_rows([[1.0, -2.0, 3.0], *rows])
    lengths = [norm_of({name: each[name] - start[name] for name in each}) for each in updates]
    median = sorted(lengths)[(len(lengths) - 1) // 2]
    clipped = clip(updates, start)
    at = pick % len(updates)
    change, before = _stacked([clipped[at]]) - _stacked([start]), _stacked([updates[at]]) - _stacked([start])
    assert change.norm() <= median * 1.00001 + 1e-5
    if lengths[at] <= median:
        assert clipped[at] is updates[at]
    else:
        assert torch.allclose(change * lengths[at], before * median, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("rule", Aggregation)
def test_clipping_bounds_what_one_session_does_to_a_version_by_any_rule(rule: Aggregation) -> None:
    settings = TrainingSettings(aggregation=rule, clip_updates=True)
    (start,) = _adapters(1)
    updates = [{name: start[name] + 0.01 * other[name] for name in start} for other in _adapters(5)]
    good = next_version(updates, [1.0] * 5, start=start, settings=settings)
    updates[2] = {name: start[name] - 5000 * (updates[2][name] - start[name]) for name in start}
    spoiled = next_version(updates, [1.0] * 5, start=start, settings=settings)
    assert (_product(spoiled) - _product(good)).norm() < 0.05 * _product(good).norm()
    plain = TrainingSettings(aggregation=rule)
    if rule not in (Aggregation.TRIMMED, Aggregation.MEDIAN):
        unclipped = next_version(updates, [1.0] * 5, start=start, settings=plain)
        assert (_product(unclipped) - _product(good)).norm() > _product(good).norm()


def test_half_of_the_sessions_cannot_raise_what_is_clipped_to() -> None:
    start = {A: torch.zeros(1, 1)}
    clipped = clip([{A: torch.full((1, 1), length)} for length in (1.0, 2.0, 500.0, 900.0)], start)
    assert [float(each[A]) for each in clipped] == [1.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, -242.5),
        ({"aggregation": Aggregation.FLEXLORA}, -242.5),
        ({"aggregation": Aggregation.TRIMMED}, 5.0),
        ({"clip_updates": True}, 2.5),
    ],
)
def test_the_gradient_of_a_step_is_joined_by_the_same_rule(changes: dict[str, Any], expected: float) -> None:
    gradients = [{A: torch.tensor([[value]])} for value in (-1000.0, 10.0, 0.0, 20.0)]
    joined = step_gradient(gradients, [0.25] * 4, settings=TrainingSettings(**changes))
    assert joined[A].item() == pytest.approx(expected)


def test_the_median_of_gradients_is_among_the_good_ones() -> None:
    gradients = [{A: torch.tensor([[value]])} for value in (-1000.0, 10.0, 9.0, 11.0, 10.0)]
    joined = step_gradient(gradients, [1.0] * 5, settings=TrainingSettings(aggregation=Aggregation.MEDIAN))
    assert 8.9 < joined[A].item() < 11.1
    nothing = step_gradient([{}, {}], [1.0] * 2, settings=TrainingSettings(aggregation=Aggregation.MEDIAN))
    assert nothing == {}  # the cloud has no layers


def test_the_geometric_median_is_where_the_sum_of_distances_is_least() -> None:
    points = torch.randn(7, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = torch.tensor(median_shares(points @ points.T), dtype=torch.float64) @ points

    def distance(point: torch.Tensor) -> float:
        return float((points - point).norm(dim=1).sum())

    generator = torch.Generator().manual_seed(4)
    for _ in range(200):
        other = found + 0.01 * torch.randn(5, generator=generator, dtype=torch.float64)
        assert distance(found) <= distance(other) + 1e-9


def turned(adapter: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The same product in other factors."""
    matrix = torch.linalg.qr(torch.randn(RANK, RANK, generator=generator, dtype=torch.float64))[0]
    matrix = matrix * torch.linspace(0.5, 2.0, RANK, dtype=torch.float64)
    return {
        A: (matrix @ adapter[A].double()).float(),
        B: (adapter[B].double() @ torch.linalg.inv(matrix)).float(),
    }


def test_the_median_judges_products_and_holds_where_single_values_mislead() -> None:
    generator = torch.Generator().manual_seed(5)
    (good,) = _adapters(1)
    honest = [
        turned(
            {
                name: value + 0.02 * torch.randn(value.shape, generator=generator)
                for name, value in good.items()
            },
            generator,
        )
        for _ in range(4)
    ]
    attacker = turned({A: good[A], B: -3 * good[B]}, generator)
    everyone, size = [*honest, attacker], _product(good).norm()

    def error(rule: Aggregation) -> float:
        joined = next_version(everyone, [1.0] * 5, start=good, settings=TrainingSettings(aggregation=rule))
        return float((_product(joined) - _product(good)).norm() / size)

    assert error(Aggregation.MEDIAN) < 0.1
    assert min(error(rule) for rule in (Aggregation.FEDAVG, Aggregation.FLEXLORA, Aggregation.TRIMMED)) > 0.5


def test_the_median_does_not_depend_on_the_factors_of_a_product() -> None:
    adapters = _adapters(5)
    generator = torch.Generator().manual_seed(6)
    again = [turned(each, generator) for each in adapters]
    settings = TrainingSettings(aggregation=Aggregation.MEDIAN)
    first = next_version(adapters, [1.0] * 5, start=adapters[0], settings=settings)
    second = next_version(again, [1.0] * 5, start=adapters[0], settings=settings)
    assert torch.allclose(_product(first), _product(second), atol=1e-3)
