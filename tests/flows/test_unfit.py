"""A session whose numbers are not acceptable leaves the round and is named; the others go on."""

import dataclasses
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lz4.frame
import msgspec
import pytest
import torch

from iotsplit import chunks
from iotsplit.errors import DivergedError
from iotsplit.messages import Gradient, decode_content, encode_content
from iotsplit.packet import Packet
from iotsplit.plan import Labels
from iotsplit.role import Output
from iotsplit.settings import TrainingSettings, UpdateCodec
from iotsplit.tensors.exchange import Exchange
from iotsplit_cloud.role import CloudRole
from iotsplit_cloud.tail import Key
from iotsplit_device.role import DeviceRole
from iotsplit_device.tokens import Tokens
from iotsplit_device.work import DeviceWork
from iotsplit_edge.session import Training
from iotsplit_edge.work import EdgeWork
from tests.flows.weather import WeatherFleet, settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick")]

NAN = b"\x00\x00\xc0\x7f"
HUGE = struct.pack("<f", 1e12)
GROWTH = 1e15


def check(fleet: WeatherFleet, reason: str, *, left: str = "a", gone: str = "b") -> None:
    """One device has left, and the other has trained on."""
    row = fleet.report.rounds[0]
    assert [session["device"] for session in row["sessions"]] == [left]
    (dropped,) = row["dropped"]
    assert dropped["device"] == gone
    assert re.search(reason, dropped["reason"])
    assert fleet.report.ledger["lost"] == fleet.report.ledger["duplicated"] == 0
    assert row["adapter_version"] == 1


class Diverging(WeatherFleet):
    """Device b computes what is no number, from its second step on or at once."""

    def __init__(
        self, model: Path, settings: TrainingSettings, *, method: str = "forward", first: int = 1
    ) -> None:
        self._method, self._first = method, first
        super().__init__(model, settings)

    def make_device(self, name: str, train: list[Tokens]) -> DeviceRole:
        role = super().make_device(name, train)
        if name != "b":
            return role
        load: Callable[[Any], DeviceWork] = role._load

        def spoiled(settings: Any) -> DeviceWork:
            work = load(settings)
            method = getattr(work, self._method)

            def diverging(*given: Any, **named: Any) -> Any:
                if self._first == 0 or given[0][0] >= self._first:
                    raise DivergedError("tensor to send holds NaN")
                return method(*given, **named)

            setattr(work, self._method, diverging)  # as if its weights had exploded
            return work

        role._load = spoiled
        return role


class OfAnotherCodec(WeatherFleet):
    """Device b encodes otherwise than the fleet has agreed."""

    def __init__(self, model: Path, settings: TrainingSettings, **changes: Any) -> None:
        self._changes = changes
        super().__init__(model, settings)

    def make_device(self, name: str, train: list[Tokens]) -> DeviceRole:
        role = super().make_device(name, train)
        load: Callable[[Any], DeviceWork] = role._load

        def other(settings: TrainingSettings) -> DeviceWork:
            work = load(settings)
            work.settings = dataclasses.replace(settings, **self._changes)
            work._exchange = Exchange(work.settings, work.part.width)
            return work

        role._load = other if name == "b" else load
        return role


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"codec": "int4:int8"}, "scheme 'int4' instead of int8"),
        ({"codec": "int8:int4"}, "scheme 'int8' instead of int4"),
        ({"update_codec": UpdateCodec.BF16}, "weight is torch.bfloat16"),
        ({"update_codec": UpdateCodec.INT8}, "0 names missing .*unknown"),
    ],
)
def test_a_device_of_another_codec_leaves_the_round(model: Path, changes: Any, reason: str) -> None:
    fleet = OfAnotherCodec(model, settings(rounds=1, codec="int8", update_codec=UpdateCodec.FP32), **changes)
    fleet.run()
    check(fleet, reason)


@pytest.mark.parametrize("labels", Labels)
def test_a_device_that_diverges_leaves_the_round(model: Path, labels: Labels) -> None:
    fleet = Diverging(model, settings(rounds=1, labels=labels))
    fleet.run()
    check(fleet, "tensor to send holds NaN")
    assert fleet.now < 10


@pytest.mark.parametrize("labels", Labels)
def test_a_device_that_diverges_in_an_evaluation_is_left_out_of_it(model: Path, labels: Labels) -> None:
    fleet = Diverging(model, settings(rounds=1, labels=labels), method="infer", first=0)
    fleet.run()
    dropped = [event for event in fleet.events if event.kind == "session_dropped"]
    assert [event.agent for event in dropped] == ["b", "b"]  # before and after
    assert list(fleet.report.eval["devices"]) == ["a"]
    assert fleet.now < 10


