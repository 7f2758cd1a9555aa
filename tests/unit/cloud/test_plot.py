"""The picture of a run, of a few agents and of many."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from iotsplit.plan import Tier
from iotsplit.settings import TrainingSettings
from iotsplit.states import Metrics
from iotsplit_cloud.plot import MANY, draw, memory
from iotsplit_cloud.report import new_report

MIB = 1 << 20


def agents(devices: int) -> list[dict[str, Any]]:
    rows = [{"id": f"d{n}", "role": Tier.DEVICE, "peak_rss_bytes": (100 + n) * MIB} for n in range(devices)]
    return [{"id": "cloud", "role": Tier.CLOUD, "peak_rss_bytes": 500 * MIB}, *rows]


def test_memory_of_a_few_agents_is_shown_one_by_one() -> None:
    assert memory(agents(2)) == {"cloud": 500.0, "d0": 100.0, "d1": 101.0}


def test_of_many_agents_the_largest_of_each_tier_is_shown() -> None:
    assert memory(agents(MANY)) == {"largest cloud of 1": 500.0, f"largest device of {MANY}": 99.0 + MANY}


def test_an_agent_that_never_said_what_it_needs_is_not_shown() -> None:
    assert memory([{"id": "d", "role": Tier.DEVICE, "peak_rss_bytes": 0}]) == {}


@pytest.mark.slow
@pytest.mark.parametrize("devices", [0, 2, 200])
def test_a_run_of_any_size_is_drawn(devices: int, tmp_path: Path) -> None:
    rows = [
        Metrics(agent="cloud", role=Tier.CLOUD, session=f"r-t1-d{device}", step=step, loss=1.0 / (1 + step))
        for step in range(3)
        for device in range(devices)
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, rows)))
    report = new_report("plant", {}, TrainingSettings())
    report.agents = agents(devices)
    draw(tmp_path / "metrics.jsonl", report, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
