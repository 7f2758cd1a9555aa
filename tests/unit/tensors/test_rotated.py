"""Few bits a value: the layout is what is written down, the error within its bound, odd sizes come back."""

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.errors import NotFiniteError, TensorRefusedError
from iotsplit.tensors.compression import INT4, INT8
from iotsplit.tensors.rotated import BLOCK, Rotated, hadamard

WIDTHS = st.integers(1, 200)
PLAIN4 = Rotated(bits=4, apart=0)
SCHEMES = st.sampled_from([INT4, INT8, PLAIN4])


def around(scheme: Rotated, values: torch.Tensor) -> torch.Tensor:
    data = scheme.pack(values)
    assert len(data) == scheme.size_bytes(*values.shape)
    return torch.from_numpy(scheme.unpack(data, *values.shape))


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    tokens, width = draw(st.integers(0, 4)), draw(WIDTHS)
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    values = torch.randn(tokens, width, generator=noise) * draw(st.floats(1e-30, 1e30))
    if tokens and draw(st.booleans()):
        values[:, draw(st.integers(0, width - 1))] *= 1000  # a channel as models have them
    return values


def blocks(values: torch.Tensor) -> torch.Tensor:
    missing = -values.shape[1] % BLOCK
    return torch.nn.functional.pad(values, (0, missing)).reshape(-1, BLOCK).double()


def strongest(scheme: Rotated, values: torch.Tensor) -> list[int]:
    """The channels that are sent apart, chosen one by one."""
    largest = values.abs().amax(dim=0).tolist() if len(values) else [0.0] * values.shape[1]
    order = sorted(range(len(largest)), key=lambda channel: (-largest[channel], channel))
    return sorted(order[: scheme.apart])


@given(tensors(), SCHEMES)
def test_the_error_of_a_block_is_within_its_bound(values: torch.Tensor, scheme: Rotated) -> None:
    apart = strongest(scheme, values)
    back, rest = around(scheme, values), values.clone()
    assert torch.equal(back[:, apart], values[:, apart].to(torch.bfloat16).to(torch.float32))
    back[:, apart] = rest[:, apart] = 0
    turned = blocks(rest) @ (hadamard().double() / 8)
    scales = turned.abs().amax(dim=1) / scheme.largest
    errors = (blocks(back) - blocks(rest)).norm(dim=1)
    assert (errors <= 4.2 * scales * (1 + 2**-8) + 1e-37).all()


@given(tensors(), SCHEMES)
def test_shapes_that_the_block_does_not_divide_come_back_as_they_were(
    values: torch.Tensor, scheme: Rotated
) -> None:
    assert around(scheme, values).shape == values.shape
    assert around(scheme, values).is_contiguous()


def test_channels_that_are_sent_apart_cost_the_others_nothing() -> None:
    values = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    values[:, 5] *= 1000
    kept = [channel for channel in range(64) if channel not in strongest(INT4, values)]
    near, far = ((around(each, values) - values)[:, kept].norm() for each in (INT4, PLAIN4))
    assert near < far / 10


def test_the_layout_of_four_bits_is_scales_then_pairs_of_values() -> None:
    # One block whose rotation is known: 8 in channel 0 gives 1 in every rotated channel.
    values = torch.zeros(1, 64)
    values[0, 0] = 8 * 7 * 0.5
    assert PLAIN4.pack(values) == b"\x00\x3f" + bytes([0xFF]) * 32  # bf16 0.5; each value 7, stored as 15


def test_the_layout_of_eight_bits_is_scales_then_values() -> None:
    values = torch.zeros(1, 64)
    values[0, 0] = -8 * 127 * 0.5
    assert INT8.pack(values) == b"\x00\x3f" + bytes([0x81]) * 64  # bf16 0.5; each value -127


def test_what_is_sent_apart_comes_first() -> None:
    values = torch.zeros(2, 70)
    values[1, 66] = -2.5
    values[0, 3] = 1.0
    data = INT4.pack(values)
    assert data[:16] == np.array([0, 1, 2, 3, 4, 5, 6, 66], "<u2").tobytes()
    assert data[16:48] == bytes(6) + b"\x80\x3f" + bytes(8) + bytes(14) + b"\x20\xc0"
    assert data[48:] == bytes(2 * 2 * 2) + bytes([0x88]) * (2 * 2 * 32)


def test_the_even_channel_is_in_the_low_bits() -> None:
    # Rotated channels (7, 6, 5, 4, ...) at scale 1: what they come from is their rotation.
    whole = torch.arange(64) % 15 - 7.0
    data = PLAIN4.pack((whole @ hadamard() / 8).unsqueeze(0))
    assert data[:2] == b"\x80\x3f"
    low, high = np.frombuffer(data[2:], np.uint8) & 15, np.frombuffer(data[2:], np.uint8) >> 4
    assert (low.astype(int) - 8).tolist() == whole[0::2].int().tolist()
    assert (high.astype(int) - 8).tolist() == whole[1::2].int().tolist()


def bf16(half: bytes) -> np.float32:
    return np.float32(np.frombuffer(bytes(2) + half, "<f4")[0])


def whole_numbers(scheme: Rotated, stored: bytes) -> list[int]:
    if scheme.bits == 8:
        return [byte - 256 if byte > 127 else byte for byte in stored]
    return [(byte >> shift & 15) - 8 for byte in stored for shift in (0, 4)]


