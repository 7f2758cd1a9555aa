"""Changes of what is held: the layout is what is written down, and going on from what was read comes near."""

import hashlib
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.errors import NotFiniteError
from iotsplit.tensors import changes
from iotsplit.tensors.rotated import hadamard

SIZES = st.tuples(st.integers(0, 4), st.integers(1, 200))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scale(name: int) -> float:
    return 2.0 ** (name // 4 - 48) * float(torch.tensor(2 ** (name % 4 / 4))) if name else 0.0


def by_hand(data: bytes, held: torch.Tensor) -> torch.Tensor:
    """Read one value after the other, as the layout says."""
    tokens, width = held.shape
    blocks, apart = -(-width // 64), min(8, width)
    largest = held.abs().amax(dim=0).tolist()
    strong = sorted(sorted(range(width), key=lambda channel: (-largest[channel], channel))[:apart])
    whole = struct.unpack(f"{tokens * apart}b", data[tokens : tokens * (1 + apart)])
    names = data[tokens * (1 + apart) :][: tokens * blocks]
    signs = data[tokens * (1 + apart + blocks) :]
    read = held.clone()
    for block, name in enumerate(names):
        eight = signs[8 * block : 8 * block + 8]
        turned = [1 if eight[n // 8] >> n % 8 & 1 else -1 for n in range(64)]
        token, first = block // blocks, block % blocks * 64
        for channel in range(first, min(first + 64, width)):
            row = hadamard()[channel - first].tolist()
            read[token, channel] += sum(h * s for h, s in zip(row, turned, strict=True)) * scale(name) / 8
    for token in range(tokens):
        for n, channel in enumerate(strong):
            read[token, channel] += whole[token * apart + n] * scale(data[token])
    return read


@pytest.mark.parametrize("size", [(3, 70), (2, 64), (5, 200), (1, 5)])
def test_it_is_read_as_the_layout_says(size: tuple[int, int]) -> None:
    held = noise(*size)
    held[:, size[1] // 2] *= 300
    data = changes.pack(held + noise(*size, seed=1) / 10, held)
    assert torch.allclose(changes.unpack(data, held), by_hand(data, held), rtol=1e-5, atol=1e-6)


def test_the_same_bytes_on_all_machines() -> None:
    held = (torch.arange(4 * 96).reshape(4, 96) % 17 - 8) / 4
    values = held + (torch.arange(4 * 96).reshape(4, 96) % 5 - 2) / 64
    data = changes.pack(values, held)
    assert hashlib.sha256(data).hexdigest()[:16] == "93be21cb944913b8"
    assert hashlib.sha256(changes.unpack(data, held).numpy().tobytes()).hexdigest()[:16] == "5509aa024fef74fb"


@given(SIZES, st.integers(0, 2**32))
def test_its_length_is_known_beforehand(size: tuple[int, int], seed: int) -> None:
    held = noise(*size, seed=seed)
    data = changes.pack(noise(*size, seed=seed + 1), held)
    assert len(data) == changes.size_bytes(*size)
    assert changes.unpack(data, held).shape == size


@given(SIZES)
def test_what_has_not_changed_is_read_as_it_was(size: tuple[int, int]) -> None:
    held = noise(*size)
    assert torch.equal(changes.unpack(changes.pack(held, held), held), held)


def test_what_is_left_out_comes_later() -> None:
    held, values = noise(8, 192), noise(8, 192, seed=1)
    errors = []
    for _ in range(30):
        held = changes.unpack(changes.pack(values, held), held)
        errors.append(float((held - values).norm() / values.norm()))
    assert errors[-1] < 0.03 < errors[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("channel", [0, 50])
def test_what_is_not_finite_is_not_sent(value: float, channel: int) -> None:
    held = noise(2, 64)
    held[:, :8] *= 100  # the channels apart
    values = held.clone()
    values[1, channel] = value
    with pytest.raises(NotFiniteError):
        changes.pack(values, held)
