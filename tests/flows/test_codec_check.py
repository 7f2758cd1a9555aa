"""What the codec loses is measured at every hop, told, and changes nothing else."""

import dataclasses
from pathlib import Path

import pytest
import torch

from iotsplit.plan import Labels
from iotsplit.settings import Codec
from iotsplit.tensors import compression
from tests.flows.weather import WeatherFleet, settings

HOPS = {
    Labels.CLOUD: {"device activation", "edge activation", "cloud gradient", "edge gradient"},
    Labels.DEVICE: {
        "device activation",
        "edge activation",
        "cloud tail_hidden",
        "device tail_gradient",
        "cloud gradient",
        "edge gradient",
    },
}


def run(model: Path, **changes: object) -> WeatherFleet:
    fleet = WeatherFleet(model, settings(rounds=1, **changes))
    fleet.run()
    return fleet


@pytest.mark.parametrize("labels", Labels)
def test_every_hop_tells_what_its_codec_loses(model: Path, labels: Labels) -> None:
    fleet = run(model, codec="int4:int8", codec_check=1.0, labels=labels)
    s = fleet._settings
    sent = len(fleet.report.rounds[0]["sessions"]) * s.local_steps * s.micro_batches
    found = fleet.report.rounds[0]["codec_error"]
    assert found.keys() == HOPS[labels]
    for hop, row in found.items():
        codec = s.gradient_codec if "gradient" in hop else s.activation_codec
        assert row["checked"] == sent
        assert 0 < row["median"] <= row["largest"] <= compression.SCHEMES[codec].largest_error
    assert not [event for event in fleet.events if event.kind == "codec_error"]


def test_a_look_at_the_codec_changes_no_bit(model: Path) -> None:
    seen, unseen = run(model, codec="int4", codec_check=1.0), run(model, codec="int4", codec_check=0.0)
    assert unseen.report.rounds[0]["codec_error"] == {}
    expected = unseen.adapter()
    assert all(torch.equal(value, expected[name]) for name, value in seen.adapter().items())


def test_more_than_the_codec_may_lose_is_said_once_for_each_agent_and_kind(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = dataclasses.replace(compression.SCHEMES[Codec.INT8], largest_error=1e-6)
    monkeypatch.setitem(compression.SCHEMES, Codec.INT8, strict)
    fleet = run(model, codec="fp32:int8", codec_check=1.0)
    said = [(event.agent, event.detail) for event in fleet.events if event.kind == "codec_error"]
    assert {agent for agent, _ in said} == {
        "cloud",
        *(each for each in fleet.agents if each.startswith("edge")),
    }
    assert len(said) == len({agent for agent, _ in said})
    assert all("of gradient lost" in detail and "1e-06 at most" in detail for _, detail in said)
