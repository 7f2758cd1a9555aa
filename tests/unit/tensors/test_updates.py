"""LoRA updates come back within the bound of their codec, and nothing else is taken for one."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from iotsplit.errors import NotFiniteError, TensorRefusedError
from iotsplit.settings import Optimizer, TrainingSettings, UpdateCodec
from iotsplit.tensors import updates
from iotsplit.tensors.bounds import adamw_steps, check_update
from iotsplit.tensors.updates import decode, encode

A, B = "layers.0.q_proj.lora_A.weight", "layers.0.q_proj.lora_B.weight"
SMALL = [UpdateCodec.BF16, UpdateCodec.INT8]


def version(seed: int = 0, inner: int = 12, outer: int = 20, rank: int = 3) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {A: torch.rand(rank, inner, generator=noise), B: torch.zeros(outer, rank)}


def trained(start: dict[str, torch.Tensor], seed: int = 1, size: float = 1e-2) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {n: t + size * (2 * torch.rand(t.shape, generator=noise) - 1) for n, t in start.items()}


def test_every_codec_has_a_bound() -> None:
    assert set(updates.LARGEST_GROWTH) == set(UpdateCodec)


@given(st.integers(0, 2**32), st.sampled_from([1e-12, 1e-3, 1.0, 1e6]))
def test_fp32_is_exact(seed: int, size: float) -> None:
    start = version()
    after = trained(start, seed, size)
    back = decode(encode(after, start, UpdateCodec.FP32), start, UpdateCodec.FP32)
    assert all(torch.equal(back[name], after[name]) for name in after)


@given(
    st.integers(0, 2**32),
    st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
    st.sampled_from(SMALL),
    st.integers(1, 5),
    st.integers(1, 70),
)
def test_a_change_is_off_by_its_bound_at_most(
    seed: int, size: float, codec: UpdateCodec, rank: int, inner: int
) -> None:
    start = version(rank=rank, inner=inner)
    after = trained(start, seed, size)
    back = decode(encode(after, start, codec), start, codec)
    assert back.keys() == after.keys()
    for name, value in after.items():
        change = value - start[name]
        largest = change.abs().max() if codec is UpdateCodec.INT8 else change.abs()
        bound = largest / (254 if codec is UpdateCodec.INT8 else 256)
        rounding = 3e-7 * (start[name].abs() + change.abs())
        assert ((back[name] - value).abs() <= bound + rounding).all()


@pytest.mark.parametrize("codec", SMALL)
def test_a_parameter_that_has_not_moved_stays_to_the_bit(codec: UpdateCodec) -> None:
    start = version()
    after = start | {B: start[B] + 0.01}
    back = decode(encode(after, start, codec), start, codec)
    assert torch.equal(back[A], start[A])


def test_the_layout_of_int8_is_a_scale_for_each_line_of_the_longer_side() -> None:
    start = {A: torch.zeros(2, 3), B: torch.zeros(3, 2)}
    after = {
        A: torch.tensor([[127.0, 1.5, -2.0], [0.0, 0.0, 0.0]]),
        B: torch.tensor([[0.0, -254.0], [2.0, 3.0], [-127.0, 5.0]]),
    }
    stored = load(encode(after, start, UpdateCodec.INT8))
    assert {name: value.tolist() for name, value in stored.items()} == {
        A: [[127, 2, -2], [0, 0, 0]],
        f"{A}/scale": [[1.0], [0.0]],
        B: [[0, -127], [2, 2], [-127, 2]],
        f"{B}/scale": [[1.0, 2.0]],
    }
    assert {name: value.dtype for name, value in load(encode(after, start, UpdateCodec.BF16)).items()} == {
        A: torch.bfloat16,
        B: torch.bfloat16,
    }


@pytest.mark.parametrize("codec", UpdateCodec)
@pytest.mark.parametrize("optimizer", Optimizer)
def test_the_furthest_that_an_optimizer_goes_is_not_refused_for_its_rounding(
    codec: UpdateCodec, optimizer: Optimizer
) -> None:
    settings = TrainingSettings(local_steps=1, optimizer=optimizer, norm_bound=1.0, update_codec=codec)
    start = version()
    count = sum(value.numel() for value in start.values())
    adamw = settings.learning_rate * adamw_steps(1)
    reach = adamw if optimizer is Optimizer.ADAMW else settings.learning_rate / math.sqrt(count)
    after = {name: value + reach * 0.9999995 for name, value in start.items()}
    back = decode(encode(after, start, codec), start, codec)
    check_update(start, back, settings, growth=updates.LARGEST_GROWTH[codec])
    further = {name: value + 1.05 * reach for name, value in start.items()}
    with pytest.raises(TensorRefusedError, match="moves by"):
        check_update(
            start,
            decode(encode(further, start, codec), start, codec),
            settings,
            growth=updates.LARGEST_GROWTH[codec],
        )


@pytest.mark.parametrize("codec", UpdateCodec)
def test_an_update_of_another_codec_or_with_other_names_is_refused(codec: UpdateCodec) -> None:
    start = version()
    after = trained(start)
    for other in UpdateCodec:
        if other is not codec:
            with pytest.raises(TensorRefusedError):
                decode(encode(after, start, other), start, codec)
    plain = load(encode(after, start, codec))
    for wrong in (
        {name: value for name, value in plain.items() if not name.startswith(A)},
        plain | {"other": torch.zeros(1)},
        plain | {A: plain[A][:1]},
        plain | {A: plain[A].to(torch.float64)},
    ):
        with pytest.raises(TensorRefusedError):
            decode(save({name: value.contiguous() for name, value in wrong.items()}), start, codec)
    with pytest.raises(TensorRefusedError, match="not safetensors"):
        decode(b"garbage", start, codec)


@pytest.mark.parametrize("codec", UpdateCodec)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(codec: UpdateCodec, value: float) -> None:
    start = version()
    plain = load(encode(trained(start), start, codec))
    name = f"{A}/scale" if codec is UpdateCodec.INT8 else A
    plain[name] = torch.full_like(plain[name], value)
    with pytest.raises(NotFiniteError):
        decode(save(plain), start, codec)
