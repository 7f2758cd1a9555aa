"""Tensors survive the bus, within the bounds of their codec; what is wrong is refused."""

import math

import lz4.frame
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iotsplit.errors import NotFiniteError, TensorRefusedError
from iotsplit.messages import PackedTensor
from iotsplit.settings import Codec
from iotsplit.tensors import compression
from iotsplit.tensors.compression import (
    pack,
    pack_integers,
    relative_error,
    unpack,
    unpack_integers,
    unpack_labels,
    unpack_mask,
)

WIDE = [codec for codec in Codec if codec is not Codec.INT2]
"""For values of any size, and constant ones; `int2` is held to what it promises in test_normal."""
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def tensors(draw: st.DrawFn, largest: float = 2.0**100) -> torch.Tensor:
    shape = draw(SHAPES)
    values = st.floats(-largest, largest, width=32)
    count = math.prod(shape)
    return torch.tensor(draw(st.lists(values, min_size=count, max_size=count)), dtype=torch.float32).reshape(
        shape
    )


def _around(tensor: torch.Tensor, codec: Codec) -> torch.Tensor:
    return unpack(pack(tensor, codec), shape=tuple(tensor.shape), codec=codec)


def test_every_codec_has_a_scheme() -> None:
    assert set(compression.SCHEMES) == set(Codec)


@given(tensors(largest=2.0**127))
def test_fp32_is_exact(tensor: torch.Tensor) -> None:
    assert torch.equal(_around(tensor, Codec.FP32), tensor)


@given(tensors())
def test_bf16_is_torchs_rounding(tensor: torch.Tensor) -> None:
    assert torch.equal(_around(tensor, Codec.BF16), tensor.to(torch.bfloat16).to(torch.float32))


@given(tensors(), st.sampled_from(WIDE))
def test_packing_twice_gives_the_same_bytes_of_the_announced_size(tensor: torch.Tensor, codec: Codec) -> None:
    first, second = pack(tensor, codec), pack(tensor.clone(), codec)
    assert first == second
    assert first.shape == tuple(tensor.shape)


@given(tensors(largest=100), st.sampled_from(Codec))
def test_a_tensor_that_is_not_contiguous_packs_as_its_copy(tensor: torch.Tensor, codec: Codec) -> None:
    turned = tensor.transpose(0, -1) if tensor.ndim > 1 else tensor
    assert pack(turned, codec) == pack(turned.contiguous(), codec)


@pytest.mark.parametrize("codec", Codec)
def test_what_is_unpacked_lies_where_torch_would_have_put_it(codec: Codec) -> None:
    packed = pack(torch.randn(3, 64), codec)
    assert unpack(packed, shape=(3, 64), codec=codec).data_ptr() % 64 == 0


def test_fp32_is_little_endian() -> None:
    assert pack(torch.tensor([1.0]), Codec.FP32).data == b"\x00\x00\x80\x3f"


def test_the_bf16_layout_is_high_bytes_then_low_bytes() -> None:
    # 1.0 is 3f80, -2.5 is c020, 1e-40 (subnormal) is 0001.
    packed = pack(torch.tensor([[1.0, -2.5, 1e-40]]), Codec.BF16)
    assert packed.data == b"\x3f\xc0\x00" + b"\x80\x20\x01"


def test_bf16_in_this_order_compresses() -> None:
    values = torch.randn(64, 576, generator=torch.Generator().manual_seed(3))
    data = pack(values, Codec.BF16).data
    assert len(lz4.frame.compress(data)) < 0.92 * len(data)


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_not_packed(codec: Codec, value: float) -> None:
    with pytest.raises(NotFiniteError):
        pack(torch.tensor([[1.0, value]]), codec)


def test_a_value_too_large_for_bf16_is_not_packed() -> None:
    with pytest.raises(NotFiniteError):
        pack(torch.tensor([3.4e38]), Codec.BF16)


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        (Codec.FP32, b"\x00\x00\xc0\x7f"),
        (Codec.BF16, b"\x7f\x80"),
        (Codec.INT8, b"\xc0\x7f" + bytes(64)),
        (Codec.INT4, bytes(2) + b"\x80\x7f" + bytes(34)),
    ],
)
def test_values_that_are_not_finite_are_not_unpacked(codec: Codec, data: bytes) -> None:
    packed = PackedTensor(scheme=codec.value, shape=(1, 1), data=data)
    with pytest.raises(NotFiniteError):
        unpack(packed, shape=(1, 1), codec=codec)


