"""Four bits a value: the layout is what is written down, the error within its bound, odd sizes come back."""

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.errors import NotFiniteError
from iotsplit.tensors import int4

WIDTHS = st.integers(1, 200)


def around(values: torch.Tensor) -> torch.Tensor:
    data = int4.pack(values)
    assert len(data) == int4.size_bytes(*values.shape)
    return torch.from_numpy(int4.unpack(data, *values.shape))


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    tokens, width = draw(st.integers(0, 4)), draw(WIDTHS)
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    values = torch.randn(tokens, width, generator=noise) * draw(st.floats(1e-30, 1e30))
    if tokens and draw(st.booleans()):
        values[:, draw(st.integers(0, width - 1))] *= 1000  # a channel as models have them
    return values


def blocks(values: torch.Tensor) -> torch.Tensor:
    missing = -values.shape[1] % int4.BLOCK
    return torch.nn.functional.pad(values, (0, missing)).reshape(-1, int4.BLOCK).double()


@given(tensors())
def test_the_error_of_a_block_is_within_its_bound(values: torch.Tensor) -> None:
    errors = (blocks(around(values)) - blocks(values)).norm(dim=1)
    rotated = blocks(values) @ (int4.hadamard().double() / 8)
    scales = rotated.abs().amax(dim=1) / int4.LARGEST
    assert (errors <= 4.2 * scales * (1 + 2**-8) + 1e-37).all()


@given(tensors())
def test_shapes_that_the_block_does_not_divide_come_back_as_they_were(values: torch.Tensor) -> None:
    assert around(values).shape == values.shape
    assert around(values).is_contiguous()


def test_the_layout_is_scales_then_pairs_of_values() -> None:
    # One block whose rotation is known: 8 in channel 0 gives 1 in every rotated channel.
    values = torch.zeros(1, 64)
    values[0, 0] = 8 * 7 * 0.5
    data = int4.pack(values)
    assert data == b"\x00\x3f" + bytes([0xFF]) * 32  # bf16 0.5; each value 7, stored as 15


def test_the_even_channel_is_in_the_low_bits() -> None:
    # Rotated channels (7, 6, 5, 4, ...) at scale 1: what they come from is their rotation.
    whole = torch.arange(64) % 15 - 7.0
    values = (whole @ int4.hadamard() / 8).unsqueeze(0)
    data = int4.pack(values)
    assert data[:2] == b"\x80\x3f"
    low, high = np.frombuffer(data[2:], np.uint8) & 15, np.frombuffer(data[2:], np.uint8) >> 4
    assert (low.astype(int) - 8).tolist() == whole[0::2].int().tolist()
    assert (high.astype(int) - 8).tolist() == whole[1::2].int().tolist()


def test_a_reader_in_plain_arithmetic_reads_the_same_bits() -> None:
    values = torch.randn(3, 70, generator=torch.Generator().manual_seed(1))
    data = int4.pack(values)
    read = int4.unpack(data, 3, 70)
    for block in range(6):
        scale = np.frombuffer(bytes(2) + data[2 * block : 2 * block + 2], "<f4")[0]
        stored = data[12 + 32 * block : 12 + 32 * (block + 1)]
        whole = [(byte >> shift & 15) - 8 for byte in stored for shift in (0, 4)]
        token, first = divmod(block, 2)
        for channel in range(min(64, 70 - 64 * first)):
            total = sum(q * (-1) ** ((channel & at).bit_count()) for at, q in enumerate(whole))
            assert read[token, 64 * first + channel] == np.float32(total) * (scale / np.float32(8))


def test_a_writer_in_plain_arithmetic_writes_the_same_bytes() -> None:
    values = torch.randn(2, 70, generator=torch.Generator().manual_seed(4))
    scales, stored = b"", b""
    for block in blocks(values).numpy().astype(np.float32):
        rotated = list(block)
        for stage in range(6):
            for i in [i for i in range(64) if not i >> stage & 1]:
                j = i + (1 << stage)
                rotated[i], rotated[j] = rotated[i] + rotated[j], rotated[i] - rotated[j]
        scale = torch.tensor(max(map(abs, rotated)) / np.float32(56)).to(torch.bfloat16)
        step = np.float32(scale.item()) * np.float32(8)
        whole = [int(max(-7, min(7, np.rint(value / step)))) + 8 for value in rotated]
        scales += np.float32(scale.item()).tobytes()[2:]
        stored += bytes(even | odd << 4 for even, odd in zip(whole[0::2], whole[1::2], strict=True))
    assert int4.pack(values) == scales + stored


def test_these_bytes_stay_as_they_are() -> None:
    # Another program, or another machine, can hold itself to them.
    values = torch.arange(-60, 70).reshape(2, 65).to(torch.float32) ** 3 / 1000
    assert (
        hashlib.sha256(int4.pack(values)).hexdigest()
        == "400bf98142a2041afea6b548b071a91dc71b05c4dc9070e6b091907f4ba8aa28"
    )


@pytest.mark.parametrize(
    "values",
    [torch.zeros(2, 64), torch.full((2, 64), 3.0), torch.full((1, 5), -1e30), torch.full((1, 64), 1e-40)],
    ids=["zeros", "constant", "large", "subnormal"],
)
def test_extreme_tensors_survive(values: torch.Tensor) -> None:
    back = around(values)
    assert torch.isfinite(back).all()
    assert (back - values).norm() <= 0.2 * values.norm() + 1e-38


def test_gradients_of_any_size_keep_their_precision() -> None:
    values = torch.randn(8, 576, generator=torch.Generator().manual_seed(2))
    errors = []
    for size in (1e-30, 1.0, 1e30):
        back = around(values * size).double() / size
        errors.append(float((back - values).norm() / values.norm()))
    assert max(errors) - min(errors) < 1e-3
    assert max(errors) < 0.15


def test_what_is_too_large_for_a_scale_is_not_packed() -> None:
    with pytest.raises(NotFiniteError):
        int4.pack(torch.full((1, 64), 3.4e38))


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_a_scale_that_is_no_number_is_not_unpacked(scale: float) -> None:
    data = np.float32(scale).tobytes()[2:] + bytes(32)
    with pytest.raises(NotFiniteError):
        int4.unpack(data, 1, 64)
