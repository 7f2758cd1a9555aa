"""What the rules of aggregation promise."""

import pytest
import torch

from iotsplit.errors import UsageError
from iotsplit.settings import Aggregation
from iotsplit.tensors.aggregation import AGGREGATORS, fedavg, flexlora

A, B = "m.lora_A.weight", "m.lora_B.weight"
INPUTS, OUTPUTS, RANK = 48, 40, 4


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


def test_every_rule_has_an_aggregator() -> None:
    assert set(AGGREGATORS) == set(Aggregation)


@pytest.mark.parametrize("rule", Aggregation)
def test_names_shapes_and_types_stay(rule: Aggregation) -> None:
    adapters = _adapters(3)
    merged = AGGREGATORS[rule](adapters, [1, 2, 3])
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
        AGGREGATORS[rule](_adapters(2), weights)


@pytest.mark.parametrize("rule", Aggregation)
def test_no_adapters_are_refused(rule: Aggregation) -> None:
    with pytest.raises(UsageError):
        AGGREGATORS[rule]([], [])