def test_an_edge_whose_gradients_explode_ends_the_session_at_once(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_down = Training._send_down

    def spoiled(self: Training, content: Gradient, now: float) -> list[Output]:
        pack = Exchange.pack_gradient
        growth = GROWTH if self.backup.assignment.device == "b" else 1.0
        with monkeypatch.context() as patched:
            patched.setattr(
                Exchange, "pack_gradient", lambda own, gradient, at: pack(own, growth * gradient, at)
            )
            return send_down(self, content, now)

    monkeypatch.setattr(Training, "_send_down", spoiled)
    fleet = WeatherFleet(model, settings(rounds=1))
    fleet.run()
    check(fleet, "tensor to send has a norm of")
    assert fleet.now < 10


@pytest.mark.parametrize("work", [DeviceWork, EdgeWork])
def test_a_tier_does_not_step_with_gradients_that_explode(
    model: Path, work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    step: Callable[[Any], None] = work.step
    spoiled: list[Any] = []

    def exploding(self: Any) -> None:
        if not spoiled or self in spoiled:
            spoiled[:] = [self]
            for parameter in self._trained.parameters.values():
                parameter.grad += GROWTH
        step(self)

    monkeypatch.setattr(work, "step", exploding)
    fleet = WeatherFleet(model, settings(rounds=1))
    fleet.run()
    (dropped,) = fleet.report.rounds[0]["dropped"]
    assert "LoRA gradients have a norm of" in dropped["reason"]
    assert len(fleet.report.rounds[0]["sessions"]) == 1
    assert fleet.now < 10


@pytest.mark.parametrize("labels", Labels)
def test_a_cloud_whose_gradients_explode_ends_the_session_at_once(model: Path, labels: Labels) -> None:
    fleet = WeatherFleet(model, settings(rounds=1, labels=labels))
    role = fleet.agents["cloud"].role
    assert isinstance(role, CloudRole)
    tail = role._p.tail
    below = tail._below

    def spoiled(key: Key, gradient: torch.Tensor) -> Gradient:
        return below(key, gradient * GROWTH if key[0].endswith("-a") else gradient)

    tail._below = spoiled  # type: ignore[assignment,method-assign]
    fleet.run()
    check(fleet, "tensor to send has a norm of", left="b", gone="a")
    assert fleet.now < 10
    alone = WeatherFleet(model, settings(rounds=1, labels=labels), ("b",))
    alone.run()
    expected = alone.adapter()
    assert all(torch.equal(value, expected[name]) for name, value in fleet.adapter().items())


HOPS = [
    (Labels.CLOUD, "b", "edge-1", "activation"),
    (Labels.CLOUD, "edge-1", "cloud", "activation"),
    (Labels.CLOUD, "cloud", "edge-1", "gradient"),
    (Labels.CLOUD, "edge-1", "b", "gradient"),
    (Labels.DEVICE, "cloud", "edge-1", "tail_hidden"),
    (Labels.DEVICE, "edge-1", "b", "tail_hidden"),
    (Labels.DEVICE, "b", "edge-1", "tail_gradient"),
    (Labels.DEVICE, "edge-1", "cloud", "tail_gradient"),
]
"""All tensors of a step: where the labels are, from whom, to whom, and what."""


@pytest.mark.parametrize(("value", "reason"), [(NAN, "tensor received holds NaN"), (HUGE, "has a norm of")])
@pytest.mark.parametrize("hop", HOPS, ids="-".join)
def test_values_that_stay_wrong_however_often_they_are_asked_for_end_the_session(
    model: Path, hop: tuple[Labels, str, str, str], value: bytes, reason: str
) -> None:
    labels, sender, to, kind = hop
    fleet = WeatherFleet(model, settings(rounds=1, labels=labels))
    field = "hidden" if kind in {"activation", "tail_hidden"} else "gradient"

    def spoil(name: str, packet: Packet) -> list[Packet]:
        if name != to or f"/{to}/{sender}/" not in packet.topic or not packet.topic.endswith("-b"):
            return [packet]
        chunk = chunks.read(packet.payload)
        body = lz4.frame.decompress(chunk.data) if chunk.packing == chunks.LZ4 else chunk.data
        content = decode_content(body)
        if content.__struct_config__.tag != kind or chunk.head.step < 1:
            return [packet]
        tensor = getattr(content, field)
        wrong = msgspec.structs.replace(tensor, data=value + tensor.data[4:])
        content = msgspec.structs.replace(content, **{field: wrong})
        (payload,) = chunks.cut(encode_content(content), chunk.head)
        return [Packet(topic=packet.topic, payload=payload)]

    fleet.tamper = spoil
    fleet.run()
    check(fleet, reason)
