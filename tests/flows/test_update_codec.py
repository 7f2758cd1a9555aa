"""What devices and edges have trained reaches the next version, however it is encoded."""

from pathlib import Path

import pytest

from iotsplit.settings import Optimizer, UpdateCodec
from tests.flows.weather import WeatherFleet, settings


def run(model: Path, codec: UpdateCodec, optimizer: Optimizer = Optimizer.ADAMW) -> WeatherFleet:
    fleet = WeatherFleet(model, settings(rounds=2, codec="fp32", update_codec=codec, optimizer=optimizer))
    fleet.run()
    return fleet


@pytest.mark.parametrize("optimizer", Optimizer)
@pytest.mark.parametrize("codec", [UpdateCodec.BF16, UpdateCodec.INT8])
def test_versions_come_out_nearly_the_same_with_a_part_of_the_bytes(
    model: Path, codec: UpdateCodec, optimizer: Optimizer
) -> None:
    exact, coded = (run(model, each, optimizer) for each in (UpdateCodec.FP32, codec))
    assert coded.report.rounds[0]["dropped"] == []
    first = exact.versions[0].tensors()
    after_one = exact.versions[1].tensors(), coded.versions[1].tensors()
    moved = sum(float((after_one[0][name] - first[name]).norm()) for name in first)
    apart = sum(float((after_one[0][name] - after_one[1][name]).norm()) for name in first)
    assert 0 < apart < 0.02 * moved
    up = [fleet.report.rounds[0]["bytes"]["adapters"]["up"] for fleet in (exact, coded)]
    assert up[1] < up[0]
