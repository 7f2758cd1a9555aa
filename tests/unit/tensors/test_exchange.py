"""What tiers exchange is within the fleet's bound, or an error that says whose fault it is."""

import math
from typing import Any

import msgspec
import pytest
import torch

from iotsplit.errors import DivergedError, NotFiniteError, TensorRefusedError
from iotsplit.messages import Activation, Identity, PackedTensor
from iotsplit.plan import Tier
from iotsplit.settings import Codec, TrainingSettings
from iotsplit.tensors.compression import pack
from iotsplit.tensors.exchange import Exchange, as_metrics, is_checked

SHAPE = (2, 3, 4)
BOUND = 10.0


def _exchange(codec: Codec) -> Exchange:
    settings = TrainingSettings(codec=codec, norm_bound=BOUND, batch_size=2, micro_batches=1, sequence_length=3)
    return Exchange(settings, width=4)


def _activation(**changes: Any) -> Activation:
    tensor = PackedTensor(scheme="fp32", shape=SHAPE, data=b"")
    plain: dict[str, Any] = {"hidden": tensor, "mask": tensor, "step_tokens": 6, "steps": 1}
    return Activation(**(plain | changes))


def test_activations_and_gradients_may_have_codecs_of_their_own() -> None:
    exchange = Exchange(
        TrainingSettings(codec="int4:int8", batch_size=2, micro_batches=1, sequence_length=3), 4
    )
    tensor = torch.ones(SHAPE)
    assert exchange.pack_hidden(tensor).scheme == "int4"
    assert exchange.pack_gradient(tensor).scheme == "int8"
    exchange.unpack_hidden(exchange.pack_hidden(tensor), SHAPE)
    exchange.unpack_gradient(exchange.pack_gradient(tensor), SHAPE)
    with pytest.raises(TensorRefusedError, match="scheme 'int8' instead of int4"):
        exchange.unpack_hidden(exchange.pack_gradient(tensor), SHAPE)


@pytest.mark.parametrize("codec", Codec)
def test_hidden_states_are_bounded_by_their_root_mean_square(codec: Codec) -> None:
    exchange = _exchange(codec)
    fine = torch.full(SHAPE, BOUND * 0.99)
    read = exchange.unpack_hidden(exchange.pack_hidden(fine), SHAPE)
    assert torch.allclose(read, fine, rtol=0.01) or codec is Codec.INT2
    with pytest.raises(DivergedError, match="to send has a norm"):
        exchange.pack_hidden(fine * 1.1)
    with pytest.raises(TensorRefusedError, match="received has a norm"):
        exchange.unpack_hidden(pack(fine * 8, codec), SHAPE)


@pytest.mark.parametrize("codec", Codec)
def test_gradients_are_bounded_by_their_norm(codec: Codec) -> None:
    exchange = _exchange(codec)
    fine = torch.full(SHAPE, BOUND * 0.99 / math.sqrt(math.prod(SHAPE)))
    read = exchange.unpack_gradient(exchange.pack_gradient(fine), SHAPE)
    assert torch.allclose(read, fine, rtol=0.01) or codec is Codec.INT2
    with pytest.raises(DivergedError, match="to send has a norm"):
        exchange.pack_gradient(fine * 1.1)
    with pytest.raises(TensorRefusedError, match="received has a norm"):
        exchange.unpack_gradient(pack(fine * 8, codec), SHAPE)


def test_what_is_too_large_to_be_squared_is_too_large() -> None:
    with pytest.raises(TensorRefusedError, match="norm of inf"):
        _exchange(Codec.FP32).unpack_hidden(pack(torch.full(SHAPE, 1e30), Codec.FP32), SHAPE)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_named_as_such(value: float) -> None:
    exchange = _exchange(Codec.FP32)
    values = torch.full(SHAPE, value)
    with pytest.raises(DivergedError, match="tensor to send holds NaN"):
        exchange.pack_gradient(values)
    packed = PackedTensor(scheme="fp32", shape=SHAPE, data=values.numpy().tobytes())
    with pytest.raises(NotFiniteError):
        exchange.unpack_hidden(packed, SHAPE)


def test_an_activation_is_at_most_as_large_as_agreed() -> None:
    exchange = _exchange(Codec.FP32)
    assert exchange.shape_of(_activation()) == SHAPE
    for wrong in ((3, 3, 4), (2, 4, 4), (2, 3, 3), (2, 3, 5), (0, 3, 4), (2, 3), (2, 3, 4, 1)):
        hidden = PackedTensor(scheme="fp32", shape=wrong, data=b"")
        with pytest.raises(TensorRefusedError, match="hidden states of shape"):
            exchange.shape_of(_activation(hidden=hidden))


def test_a_step_has_no_more_loss_tokens_than_tokens() -> None:
    with pytest.raises(TensorRefusedError, match="7 loss tokens in a step of 2 x 3"):
        _exchange(Codec.FP32).shape_of(_activation(step_tokens=7))


def test_the_same_micro_batches_are_checked_whoever_asks_and_about_as_many_as_were_asked_for() -> None:
    places = [Identity(f"run-t{n}-a", step, 0, "activation") for n in range(50) for step in range(100)]
    some, all_, none = (
        [place for place in places if is_checked(place, TrainingSettings(codec_check=share))]
        for share in (0.1, 1.0, 0.0)
    )
    assert (all_, none) == (places, [])
    assert 400 < len(some) < 600
    other = [place for place in places if is_checked(place, TrainingSettings(codec_check=0.1, seed=1))]
    assert other != some
    assert all(
        is_checked(msgspec.structs.replace(place, kind="gradient"), TrainingSettings(codec_check=0.1))
        for place in some
    )


def test_an_error_is_measured_only_where_a_place_is_named_and_told_once() -> None:
    exchange = Exchange(TrainingSettings(codec="int8", codec_check=1.0), width=4)
    at = Identity("s", 3, 1, "gradient")
    exchange.pack_gradient(torch.rand(SHAPE))
    exchange.pack_gradient(torch.rand(SHAPE), at)
    (found,) = exchange.take_errors()
    assert found.identity == at
    assert 0 < found.error < exchange.largest_error("gradient")
    assert exchange.take_errors() == []
    (metrics,) = as_metrics([found], agent="edge-1", role=Tier.EDGE, round_=2)
    assert (metrics.session, metrics.step, metrics.codec_error) == ("s", 3, {"gradient": found.error})
