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
    def layers(self) -> range:
        """Global indices of the part's layers."""
        return range(self.first, self.end)

    def __str__(self) -> str:
        head = " + head" if self.head else ""
        return f"{self.first}-{self.end - 1}{head}"


def cut_model(layers: int, cut: tuple[int, int], labels: Labels) -> dict[Tier, PartPlan]:
    """Cut a model of ``layers`` layers before layers ``cut[0]`` and ``cut[1]``.

    Raises:
        UsageError: a part would be empty.
    """
    low, high = cut
    if not 0 < low < high < layers:
        raise UsageError(
            f"cut {low},{high} does not split {layers} layers into three parts",
            fix=f"choose --cut A,B with 0 < A < B < {layers}",
        )
    on_device = labels is Labels.DEVICE
    return {
        Tier.DEVICE: PartPlan(first=0, end=low, embedding=True, head=on_device),
        Tier.EDGE: PartPlan(first=low, end=high),
        Tier.CLOUD: PartPlan(first=high, end=layers, head=not on_device),
    }
