"""Mutations of a frame's content: into what nobody accepts, and into what could be right as well."""

import math
import random
from collections.abc import Callable
from typing import Any

import msgspec

from iotsplit.messages import (
    Activation,
    Content,
    Contents,
    Gradient,
    PackedTensor,
    Resume,
    Score,
    Stuck,
    TailGradient,
    TailHidden,
    Update,
    Want,
)


def unacceptable(chance: random.Random, content: Contents) -> dict[str, Any]:
    """The fields of a content, some with values, types, shapes or counts that are not acceptable."""
    plain: dict[str, Any] = msgspec.to_builtins(content, builtin_types=(bytes,))
    _SPOIL[type(content)](chance, plain)
    return plain


def plausible(content: Contents) -> Contents:
    """What could be right as well: zeros are values of every scheme."""
    match content:
        case Activation() | TailHidden():
            return msgspec.structs.replace(content, hidden=_zeros(content.hidden))
        case Gradient() | TailGradient():
            return msgspec.structs.replace(content, gradient=_zeros(content.gradient))
        case Score():
            return msgspec.structs.replace(content, loss_sum=content.loss_sum + 1.0)
        case Update():
            return msgspec.structs.replace(content, tensors=content.tensors[:-4] + bytes(4))
    return content


def _zeros(tensor: PackedTensor) -> PackedTensor:
    return msgspec.structs.replace(tensor, data=bytes(len(tensor.data)))


def _scheme(chance: random.Random, tensor: dict[str, Any]) -> None:
    tensor["scheme"] = chance.choice(
        [s for s in ("", "fp64", "mp3", "i32", "u8", "bf16") if s != tensor["scheme"]]
    )


def _shape(chance: random.Random, tensor: dict[str, Any]) -> None:
    shape = list(tensor["shape"])
    wrong = [
        [],
        [0] * len(shape),
        shape[:-1],
        [*shape, 1],
        [-n for n in shape],
        [2**40] * 3,
        [n + 1 for n in shape],
    ]
    tensor["shape"] = chance.choice([*wrong, ["1"], [1.5]])


def _length(chance: random.Random, tensor: dict[str, Any]) -> None:
    tensor["data"] = chance.choice(
        [b"", tensor["data"][:-1], tensor["data"] + b"x", tensor["data"] * 2, "text", None]
    )


def _infinite(chance: random.Random, tensor: dict[str, Any]) -> None:
    # In every scheme the data begin with a float32 or, in bf16, with the upper half of one.
    size = 2 if tensor["scheme"] == "bf16" else 4
    wrong = chance.choice([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff"])
    tensor["data"] = wrong[-size:] + tensor["data"][size:]


def _spoil_tensor(chance: random.Random, tensor: dict[str, Any]) -> None:
    chance.choice([_scheme, _shape, _length, _infinite])(chance, tensor)


def _spoil_activation(chance: random.Random, plain: dict[str, Any]) -> None:
    place = chance.choice(["hidden", "mask", "labels", "step_tokens", "steps"])
    if plain.get("cached") is not None and chance.random() < 1 / 2:
        _spoil_cached(chance, plain["cached"])
    elif place in ("mask", "labels") and plain.get(place) is not None:
        chance.choice([_scheme_of_floats, _shape, _length, _impossible])(chance, plain[place])
    elif place in ("step_tokens", "steps"):
        plain[place] = chance.choice([0, -1, -(2**63), 1.5, "2", None])
    else:
        _spoil_tensor(chance, plain["hidden"])


def _spoil_cached(chance: random.Random, plain: dict[str, Any]) -> None:
    place = chance.choice(["change", "samples", "known"])
    if place == "change":
        chance.choice([_scheme, _shape, _length])(chance, plain["change"])
    elif place == "samples":
        plain["samples"] = chance.choice([[], [-1], [2**63], [0] * 99, ["1"], None])
    else:
        plain["known"] = [*plain["known"], True]


def _scheme_of_floats(chance: random.Random, tensor: dict[str, Any]) -> None:
    tensor["scheme"] = chance.choice(["", "fp32", "int8", "bf16"])


def _impossible(chance: random.Random, tensor: dict[str, Any]) -> None:
    value = chance.choice([61, -1, -101, 2**31 - 1]).to_bytes(4, "little", signed=True)  # no mask, no token id
    tensor["scheme"], tensor["data"] = "i32", value * math.prod(tensor["shape"])


def _spoil_gradient(chance: random.Random, plain: dict[str, Any]) -> None:
    _spoil_tensor(chance, plain["gradient"])


def _spoil_hidden(chance: random.Random, plain: dict[str, Any]) -> None:
    _spoil_tensor(chance, plain["hidden"])


def _spoil_tail_gradient(chance: random.Random, plain: dict[str, Any]) -> None:
    match chance.choice(["gradient", "loss_sum", "tokens"]):
        case "gradient":
            _spoil_tensor(chance, plain["gradient"])
        case "loss_sum":
            plain["loss_sum"] = chance.choice([float("nan"), float("inf"), -float("inf"), 1e301, "1"])
        case _:
            plain["tokens"] = chance.choice([-1, 1.5, "2", None])


def _spoil_score(chance: random.Random, plain: dict[str, Any]) -> None:
    if chance.random() < 0.2:
        plain["exact"] = plain["sequences"] + 1
        return
    name = chance.choice(["loss_sum", "tokens", "exact", "sequences"])
    plain[name] = chance.choice([float("nan"), "1", None, -1 if name != "loss_sum" else 1e301])


def _spoil_update(chance: random.Random, plain: dict[str, Any]) -> None:
    match chance.choice(["tier", "tokens", "tensors", "values"]):
        case "tier":
            plain["tier"] = chance.choice(["cloud", "queen", 1])
        case "tokens":
            plain["tokens"] = chance.choice([0, -1, plain["tokens"] + 1, 2**63, "2"])
        case "tensors":
            cut_off = plain["tensors"][: chance.randrange(len(plain["tensors"]))]
            plain["tensors"] = chance.choice([b"", cut_off, plain["tensors"] + b"x", b"\xff" * 64])
        case _:
            plain["tensors"] = plain["tensors"][:-4] + b"\x00\x00\xc0\x7f"


def _spoil_want(chance: random.Random, plain: dict[str, Any]) -> None:
    plain["wanted"] = chance.choice([None, 1, ["gradient"]])


def _spoil_resume(chance: random.Random, plain: dict[str, Any]) -> None:
    plain[chance.choice(["step", "turn"])] = chance.choice([None, -1, "1", 1.5])


def _spoil_stuck(chance: random.Random, plain: dict[str, Any]) -> None:
    plain["reason"] = chance.choice([None, 1, b"x"])


_SPOIL: dict[type[Content], Callable[[random.Random, dict[str, Any]], None]] = {
    Activation: _spoil_activation,
    Gradient: _spoil_gradient,
    TailHidden: _spoil_hidden,
    TailGradient: _spoil_tail_gradient,
    Score: _spoil_score,
    Update: _spoil_update,
    Want: _spoil_want,
    Resume: _spoil_resume,
    Stuck: _spoil_stuck,
}
