"""What a run leaves on the disk: an adapter that PEFT reads, and a report that tells what happened."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from iotsplit.datasets.records import Text, write_jsonl
from iotsplit.fleet.output import to_toml
from iotsplit.plan import Labels, Tier
from iotsplit.settings import Aggregation, FleetSettings
from iotsplit.states import Command
from iotsplit.tensors import adapters
from iotsplit_cloud.versions import Library, Version
from iotsplit_device.batches import MicroBatch
from tests.flows.crashes import CrashFleet
from tests.flows.real import RealFleet
from tests.flows.weather import settings
from tests.support import letters_model

pytestmark = pytest.mark.slow

DATA = {"press": "the press is too hot today", "pump": "a pump runs dry and hums"}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tokenizer."""
    return letters_model(tmp_path_factory.mktemp("reader"))


def prepared(directory: Path, **changes: Any) -> Path:
    """A directory as ``iotsplit run`` prepares it."""
    training = settings(**{"rounds": 2, "local_steps": 3, "learning_rate": 0.05} | changes)
    members = FleetSettings(devices=len(DATA), edges=2, once=True)
    (directory / "data").mkdir(parents=True)
    (directory / "fleet.toml").write_text(to_toml(training, members))
    for device, text in DATA.items():
        records = [Text(text=f"{text} {'again ' * (n % 3)}") for n in range(40)]
        write_jsonl(directory / "data" / f"{device}.jsonl", records)
    return directory


def loss_of(model: Any, batches: list[MicroBatch]) -> float:
    total, tokens = 0.0, 0
    for batch in batches:
        with torch.no_grad():
            logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
        total += float(
            torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100, reduction="sum"
            )
        )
        tokens += batch.tokens
    return total / tokens


@pytest.mark.parametrize("labels", Labels)
@pytest.mark.parametrize("aggregation", Aggregation)
def test_peft_computes_the_reported_loss_with_the_exported_adapter(
    reader: Path, tmp_path: Path, labels: Labels, aggregation: Aggregation
) -> None:
    ran = prepared(tmp_path / "run", labels=labels, aggregation=aggregation)
    with contextlib.closing(RealFleet(reader, ran, tmp_path / "out")) as fleet:
        fleet.run()
    base: Any = AutoModelForCausalLM.from_pretrained(reader, dtype=torch.float32)
    work = [fleet.loader(device)(fleet.training) for device in DATA]
    held_out = [batch for each in work for batch in each.batches.evaluation()]
    scores = json.loads((tmp_path / "out" / "report.json").read_bytes())["eval"]
    assert loss_of(base, held_out) == pytest.approx(scores["before"]["loss"], abs=1e-4)
    whole: Any = PeftModel.from_pretrained(base, str(tmp_path / "out" / "adapter")).eval()
    assert loss_of(whole, held_out) == pytest.approx(scores["after"]["loss"], abs=1e-4)
    assert scores["after"]["loss"] < scores["before"]["loss"] - 0.01


