"""How much memory a scheme will take, said before it begins. Pure.

Rough by design: it exists so that nobody's machine is brought down by a scheme that cannot fit. The result of
each cell says how far off it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from iotsplit.bench.figures import BYTES_OF, optimizer_bytes, sessions_of
from iotsplit.bench.schemes import Placement
from iotsplit.plan import PartPlan, Tier, cut_model

HIDDEN_PER_LAYER = 20
"""Values that a layer keeps of a token for the backward pass, in widths: eight, and four of an MLP's three."""
HEAD_POSITIONS = 128
"""Positions whose logits exist at once."""
LOGITS = 3
"""The logits, their softmax and their gradient."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What has to be known of a model.

    Args:
        layers: of the whole model.
        width: of a hidden state.
        vocabulary: number of token ids.
        parameters: of the whole model, tied ones once.
        trainable: LoRA parameters of the whole model.
    """

    layers: int
    width: int
    vocabulary: int
    parameters: int
    trainable: int


def needed(placement: Placement, model: Model, imports: Mapping[str, int]) -> dict[str, int]:
    """Bytes that all agents of each tier take together at their peaks.

    Args:
        placement: who runs what.
        model: that is trained.
        imports: bytes that an agent of each tier takes before it has a model.
    """
    plans = cut_model(model.layers, placement.training.cut, placement.training.labels)
    counts = {Tier.DEVICE: placement.devices, Tier.EDGE: placement.edges, Tier.CLOUD: 1}
    return {
        str(tier): count * (imports.get(tier, 0) + _of_part(plans[tier], tier, placement, model))
        for tier, count in counts.items()
        if count
    }


def _of_part(plan: PartPlan, tier: Tier, placement: Placement, model: Model) -> int:
    training = placement.training
    table = model.vocabulary * model.width
    layers = len(plan.layers)
    share = layers / model.layers
    sessions = sessions_of(placement) if tier is Tier.EDGE else 1
    pieces = training.micro_batches if tier is Tier.CLOUD else 1  # the cloud is done with each at once
    tokens = training.batch_size * training.sequence_length // pieces * min(sessions, 2)
    weights = (model.parameters - table) * share * BYTES_OF[training.base_dtype] + (
        table * 4 if plan.head else 0
    )
    kept = tokens * layers * HIDDEN_PER_LAYER * model.width * 4
    logits = HEAD_POSITIONS * model.vocabulary * 4 * LOGITS if plan.head else 0
    return int(weights + kept + logits) + sessions * optimizer_bytes(round(model.trainable * share), training)