@pytest.mark.parametrize("codec", Codec)
def test_another_scheme_shape_or_length_is_refused(codec: Codec) -> None:
    packed = pack(torch.ones(2, 3), codec)
    other = next(name for name in Codec if name is not codec)
    for wrong in (
        PackedTensor(scheme=other.value, shape=(2, 3), data=packed.data),
        PackedTensor(scheme="pickle", shape=(2, 3), data=packed.data),
        PackedTensor(scheme=codec.value, shape=(3, 2), data=packed.data),
        PackedTensor(scheme=codec.value, shape=(2, 3, 1), data=packed.data),
        PackedTensor(scheme=codec.value, shape=(2, 3), data=packed.data[:-1]),
        PackedTensor(scheme=codec.value, shape=(2, 3), data=packed.data + b"\0"),
        PackedTensor(scheme=codec.value, shape=(1 << 40, 1 << 40), data=packed.data),
    ):
        with pytest.raises(TensorRefusedError):
            unpack(wrong, shape=(2, 3), codec=codec)


@given(st.binary(max_size=40), st.sampled_from(Codec))
def test_any_bytes_are_a_finite_tensor_or_refused(data: bytes, codec: Codec) -> None:
    packed = PackedTensor(scheme=codec.value, shape=(2, 4), data=data)
    try:
        values = unpack(packed, shape=(2, 4), codec=codec)
    except (TensorRefusedError, NotFiniteError):
        return
    assert torch.isfinite(values).all()


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=6, max_size=6))
def test_ids_and_labels_are_exact(values: list[int]) -> None:
    tensor = torch.tensor(values).reshape(2, 3)
    assert torch.equal(unpack_integers(pack_integers(tensor), (2, 3)), tensor)


@settings(max_examples=20)
@given(st.lists(st.booleans(), min_size=6, max_size=6))
def test_a_mask_takes_a_byte_for_each_position(values: list[int]) -> None:
    tensor = torch.tensor(values).reshape(2, 3)
    packed = pack_integers(tensor)
    assert (packed.scheme, len(packed.data)) == ("u8", 6)
    back = unpack_integers(packed, (2, 3))
    assert back.dtype == torch.int64
    assert torch.equal(back, tensor.to(torch.int64))


def test_integers_are_little_endian_int32() -> None:
    assert pack_integers(torch.tensor([-100, 258])).data == b"\x9c\xff\xff\xff\x02\x01\x00\x00"


def test_no_integers_are_no_bytes() -> None:
    packed = pack_integers(torch.zeros(0, 3, dtype=torch.int64))
    assert packed.data == b""
    assert unpack_integers(packed, (0, 3)).shape == (0, 3)


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_integers_beyond_32_bits_are_refused(value: float) -> None:
    with pytest.raises(TensorRefusedError):
        pack_integers(torch.tensor([value]))


def test_integers_of_another_scheme_shape_or_length_are_refused() -> None:
    for scheme, shape, data in (
        ("fp32", (2,), bytes(8)),
        ("i32", (3,), bytes(8)),
        ("i32", (2,), bytes(7)),
        ("u8", (2,), bytes(3)),
    ):
        with pytest.raises(TensorRefusedError):
            unpack_integers(PackedTensor(scheme=scheme, shape=shape, data=data), (2,))


@pytest.mark.parametrize("value", [-1, 2, 255])
def test_a_mask_holds_nothing_but_0_and_1(value: int) -> None:
    packed = pack_integers(torch.tensor([[1, 0, value]]))
    with pytest.raises(TensorRefusedError, match="other than 0 and 1"):
        unpack_mask(packed, (1, 3))
    assert unpack_mask(pack_integers(torch.tensor([[1, 0]])), (1, 2)).tolist() == [[1, 0]]


def test_labels_are_ids_of_the_vocabulary_or_no_loss() -> None:
    labels = torch.tensor([[4, -100, 0]])
    assert torch.equal(unpack_labels(pack_integers(labels), (1, 3), 5, most=2), labels)
    for value in (5, -1, -101):
        with pytest.raises(TensorRefusedError, match="vocabulary"):
            unpack_labels(pack_integers(torch.tensor([[1, value]])), (1, 2), 5, most=9)


@pytest.mark.parametrize(("labels", "most"), [([1, 2], 1), ([-100, -100], 9)])
def test_labels_are_as_many_as_announced_and_at_least_one(labels: list[int], most: int) -> None:
    with pytest.raises(TensorRefusedError, match="loss tokens"):
        unpack_labels(pack_integers(torch.tensor([labels])), (1, 2), 5, most=most)


def test_labels_that_are_missing_are_refused() -> None:
    with pytest.raises(TensorRefusedError, match="no labels"):
        unpack_labels(None, (1, 2), 5, most=9)


