"""Five ways to train on the same data, each a placement of the same three roles. Pure."""

import dataclasses
from dataclasses import dataclass
from enum import StrEnum

from iotsplit.plan import Labels
from iotsplit.settings import TrainingSettings


class Scheme(StrEnum):
    """A way to train."""

    SPLITLLM = "splitllm"
    SFL = "sfl"
    SL = "sl"
    FL = "fl"
    CENTRAL = "central"


TITLES = {
    Scheme.SPLITLLM: "SplitLLM",
    Scheme.SFL: "SFL",
    Scheme.SL: "SL",
    Scheme.FL: "FL",
    Scheme.CENTRAL: "central",
}
"""Names as papers write them."""

MEANS = {
    Scheme.SPLITLLM: "three tiers: devices in parallel, edges that serve several, one cloud (arXiv 2501.13318)",
    Scheme.SFL: "two tiers in parallel, a server-side model for each device (SplitFed, arXiv 2004.12088)",
    Scheme.SL: "two tiers, one device after the other with one server-side model (arXiv 1812.00564)",
    Scheme.FL: "each device trains the whole model, the server averages (FedAvg, arXiv 1602.05629)",
    Scheme.CENTRAL: "one process trains the whole model on everybody's data",
}
"""What each is."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Who runs what in a scheme.

    Args:
        devices: device processes.
        edges: edge processes; with two tiers they are the server's models.
        devices_per_edge: devices that an edge serves at once; none for all.
        training: the settings, with this scheme's cut, labels, rounds and steps.
        rounds: in which all devices have had their turn, however many the fleet makes of them.
        pooled: whether the one device has everybody's data.
        server_hop: whether what goes between edge and cloud stays within the server.
    """

    devices: int
    edges: int
    devices_per_edge: int | None = None
    training: TrainingSettings
    rounds: int
    pooled: bool = False
    server_hop: bool = False


def place(scheme: Scheme, training: TrainingSettings, *, layers: int, devices: int, edges: int) -> Placement:
    """Where the parts of a model are in a scheme, so that each trains on as many batches.

    Args:
        scheme: which.
        training: as SplitLLM trains; two tiers cut the model at its first cut.
        layers: of the model.
        devices: who hold the data.
        edges: of SplitLLM.
    """
    whole = dataclasses.replace(training, cut=(layers, layers), labels=Labels.DEVICE)
    two = dataclasses.replace(training, cut=(training.cut[0], layers), labels=Labels.CLOUD)
    rounds = training.rounds
    match scheme:
        case Scheme.SPLITLLM:
            return Placement(devices=devices, edges=edges, training=training, rounds=rounds)
        case Scheme.SFL:
            return Placement(devices=devices, edges=devices, training=two, rounds=rounds, server_hop=True)
        case Scheme.SL:
            in_turn = dataclasses.replace(two, rounds=rounds * devices)
            return Placement(
                devices=devices, edges=1, devices_per_edge=1, training=in_turn, rounds=rounds, server_hop=True
            )
        case Scheme.FL:
            return Placement(devices=devices, edges=0, training=whole, rounds=rounds)
        case Scheme.CENTRAL:
            steps = training.local_steps * rounds * devices
            alone = dataclasses.replace(whole, rounds=1, local_steps=steps)
            return Placement(devices=1, edges=0, training=alone, rounds=rounds, pooled=True)
