"""Agents that compute layers again for the backward pass train the same adapter to the bit."""

from pathlib import Path

import pytest

from iotsplit.datasets.records import Text
from iotsplit.plan import Labels, Tier, cut_model
from iotsplit.settings import BaseDtype, TrainingSettings
from iotsplit.states import Birth
from iotsplit.tensors import adapters
from iotsplit.tensors.models import describe
from iotsplit.tensors.parts import Part
from iotsplit.tensors.recompute import recompute
from iotsplit_cloud import command as cloud
from iotsplit_device import command as device
from iotsplit_edge import command as edge
from tests.support import Fleet, letters_model, sequences

pytestmark = pytest.mark.slow

DEVICES = {"a": sequences("a", 9), "b": sequences("b", 9)}


def trained(model: Path, settings: TrainingSettings) -> dict[str, bytes]:
    """What a fleet with both devices on one edge makes."""
    fleet = Fleet(model, settings, DEVICES)
    fleet.run()
    return dict(fleet.versions[-1].sections)


def checkpointing(tiers: tuple[Tier, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch it on for the parts of these tiers, as their commands do behind `inject`."""
    inject = adapters.inject

    def inject_and_recompute(part: Part, settings: TrainingSettings) -> None:
        inject(part, settings)
        tier = (
            Tier.DEVICE
            if part.plan.embedding
            else Tier.EDGE
            if part.plan.end == settings.cut[1]
            else Tier.CLOUD
        )
        if tier in tiers:
            recompute(part.layers)

    monkeypatch.setattr(adapters, "inject", inject_and_recompute)


@pytest.mark.parametrize("labels", Labels)
@pytest.mark.parametrize("tiers", [*((tier,) for tier in Tier), tuple(Tier)], ids="-".join)
def test_the_adapter_is_the_same_to_the_bit(
    model: Path, labels: Labels, tiers: tuple[Tier, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainingSettings(
        rounds=1,
        local_steps=3,
        batch_size=3,
        micro_batches=3,
        sequence_length=16,
        cut=(2, 3),
        labels=labels,
        base_dtype=BaseDtype.BF16,
        target_modules=("q_proj", "down_proj"),
        learning_rate=1e-2,
    )
    kept = trained(model, settings)
    checkpointing(tiers, monkeypatch)
    assert trained(model, settings) == kept


def again(part: Part) -> bool:
    """Whether all its layers are computed again."""
    return all("forward" in vars(layer) for layer in part.layers)


@pytest.mark.parametrize("switched_on", [False, True])
def test_each_command_does_it_when_it_is_told_to(tmp_path: Path, switched_on: bool) -> None:
    directory = letters_model(tmp_path / "model")
    settings = TrainingSettings(cut=(2, 3), batch_size=1, micro_batches=1, sequence_length=8)
    info = describe(directory)
    corpus = device.Corpus(
        records=[Text("abc def ghi jkl mno pqr stu")] * 3 + [Text("vwx yza bcd efg hij")],
        tokenizers=device.Tokenizers(directory),
        eval_limit=1,
    )
    load = device.make_loader(directory, info, corpus, device="a", gradient_checkpointing=switched_on)
    assert again(load(settings).part) is switched_on
    whole = adapters.initial(directory, settings)
    section = adapters.to_bytes(adapters.select(whole, cut_model(5, (2, 3), Labels.CLOUD)[Tier.EDGE]))
    work = edge.make_loader(directory, info, gradient_checkpointing=switched_on)(settings, section, 1)
    assert again(work._part) is switched_on
    options = cloud.CloudOptions(training=settings, gradient_checkpointing=switched_on, output=tmp_path / "out")
    birth = Birth(agent="cloud", role=Tier.CLOUD, online=True, incarnation=1, model=info.fingerprint)
    peft = adapters.peft_config(directory, settings)
    role = cloud.make_role(birth, directory, info, options=options, peft=peft, saved=None)
    assert again(role._p.tail._part) is switched_on
