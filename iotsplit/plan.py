"""Which layers each tier owns: the cut of a model into device, edge and cloud."""

from dataclasses import dataclass
from enum import StrEnum

from iotsplit.errors import UsageError


class Tier(StrEnum):
    """The three tiers, from the data upwards."""

    DEVICE = "device"
    EDGE = "edge"
    CLOUD = "cloud"


class Labels(StrEnum):
    """Where the loss is computed, and so where the training text can be read."""

    CLOUD = "cloud"
    DEVICE = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartPlan:
    """The layers [first, end) of one part, and what it owns beside them."""

    first: int
    end: int
    embedding: bool = False
    head: bool = False  # final norm and language-model head

    @property
    def is_empty(self) -> bool:
        """Whether the tier has nothing of the model."""
        return not (self.layers or self.head)

    @property
    def layers(self) -> range:
        """Global indices of the part's layers."""
        return range(self.first, self.end)

    def __str__(self) -> str:
        layers = [f"{self.first}-{self.end - 1}"] if self.layers else []
        return " + ".join([*layers, *(["head"] if self.head else [])]) or "none"


def is_federated(cut: tuple[int, int]) -> bool:
    """Whether a cut leaves nothing to edge and cloud: each device trains the whole model by itself."""
    return cut[0] == cut[1]


def cut_model(layers: int, cut: tuple[int, int], labels: Labels) -> dict[Tier, PartPlan]:
    """Cut a model of ``layers`` layers before layers ``cut[0]`` and ``cut[1]``.

    ======================  ===================================================================
    A, B                    what it is
    ======================  ===================================================================
    0 < A < B < layers      three tiers: split learning over device, edge and cloud
    0 < A < B = layers      two: the edge has all that is left, the cloud norm, head and loss
    A = B = layers          one: federated learning, labels on the device; only LoRA travels
    ======================  ===================================================================

    Raises:
        UsageError: none of these.
    """
    low, high = cut
    on_device = labels is Labels.DEVICE
    if is_federated(cut) and high == layers and not on_device:
        raise UsageError(
            f"cut {low},{high} puts all {layers} layers on the device, and the labels in the cloud",
            fix="add --labels device",
        )
    if not (0 < low < high < layers or (high == layers and (is_federated(cut) or 0 < low < high))):
        raise UsageError(
            f"cut {low},{high} does not split {layers} layers into three parts",
            fix=f"choose --cut A,B with 0 < A < B < {layers}; or A,{layers} for two parts, "
            f"{layers},{layers} for the whole model on each device",
        )
    if high == layers and on_device and not is_federated(cut):
        raise UsageError(
            f"cut {low},{high} leaves the cloud nothing to do with labels on the device",
            fix=f"choose B below {layers}, or --labels cloud",
        )
    return {
        Tier.DEVICE: PartPlan(first=0, end=low, embedding=True, head=on_device),
        Tier.EDGE: PartPlan(first=low, end=high),
        Tier.CLOUD: PartPlan(first=high, end=layers, head=not on_device),
    }
