"""Two tiers and one: the same roles, with nothing left to the cloud but the head, or nothing at all."""

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from iotsplit.mailbox import Mailbox
from iotsplit.messages import Frame, Update
from iotsplit.packet import Packet
from iotsplit.plan import Labels, Tier, cut_model
from iotsplit.settings import Aggregation, Optimizer, TrainingSettings
from iotsplit.tensors.parts import load_part, split
from iotsplit.topics import Topics
from tests.flows.monolith import Monolith, difference, settings
from tests.support import Fleet, sequences

pytestmark = pytest.mark.slow

TWO_TIERS = {"cut": (2, 5), "micro_batches": 3}
FEDERATED = {"cut": (5, 5), "labels": Labels.DEVICE, "micro_batches": 3}


def trained(model: Path, s: TrainingSettings, names: str, *, edges: int = 0) -> Fleet:
    fleet = Fleet(model, s, {name: sequences(name, 9) for name in names}, edges=edges)
    fleet.run()
    assert fleet.dropped == 0
    return fleet


@pytest.mark.parametrize(("placement", "edges"), [(TWO_TIERS, 1), (FEDERATED, 0)])
@pytest.mark.parametrize("optimizer", Optimizer)
def test_one_device_trains_as_peft_does(
    model: Path, placement: dict[str, Any], edges: int, optimizer: Optimizer
) -> None:
    s = settings(**placement, optimizer=optimizer)
    fleet = trained(model, s, "a", edges=edges)
    alone = Monolith(model, s).train([fleet.batches("a", sequences("a", 9))])
    assert difference(fleet.adapter(), alone) <= 1e-5
    assert difference(fleet.adapter(), fleet.versions[0].tensors()) > 1e-3


def test_a_tier_without_a_part_gets_no_directory(model: Path, tmp_path: Path) -> None:
    whole = split(model, (5, 5), Labels.DEVICE, tmp_path / "whole")
    assert list(whole) == [Tier.DEVICE]
    two = split(model, (2, 5), Labels.CLOUD, tmp_path / "two")
    assert list(two) == list(Tier)
    head = load_part(two[Tier.CLOUD], cut_model(5, (2, 5), Labels.CLOUD)[Tier.CLOUD])
    assert len(head.layers) == 0
    assert head.logits(torch.zeros(3, head.width)).shape == (3, head.vocabulary)


@pytest.mark.parametrize(("placement", "edges"), [(TWO_TIERS, 3), (FEDERATED, 0)])
def test_one_sgd_step_of_many_is_one_step_on_the_union(
    model: Path, placement: dict[str, Any], edges: int
) -> None:
    s = settings(**placement, optimizer=Optimizer.SGD, local_steps=1, learning_rate=0.5)
    fleet = trained(model, s, "abc", edges=edges)
    union = Monolith(model, s).train([fleet.batches(name, sequences(name, 9)) for name in "abc"])
    assert difference(fleet.adapter(), union) <= 1e-6


@pytest.mark.parametrize("aggregation", Aggregation)
def test_devices_with_whole_models_learn_together(model: Path, aggregation: Aggregation) -> None:
    fleet = trained(model, settings(**FEDERATED, rounds=3, aggregation=aggregation), "abc")
    report = fleet.report
    assert report.ledger == {"expected": 36, "applied": 36, "lost": 0, "duplicated": 0}
    assert [len(row["sessions"]) for row in report.rounds] == [3, 3, 3]
    assert all(each["steps"] == 4 and each["loss_last"] for row in report.rounds for each in row["sessions"])
    assert report.eval["after"]["loss"] != report.eval["before"]["loss"]
    hops = report.rounds[0]["bytes"]
    assert hops["device_edge"] == hops["edge_cloud"] == {"up": 0, "down": 0}
    assert hops["adapters"]["up"] > 0


def test_whole_models_score_as_parts_do(model: Path) -> None:
    whole = trained(model, settings(**FEDERATED), "ab").report.eval
    parts = trained(model, settings(cut=(1, 3)), "ab", edges=1).report.eval
    assert whole["before"]["loss"] == pytest.approx(parts["before"]["loss"], abs=1e-6)
    assert whole["before"]["tokens"] == parts["before"]["tokens"]


def test_what_a_device_brings_is_said_again_when_it_is_lost(model: Path) -> None:
    calm = trained(model, settings(**FEDERATED, rounds=2), "ab")
    fleet = Fleet(model, settings(**FEDERATED, rounds=2), {name: sequences(name, 9) for name in "ab"}, edges=0)
    lost: set[str] = set()

    def lose_first(agent: str, packet: Packet) -> list[Packet]:
        del agent
        if "/update/" not in packet.topic or packet.topic in lost:
            return [packet]
        lost.add(packet.topic)
        return []

    fleet.tamper = lose_first
    fleet.run()
    assert len(lost) == 8  # two devices; scores before and after, and two rounds
    assert difference(fleet.adapter(), calm.adapter()) == 0
    assert fleet.report.ledger["duplicated"] == 0


def test_a_device_whose_loss_is_not_finite_leaves_the_round(model: Path) -> None:
    s = settings(**FEDERATED, optimizer=Optimizer.SGD, learning_rate=1e30, norm_bound=1e30)
    fleet = Fleet(model, s, {name: sequences(name, 9) for name in "ab"}, edges=0)
    fleet.run(until=lambda fleet: bool(fleet.milestones and fleet.milestones[-1].row))
    dropped = fleet.milestones[-1].row
    assert dropped is not None
    assert {each["device"] for each in dropped["dropped"]} == {"a", "b"}
    assert all("refused: " in each["reason"] for each in dropped["dropped"])


def test_with_momentum_a_version_goes_on_the_way_of_the_last(model: Path) -> None:
    s = settings(**FEDERATED, rounds=2, optimizer=Optimizer.SGD, learning_rate=0.1)
    plain = [each.tensors() for each in trained(model, s, "ab").versions]
    pushed = [
        each.tensors() for each in trained(model, dataclasses.replace(s, server_momentum=0.5), "ab").versions
    ]
    assert difference(pushed[1], plain[1]) == 0  # nothing has moved before
    expected = {name: value + 0.5 * (plain[1][name] - plain[0][name]) for name, value in plain[2].items()}
    assert difference(pushed[2], expected) <= 1e-7
    assert difference(pushed[2], plain[2]) > 1e-3


def test_a_device_cannot_say_that_it_counts_more_than_its_steps(model: Path) -> None:
    fleet = Fleet(model, settings(**FEDERATED), {name: sequences(name, 9) for name in "ab"}, edges=0)

    def boast(agent: str, packet: Packet) -> list[Packet]:
        del agent
        message = fleet.agents["cloud"].decode(packet) if "/update/a/" in packet.topic else None
        if not isinstance(message, Frame) or not isinstance(message.content, Update):
            return [packet]
        more = msgspec.structs.replace(message.content, tokens=4 * 3 * 16 + 1)
        said = msgspec.structs.replace(message, content=more)
        return Mailbox(Topics("test"), "a").outgoing(said)

    fleet.tamper = boast
    fleet.run()
    (row,) = fleet.report.rounds
    assert [each["device"] for each in row["sessions"]] == ["b"]
    assert "an update for 193 tokens, at most 192" in row["dropped"][0]["reason"]
