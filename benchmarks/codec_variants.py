"""Ways to send fewer bits that were tried, as what is left of a tensor at the other side: nothing here is sent.

========  ==========================================================================================
``tK``    K bits for a value and a float32 scale for a token
``rK``    blocks of 64 channels, rotated, K bits for a value and a bf16 scale for a block: `int8` is ``r8``
``rKoC``  the same, with the C strongest channels of the tensor apart, in bf16: `int4` is ``r4o8``
``rKs``   the same as ``rK``, rounded at random (unbiased)
``rKe``   the same as ``rK``; what was lost is added to the next tensor of the same shape (error feedback)
``gKoC``  ``rKoC`` without the rotation
``lKoC``  ``rKoC`` with the best grid for normal values (Max, 1960), and a scale of 8 bits for a block
========  ==========================================================================================
"""

import re
from collections.abc import Callable

import torch

from iotsplit.tensors.rotated import BLOCK, hadamard

NAME = re.compile(r"([rgtl])([2-8])(?:o([0-9]+))?([se]?)")
SCALE_BITS = 16
LEVELS = {
    2: (0.4528, 1.5104),
    3: (0.2451, 0.7560, 1.3439, 2.1520),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326),
}
"""Magnitudes, for values of variance 1."""

Variant = Callable[[torch.Tensor], torch.Tensor]


def is_variant(name: str) -> bool:
    """Whether the name is one of the table's."""
    return NAME.fullmatch(name) is not None


def bits(name: str, width: int) -> float:
    """Bits for a value of a tensor of that width."""
    kind, depth, apart, _ = _parts(name)
    scales = {"t": 32 / width, "l": 8 / BLOCK}.get(kind, SCALE_BITS / BLOCK)
    return depth + scales + 16 * apart / width


def make(name: str, *, seed: int) -> Variant:
    """The variant, with a state of its own.

    Args:
        name: of the table.
        seed: of what is rounded at random.
    """
    kind, depth, apart, extra = _parts(name)
    generator = torch.Generator().manual_seed(seed)
    left: dict[torch.Size, torch.Tensor] = {}

    def around(tensor: torch.Tensor) -> torch.Tensor:
        values = tensor.detach().reshape(-1, tensor.shape[-1]).to(torch.float32)
        if extra == "e":
            values = values + left.get(values.shape, torch.zeros(()))
        noise = torch.rand(values.numel(), generator=generator) - 0.5 if extra == "s" else None
        kept = values.abs().amax(dim=0).topk(apart).indices
        rest = values.clone()
        rest[:, kept] = 0
        largest = 2 ** (depth - 1) - 1
        if kind == "l":
            read = _normal(rest, depth)
        elif kind == "t":
            read = _tokens(rest, largest)
        else:
            read = _blocks(rest, largest, rotated=kind == "r", noise=noise)
        read[:, kept] = values[:, kept].to(torch.bfloat16).to(torch.float32)
        if extra == "e":
            left[values.shape] = values - read
        return read.reshape(tensor.shape)

    return around


def _tokens(values: torch.Tensor, largest: int) -> torch.Tensor:
    scales = values.abs().amax(dim=1, keepdim=True) / largest
    return torch.round(values / torch.where(scales > 0, scales, 1.0)).clamp(-largest, largest) * scales


def _blocks(values: torch.Tensor, largest: int, *, rotated: bool, noise: torch.Tensor | None) -> torch.Tensor:
    blocks = values.reshape(-1, BLOCK)  # widths that 64 divides
    matrix = hadamard() / BLOCK**0.5
    turned = blocks @ matrix if rotated else blocks
    scales = (turned.abs().amax(dim=1, keepdim=True) / largest).to(torch.bfloat16).to(torch.float32)
    steps = turned / torch.where(scales > 0, scales, 1.0)
    whole = torch.round(steps if noise is None else steps + noise.reshape(steps.shape))
    read = whole.clamp(-largest, largest) * scales
    return (read @ matrix if rotated else read).reshape(values.shape)


def _normal(values: torch.Tensor, depth: int) -> torch.Tensor:
    matrix = hadamard() / BLOCK**0.5
    turned = values.reshape(-1, BLOCK) @ matrix
    norms = turned.square().mean(dim=1, keepdim=True).sqrt().clamp(min=2.0**-60)
    scales = torch.exp2(torch.round(8 * norms.log2()) / 8)
    levels = torch.tensor(LEVELS[depth])
    nearest = levels[((turned.abs() / scales).unsqueeze(2) - levels).abs().argmin(dim=2)]
    read: torch.Tensor = (nearest * turned.sign() * scales @ matrix).reshape(values.shape)
    return read


def _parts(name: str) -> tuple[str, int, int, str]:
    found = NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"no variant is called {name}")
    kind, depth, apart, extra = found.groups()
    return kind, int(depth), int(apart or 0), extra
