"""Two bits a value: read and written as the layout says, with the error of the best grid."""

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.errors import NotFiniteError
from iotsplit.tensors import logscales, normal
from iotsplit.tensors.rotated import hadamard

VALUES = {0: -3, 1: -10, 2: 3, 3: 10}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def around(values: torch.Tensor) -> torch.Tensor:
    data = normal.pack(values)
    assert len(data) == normal.size_bytes(*values.shape)
    return torch.from_numpy(normal.unpack(data, *values.shape))


def lost(values: torch.Tensor) -> float:
    return float((around(values) - values).norm() / values.norm())


def scale(name: int) -> np.float32:
    power = np.float32(2 ** (name % 4 / 4)) * np.float32(2.0 ** (name // 4 - 48))
    return power if name else np.float32(0)


def test_a_reader_in_plain_arithmetic_reads_the_same_bits() -> None:
    tokens, width = 3, 70
    data = normal.pack(noise(tokens, width))
    read = normal.unpack(data, tokens, width)
    names, stored = data[: 2 * tokens], data[2 * tokens :]
    for block, name in enumerate(names):
        whole = [
            VALUES[byte >> shift & 3] for byte in stored[16 * block : 16 * block + 16] for shift in (0, 2, 4, 6)
        ]
        token, first = divmod(block, 2)
        for channel in range(min(64, width - 64 * first)):
            total = sum(q * (-1) ** ((channel & at).bit_count()) for at, q in enumerate(whole))
            unit = scale(name) * (np.float32(0.151) / np.float32(8))
            assert read[token, 64 * first + channel] == np.float32(total) * unit


def test_a_writer_in_plain_arithmetic_writes_the_same_bytes() -> None:
    values = noise(2, 64, seed=4)
    names, stored = b"", b""
    for block in values.double() @ hadamard().double() / 8:
        name = round(4 * (math.log2(float(block.square().mean().sqrt())) + 48))
        unit = 0.151 * float(scale(name))
        codes = [2 * (value >= 0) + (abs(value) >= 6.5 * unit) for value in block.tolist()]
        names += bytes([name])
        stored += bytes(a | b << 2 | c << 4 | d << 6 for a, b, c, d in zip(*[iter(codes)] * 4, strict=True))
    assert normal.pack(values) == names + stored


def test_these_bytes_stay_as_they_are() -> None:
    # Another program, or another machine, can hold itself to them.
    values = torch.arange(-60, 70).reshape(2, 65).to(torch.float32) ** 3 / 1000
    assert hashlib.sha256(normal.pack(values)).hexdigest()[:16] == "c09d142d98bb0a48"


def test_of_normal_values_is_lost_what_the_best_grid_loses() -> None:
    assert lost(noise(64, 576)) == pytest.approx(math.sqrt(0.1175), abs=0.01)


@given(st.integers(1, 4), st.integers(1, 200), st.integers(0, 2**32), st.floats(-35, 12), st.booleans())
def test_the_error_is_within_its_bound(tokens: int, width: int, seed: int, size: float, lone: bool) -> None:
    values = noise(tokens, width, seed=seed) * 2**size
    if lone:
        values[:, : width - 1] = 0  # as far from normal as can be
    assert lost(values) <= normal.LARGEST_ERROR


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e3])
def test_gradients_of_any_size_keep_their_precision(size: float) -> None:
    assert lost(noise(8, 576) * size) < 0.37


def test_zeros_and_what_is_next_to_them_are_read_as_zeros() -> None:
    assert not around(torch.zeros(2, 70)).any()
    assert not around(torch.full((2, 70), 1e-20)).any()
    assert around(torch.zeros(0, 70)).shape == (0, 70)


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38, 1e20])
def test_what_is_too_large_or_no_number_is_not_packed(value: float) -> None:
    values = noise(2, 64)
    values[1, 3] = value
    with pytest.raises(NotFiniteError):
        normal.pack(values)


def test_every_scale_has_its_byte() -> None:
    names = np.arange(1, 256, dtype=np.uint8)
    assert (logscales.nearest(logscales.SCALES[1:]) == names).all()
    assert (logscales.nearest(logscales.SCALES[1:] * np.float32(1.08)) == names).all()
    assert (logscales.nearest(logscales.SCALES[1:] * np.float32(0.93)) == names).all()
    assert logscales.SCALES[192 + 4] == 2
