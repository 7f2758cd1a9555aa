"""An optimizer's state as safetensors, by parameter name: so that it survives a restart."""

from collections.abc import Sequence

import torch
from safetensors.torch import load, save


def to_bytes(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> bytes:
    """The state of each parameter, named ``<parameter>/<quantity>``; `names` in the optimizer's order."""
    state = optimizer.state_dict()["state"]
    return save(
        {
            f"{names[index]}/{quantity}": value.detach().clone().contiguous()
            for index, values in state.items()
            for quantity, value in values.items()
            if isinstance(value, torch.Tensor)
        }
    )


def from_bytes(optimizer: torch.optim.Optimizer, names: Sequence[str], data: bytes) -> None:
    """Put a state back."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    place = {name: index for index, name in enumerate(names)}
    for key, value in load(data).items():
        name, quantity = key.rsplit("/", 1)
        state.setdefault(place[name], {})[quantity] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
