"""A session whose numbers are not acceptable leaves the round and is named; the others go on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lz4.frame
import msgspec
import pytest

from iotsplit import chunks
from iotsplit.errors import NotFiniteError
from iotsplit.messages import decode_content, encode_content
from iotsplit.packet import Packet
from iotsplit.plan import Labels
from iotsplit_device.batches import MicroBatch
from iotsplit_device.role import DeviceRole
from iotsplit_device.tokens import Tokens
from iotsplit_device.work import DeviceWork
from tests.flows.weather import WeatherFleet, settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick")]

NAN = b"\x00\x00\xc0\x7f"


def check(fleet: WeatherFleet, reason: str) -> None:
    """Device b has left, and device a has trained on."""
    row = fleet.report.rounds[0]
    assert [session["device"] for session in row["sessions"]] == ["a"]
    (dropped,) = row["dropped"]
    assert dropped["device"] == "b"
    assert reason in dropped["reason"]
    assert fleet.report.ledger["lost"] == fleet.report.ledger["duplicated"] == 0
    assert row["adapter_version"] == 1


class Diverging(WeatherFleet):
    """Device b computes what is no number from its second step on."""

    def make_device(self, name: str, train: list[Tokens]) -> DeviceRole:
        role = super().make_device(name, train)
        if name != "b":
            return role
        load: Callable[[Any], DeviceWork] = role._load

        def spoiled(settings: Any) -> DeviceWork:
            work = load(settings)
            forward = work.forward

            def diverging(key: tuple[int, int], batch: MicroBatch, *, step_tokens: int, steps: int) -> Any:
                if key[0] >= 1:
                    raise NotFiniteError("tensor to send")
                return forward(key, batch, step_tokens=step_tokens, steps=steps)

            work.forward = diverging  # type: ignore[method-assign]  # as if its weights had exploded
            return work

        role._load = spoiled
        return role


@pytest.mark.parametrize("labels", Labels)
def test_a_device_that_diverges_leaves_the_round(model: Path, labels: Labels) -> None:
    fleet = Diverging(model, settings(rounds=1, labels=labels))
    fleet.run()
    check(fleet, "tensor to send holds NaN")
    assert fleet.now < 10


@pytest.mark.parametrize(
    ("to", "sender", "kind"),
    [("edge-1", "b", "activation"), ("cloud", "edge-1", "activation"), ("edge-1", "cloud", "gradient")],
)
def test_values_that_stay_wrong_however_often_they_are_asked_for_end_the_session(
    model: Path, to: str, sender: str, kind: str
) -> None:
    fleet = WeatherFleet(model, settings(rounds=1))
    field = {"activation": "hidden", "gradient": "gradient"}[kind]

    def spoil(name: str, packet: Packet) -> list[Packet]:
        if name != to or f"/{to}/{sender}/" not in packet.topic or not packet.topic.endswith("-b"):
            return [packet]
        chunk = chunks.read(packet.payload)
        body = lz4.frame.decompress(chunk.data) if chunk.packing == chunks.LZ4 else chunk.data
        content = decode_content(body)
        if content.__struct_config__.tag != kind or chunk.head.step < 1:
            return [packet]
        tensor = getattr(content, field)
        wrong = msgspec.structs.replace(tensor, data=NAN + tensor.data[4:])
        content = msgspec.structs.replace(content, **{field: wrong})
        (payload,) = chunks.cut(encode_content(content), chunk.head)
        return [Packet(topic=packet.topic, payload=payload)]

    fleet.tamper = spoil
    fleet.run()
    check(fleet, "tensor received holds NaN")
