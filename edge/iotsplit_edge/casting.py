"""An edge for those who drive it themselves: replay, and fleets in memory."""

import torch

from iotsplit.tape.casting import Actor, Props, find_model
from iotsplit_edge.command import make_loader
from iotsplit_edge.role import EdgeRole


def cast(props: Props) -> Actor:
    """An edge from its model; it has no disk.

    Raises:
        UsageError: the model cannot be used.
        MismatchError: the model is another one.
    """
    torch.set_num_threads(props.birth.threads)
    directory, info = find_model(props)
    loader = make_loader(directory, info)
    return Actor(role=EdgeRole(birth=props.birth, load=loader, chunk_bytes=props.chunk_bytes))