def test_the_adapter_that_did_best_on_held_out_data_is_kept_beside_the_last(
    reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(self: Library, *args: Any, round_: int, **named: Any) -> Version:
        version = add(self, *args, round_=round_, **named)
        if round_ > 1:  # all that was learnt is gone
            version = dataclasses.replace(version, sections={tier: nothing(version, tier) for tier in Tier})
            self.current = self._versions[version.version] = version
        return version

    def nothing(version: Version, tier: Tier) -> bytes:
        return adapters.to_bytes({name: 0 * each for name, each in version.section(tier).items()})

    add = Library.add
    monkeypatch.setattr(Library, "add", spoilt)
    ran = prepared(tmp_path / "run", evaluate="rounds")
    with contextlib.closing(RealFleet(reader, ran, tmp_path / "out")) as fleet:
        fleet.run()
    report = json.loads((tmp_path / "out" / "report.json").read_bytes())
    scores = report["eval"]
    losses = [scores["before"]["loss"], *(row["eval"]["loss"] for row in report["rounds"])]
    best = scores["best"]
    assert losses[1] < losses[2]
    assert (best["round"], best["adapter_version"], best["loss"]) == (1, 1, losses[1])
    held_out = [batch for device in DATA for batch in fleet.loader(device)(fleet.training).batches.evaluation()]
    base: Any = AutoModelForCausalLM.from_pretrained(reader, dtype=torch.float32)
    whole: Any = PeftModel.from_pretrained(base, str(tmp_path / "out" / "adapter-best")).eval()
    assert loss_of(whole, held_out) == pytest.approx(best["loss"], abs=1e-4)


def scored(fleet: CrashFleet) -> list[bool]:
    return ["eval" in row for row in fleet.report.rounds]


@pytest.mark.usefixtures("quick")
def test_a_round_that_the_cloud_died_on_while_it_was_scored_is_scored_when_it_is_back(
    small_model: Path, tmp_path: Path
) -> None:
    fleet = CrashFleet(small_model, settings(rounds=3, local_steps=1, evaluate="rounds"), disks=tmp_path)
    with contextlib.closing(fleet):
        fleet.run(until=lambda fleet: any(event.kind == "round_finished" for event in fleet.events))
        fleet.kill("cloud")
        fleet.start("cloud")
        fleet.run()
    assert scored(fleet) == [True, True, True]


@pytest.mark.usefixtures("quick")
def test_who_asks_for_more_rounds_may_ask_for_each_to_be_scored(small_model: Path, tmp_path: Path) -> None:
    wanted = settings(rounds=1, local_steps=1)
    with contextlib.closing(CrashFleet(small_model, wanted, disks=tmp_path)) as fleet:
        fleet.run()
    more = dataclasses.replace(wanted, rounds=3, evaluate="rounds")
    with contextlib.closing(CrashFleet(small_model, more, disks=tmp_path)) as fleet:
        fleet.run()
    assert scored(fleet) == [True, True]  # of this start
    assert fleet.report.settings["rounds"] == 3
    assert (tmp_path / "cloud" / "adapter-best" / "adapter_model.safetensors").is_file()


def test_the_report_tells_who_was_lost(reader: Path, tmp_path: Path) -> None:
    ran = prepared(tmp_path / "run")
    with contextlib.closing(RealFleet(reader, ran, tmp_path / "out")) as fleet:
        fleet.run(until=lambda _: any(row.round == 1 and row.step == 0 for row in fleet.metrics))
        fleet.lose("pump")
        fleet.run()
    report = json.loads((tmp_path / "out" / "report.json").read_bytes())
    told = [(event["kind"], event["agent"]) for event in report["events"]]
    assert told.index(("device_lost", "pump")) < told.index(("session_dropped", "pump"))
    assert report["rounds"][0]["dropped"] == [{"device": "pump", "reason": "pump is gone"}]
    assert [row["device"] for row in report["rounds"][1]["sessions"]] == ["press"]
    assert report["state"] == "done"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("at", ["evaluated", "round_started"])
def test_a_pause_outlasts_the_cloud(small_model: Path, tmp_path: Path, at: str) -> None:
    fleet = CrashFleet(small_model, settings(rounds=2, local_steps=1), disks=tmp_path)

    def command(verb: str) -> None:
        cloud = fleet.agents["cloud"]
        fleet._say(cloud, cloud.encode(cloud.handle(Command(id="x", verb=verb), fleet.now)))

    def is_idle(fleet: Any) -> bool:
        return fleet.now > 300 and fleet.agents["cloud"].role._conductor.activity is None

    def happened(kind: str) -> int:
        return [event.kind for event in fleet.events].count(kind)

    with contextlib.closing(fleet):
        fleet.run(until=lambda _: happened(at) > 0)
        rounds = happened("round_started")
        command("pause")
        fleet.kill("cloud")
        fleet.start("cloud")
        fleet.run(until=is_idle)
        assert happened("round_started") == rounds == 1
        command("resume")
        fleet.run()
    assert happened("round_started") == 2