@pytest.mark.parametrize("scheme", [INT4, INT8])
def test_a_reader_in_plain_arithmetic_reads_the_same_bits(scheme: Rotated) -> None:
    tokens, width, size = 3, 70, 8 * scheme.bits
    data = scheme.pack(torch.randn(tokens, width, generator=torch.Generator().manual_seed(1)))
    read = scheme.unpack(data, tokens, width)
    numbers = [int.from_bytes(data[2 * at : 2 * at + 2], "little") for at in range(scheme.apart)]
    rest = data[2 * scheme.apart :]
    strong = [bf16(rest[2 * at : 2 * at + 2]) for at in range(tokens * scheme.apart)]
    rest = rest[2 * len(strong) :]
    for block in range(6):
        scale = bf16(rest[2 * block : 2 * block + 2])
        whole = whole_numbers(scheme, rest[12 + size * block : 12 + size * (block + 1)])
        token, first = divmod(block, 2)
        for channel in range(min(64, width - 64 * first)):
            total = sum(q * (-1) ** ((channel & at).bit_count()) for at, q in enumerate(whole))
            value = np.float32(total) * (scale / np.float32(8))
            if 64 * first + channel in numbers:
                value = strong[token * scheme.apart + numbers.index(64 * first + channel)]
            assert read[token, 64 * first + channel] == value


@pytest.mark.parametrize("scheme", [INT4, INT8])
def test_a_writer_in_plain_arithmetic_writes_the_same_bytes(scheme: Rotated) -> None:
    values = torch.randn(2, 70, generator=torch.Generator().manual_seed(4))
    apart = strongest(scheme, values)
    first = np.array(apart, "<u2").tobytes()
    first += values[:, apart].to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
    values[:, apart] = 0
    scales, stored = b"", b""
    for block in blocks(values).numpy().astype(np.float32):
        turned = list(block)
        for stage in range(6):
            for i in [i for i in range(64) if not i >> stage & 1]:
                j = i + (1 << stage)
                turned[i], turned[j] = turned[i] + turned[j], turned[i] - turned[j]
        scale = torch.tensor(max(map(abs, turned)) / np.float32(8 * scheme.largest)).to(torch.bfloat16)
        step = np.float32(scale.item()) * np.float32(8)
        whole = [int(max(-scheme.largest, min(scheme.largest, np.rint(value / step)))) for value in turned]
        scales += np.float32(scale.item()).tobytes()[2:]
        if scheme.bits == 8:
            stored += bytes(each % 256 for each in whole)
        else:
            pairs = zip(whole[0::2], whole[1::2], strict=True)
            stored += bytes(even + 8 | (odd + 8) << 4 for even, odd in pairs)
    whole_tensor = torch.randn(2, 70, generator=torch.Generator().manual_seed(4))
    assert scheme.pack(whole_tensor) == first + scales + stored


@pytest.mark.parametrize(
    ("scheme", "digest"),
    [
        (INT4, "b845e7aec22d7e2b18b71f81704c359e197fa897dda59f5f915fc06e787abf0d"),
        (INT8, "50151c64499e453763bdc2ace9b330698d5bf2fe8b96de4b953568b52008618c"),
    ],
)
def test_these_bytes_stay_as_they_are(scheme: Rotated, digest: str) -> None:
    # Another program, or another machine, can hold itself to them.
    values = torch.arange(-60, 70).reshape(2, 65).to(torch.float32) ** 3 / 1000
    assert hashlib.sha256(scheme.pack(values)).hexdigest() == digest


@pytest.mark.parametrize(
    "values",
    [torch.zeros(2, 64), torch.full((2, 64), 3.0), torch.full((1, 5), -1e30), torch.full((1, 64), 1e-40)],
    ids=["zeros", "constant", "large", "subnormal"],
)
@pytest.mark.parametrize("scheme", [INT4, INT8, PLAIN4])
def test_extreme_tensors_survive(values: torch.Tensor, scheme: Rotated) -> None:
    back = around(scheme, values)
    assert torch.isfinite(back).all()
    assert (back - values).norm() <= 0.2 * values.norm() + 1e-38


def test_gradients_of_any_size_keep_their_precision() -> None:
    values = torch.randn(8, 576, generator=torch.Generator().manual_seed(2))
    errors = []
    for size in (1e-30, 1.0, 1e30):
        back = around(INT4, values * size).double() / size
        errors.append(float((back - values).norm() / values.norm()))
    assert max(errors) - min(errors) < 1e-3
    assert max(errors) < 0.15


@pytest.mark.parametrize("scheme", [INT4, INT8, PLAIN4])
def test_what_is_too_large_for_a_scale_is_not_packed(scheme: Rotated) -> None:
    with pytest.raises(NotFiniteError):
        scheme.pack(torch.full((1, 64), 3.4e38))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_scale_that_is_no_number_is_not_unpacked(number: float) -> None:
    half = np.float32(number).tobytes()[2:]
    with pytest.raises(NotFiniteError):
        PLAIN4.unpack(half + bytes(32), 1, 64)
    with pytest.raises(NotFiniteError):
        INT8.unpack(half + bytes(64), 1, 64)


def test_a_value_that_came_apart_and_is_no_number_is_refused() -> None:
    data = bytearray(INT4.pack(torch.ones(1, 64)))
    data[16:18] = np.float32(math.inf).tobytes()[2:]
    with pytest.raises(NotFiniteError):
        INT4.unpack(bytes(data), 1, 64)


@pytest.mark.parametrize(
    "numbers", [[0, 1, 2, 3, 4, 5, 6, 64], [0, 1, 2, 3, 5, 4, 6, 7], [0, 0, 1, 2, 3, 4, 5, 6]]
)
def test_channel_numbers_that_nobody_writes_are_refused(numbers: list[int]) -> None:
    data = np.array(numbers, "<u2").tobytes() + INT4.pack(torch.ones(1, 64))[16:]
    with pytest.raises(TensorRefusedError, match="ascending"):
        INT4.unpack(data, 1, 64)
