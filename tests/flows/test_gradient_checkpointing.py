"""Agents that compute layers again for the backward pass train the same adapter to the bit."""

from pathlib import Path

import pytest

from iotsplit.plan import Labels, Tier
from iotsplit.settings import BaseDtype, TrainingSettings
from iotsplit.tensors import adapters
from iotsplit.tensors.parts import Part
from iotsplit.tensors.recompute import recompute
from tests.support import Fleet, sequences

pytestmark = pytest.mark.slow

DEVICES = {"a": sequences("a", 9), "b": sequences("b", 9)}


def trained(model: Path, settings: TrainingSettings) -> dict[str, bytes]:
    """What a fleet with both devices on one edge makes."""
    fleet = Fleet(model, settings, DEVICES)
    fleet.run()
    return dict(fleet.versions[-1].sections)


def checkpointing(tiers: set[Tier], monkeypatch: pytest.MonkeyPatch) -> None:
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
@pytest.mark.parametrize("tiers", [*({tier} for tier in Tier), set(Tier)], ids=str)
def test_the_adapter_is_the_same_to_the_bit(
    model: Path, labels: Labels, tiers: set[Tier], monkeypatch: pytest.MonkeyPatch
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
