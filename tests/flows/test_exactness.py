"""The fleet computes what one machine computes."""

from pathlib import Path

import pytest
import torch

from iotsplit.plan import Labels
from iotsplit.settings import Aggregation, BaseDtype, Optimizer, UpdateCodec
from tests.flows.monolith import Monolith, difference, settings
from tests.support import Fleet, sequences

pytestmark = pytest.mark.slow


def moved(fleet: Fleet) -> float:
    return difference(fleet.adapter(), fleet.versions[0].tensors())


@pytest.mark.parametrize("labels", Labels)
@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("optimizer", Optimizer)
def test_one_device_trains_as_peft_does(
    model: Path, labels: Labels, micro_batches: int, optimizer: Optimizer
) -> None:
    s = settings(labels=labels, micro_batches=micro_batches, optimizer=optimizer)
    data = sequences("a", 9)
    fleet = Fleet(model, s, {"a": data})
    fleet.run()
    alone = Monolith(model, s).train([fleet.batches("a", data)])
    assert difference(fleet.adapter(), alone) <= 1e-5
    assert moved(fleet) > 1e-3


@pytest.mark.parametrize("labels", Labels)
@pytest.mark.parametrize("base_dtype", [BaseDtype.BF16, BaseDtype.INT8])
def test_one_device_trains_as_peft_does_on_a_base_of_fewer_bits(
    model: Path, labels: Labels, base_dtype: BaseDtype
) -> None:
    s = settings(labels=labels, micro_batches=3, base_dtype=base_dtype)
    data = sequences("a", 9)
    fleet, unrounded = Fleet(model, s, {"a": data}), Fleet(model, settings(micro_batches=3), {"a": data})
    fleet.run()
    unrounded.run()
    alone = Monolith(model, s).train([fleet.batches("a", data)])
    assert difference(fleet.adapter(), alone) <= 1e-5
    assert difference(fleet.adapter(), unrounded.adapter()) > 1e-4


@pytest.mark.parametrize("labels", Labels)
@pytest.mark.parametrize("aggregation", [Aggregation.FEDAVG, Aggregation.ROLORA])
@pytest.mark.parametrize("optimizer", Optimizer)
def test_several_rounds_are_trainings_one_after_the_other(
    model: Path, labels: Labels, aggregation: Aggregation, optimizer: Optimizer
) -> None:
    s = settings(
        labels=labels,
        rounds=3,
        local_steps=2,
        optimizer=optimizer,
        micro_batches=3,
        aggregation=aggregation,
    )
    data = sequences("a", 9)
    fleet = Fleet(model, s, {"a": data})
    fleet.run()
    alone = Monolith(model, s).train([fleet.batches("a", data)])
    assert difference(fleet.adapter(), alone) <= 1e-5
    assert moved(fleet) > 1e-3


@pytest.mark.parametrize("labels", Labels)
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_one_sgd_step_of_many_is_one_step_on_the_union(model: Path, labels: Labels, micro_batches: int) -> None:
    s = settings(
        labels=labels, micro_batches=micro_batches, optimizer=Optimizer.SGD, local_steps=1, learning_rate=0.5
    )
    data = {"a": sequences("a", 4), "b": sequences("b", 7, longest=6), "c": sequences("c", 5)}
    fleet = Fleet(model, s, data, edges=2)
    fleet.run()
    union = Monolith(model, s).train([fleet.batches(name, each) for name, each in data.items()])
    assert difference(fleet.adapter(), union) <= 1e-6
    assert moved(fleet) > 1e-3


@pytest.mark.parametrize("codec", UpdateCodec)
def test_with_rolora_a_round_changes_a_or_b_and_half_as_much_is_sent(model: Path, codec: UpdateCodec) -> None:
    data = {"a": sequences("a", 4), "b": sequences("b", 7, longest=6)}
    sent = {}
    for aggregation in (Aggregation.FEDAVG, Aggregation.ROLORA):
        fleet = Fleet(model, settings(rounds=2, aggregation=aggregation, update_codec=codec), data)
        fleet.run()
        sent[aggregation] = sum(row["bytes"]["adapters"]["up"] for row in fleet.report.rounds)
    zero, one, two = (version.tensors() for version in fleet.versions)
    below = [name for name in zero if int(name.split(".layers.")[1].split(".")[0]) < 3]
    for name in below:
        is_b = ".lora_B." in name
        assert torch.equal(zero[name], one[name]) == (not is_b)
        assert torch.equal(one[name], two[name]) == is_b
    assert sent[Aggregation.ROLORA] < 0.6 * sent[Aggregation.FEDAVG]


def test_evaluation_reports_the_loss_of_the_whole_model(model: Path) -> None:
    s = settings(micro_batches=3)
    data = sequences("a", 9)
    fleet = Fleet(model, s, {"a": data})
    fleet.run()
    alone = Monolith(model, s)
    held_out = fleet.batches("a", data).evaluation()

    def loss() -> float:
        with torch.no_grad():
            return float(sum(alone.loss_sum(m) for m in held_out)) / sum(m.tokens for m in held_out)

    scores = fleet.report.eval
    assert scores["before"]["loss"] == pytest.approx(loss(), abs=1e-5)
    alone.train([fleet.batches("a", data)])
    assert scores["after"]["loss"] == pytest.approx(loss(), abs=1e-5)
    assert scores["devices"]["a"]["after"] == scores["after"]