def test_what_is_unpacked_can_be_written_to() -> None:
    for codec in Codec:
        values = _around(torch.zeros(2, 3), codec)
        values += 1
        assert (values == 1).all()


@st.composite
def normal_tensors(draw: st.DrawFn) -> torch.Tensor:
    """Values far from the subnormal ones, a few channels much larger than the rest, or constant."""
    tokens, width = draw(st.integers(1, 4)), draw(st.integers(1, 150))
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    values = torch.randn(tokens, width, generator=noise) * draw(st.sampled_from([1e-20, 1.0, 1e18]))
    values[:, draw(st.integers(0, width - 1))] *= draw(st.sampled_from([0.0, 1.0, 1e4]))
    return torch.full_like(values, 0.3) if draw(st.booleans()) else values


@given(normal_tensors(), st.sampled_from(WIDE))
def test_what_a_codec_loses_is_within_its_bound(tensor: torch.Tensor, codec: Codec) -> None:
    lost = relative_error(pack(tensor, codec), tensor, codec)
    assert lost <= compression.SCHEMES[codec].largest_error


def test_what_is_lost_is_relative_to_the_norm() -> None:
    tensor = torch.tensor([[3.0, 4.0]])
    assert relative_error(pack(torch.tensor([[3.0, 5.0]]), Codec.FP32), tensor, Codec.FP32) == 0.2
    assert relative_error(pack(torch.zeros(1, 2), Codec.INT4), torch.zeros(1, 2), Codec.INT4) == 0.0
    assert relative_error(pack(tensor, Codec.FP32), torch.zeros(1, 2), Codec.FP32) == 1.0


def test_subnormal_values_leave_the_bound_and_that_is_seen() -> None:
    tensor = torch.full((1, 64), 1e-40)
    lost = relative_error(pack(tensor, Codec.BF16), tensor, Codec.BF16)
    assert lost > compression.SCHEMES[Codec.BF16].largest_error


# --- what models do not make, but machines and peers can


@given(st.integers(0, 3), st.integers(1, 200), st.sampled_from(Codec), st.integers(0, 2**32))
def test_any_width_comes_back_as_it_was(tokens: int, width: int, codec: Codec, seed: int) -> None:
    tensor = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))
    back = _around(tensor, codec)
    assert back.shape == tensor.shape
    assert len(pack(tensor, codec).data) == compression.SCHEMES[codec].size_bytes(tokens, width)
    if tokens:
        assert (back - tensor).norm() <= compression.SCHEMES[codec].largest_error * tensor.norm()


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("width", [1, 63, 64, 65, 576])
def test_zeros_of_both_signs_stay_zeros(codec: Codec, width: int) -> None:
    assert (_around(torch.zeros(2, width), codec) == 0).all()
    assert (_around(-torch.zeros(2, width), codec) == 0).all()


@pytest.mark.parametrize("codec", WIDE)
@pytest.mark.parametrize("value", [1.0, -0.37, 6e4, 2.0**-60])
def test_a_constant_tensor_stays_near_its_value(codec: Codec, value: float) -> None:
    tensor = torch.full((3, 64), value)
    # One value in all channels is one channel after the rotation, and the largest of its token.
    assert torch.allclose(_around(tensor, codec), tensor, rtol=2.0**-8)


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("value", [1.4e-45, 1e-40, 1.1e-38])
def test_subnormal_values_come_back_finite_and_no_larger_than_twice(codec: Codec, value: float) -> None:
    tensor = torch.full((2, 70), value)
    tensor[:, ::3] *= -1
    back = _around(tensor, codec)
    assert torch.isfinite(back).all()
    assert float(back.norm()) <= 2 * float(tensor.norm()) + 1e-37


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_float_survives_or_is_refused_by_name(codec: Codec, sign: float) -> None:
    tensor = torch.zeros(1, 70)
    tensor[0, 3] = sign * torch.finfo(torch.float32).max
    try:
        back = _around(tensor, codec)
    except NotFiniteError:
        return
    assert torch.isfinite(back).all()
    assert float(back[0, 3]) == pytest.approx(float(tensor[0, 3]), rel=0.01)


@given(tensors(largest=3.4028234663852886e38), st.sampled_from(Codec))
def test_any_finite_tensor_is_read_finite_or_refused(tensor: torch.Tensor, codec: Codec) -> None:
    try:
        back = _around(tensor, codec)
    except NotFiniteError:
        return
    assert torch.isfinite(back).all()


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 63, 64, 69])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(codec: Codec, value: float, place: int) -> None:
    tensor = torch.ones(2, 70)
    tensor[1, place] = value
    with pytest.raises(NotFiniteError):
        pack(tensor, codec)
