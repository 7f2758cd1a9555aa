"""A fleet over a bridge between two brokers: the same bits, and nothing crosses that should stay."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.chaos import WEIGHTS
from benchmarks.fleet import rows
from iotsplit.runtime import clock
from iotsplit.settings import FleetSettings, Stragglers, TrainingSettings
from tests.broker.conftest import StartBroker
from tests.broker.sites import FLEET, Listener, TwoSites, iotsplit, users_file
from tests.flows.real import RealFleet, lay_out, texts_of
from tests.support import letters_model
from tests.waiting import comes_true

pytestmark = [pytest.mark.slow, pytest.mark.broker, pytest.mark.usefixtures("unmeasured_agents")]

PATIENCE_S = 150.0
CUT_S = 6.0
DEVICES, EDGES = ["press", "pump"], ["edge-1", "edge-2"]
TRAINING = TrainingSettings(
    rounds=2,
    local_steps=6,
    checkpoint_every=2,
    cut=(1, 3),
    batch_size=2,
    micro_batches=2,
    sequence_length=16,
    learning_rate=0.01,
)
STEPS = TRAINING.rounds * TRAINING.local_steps * len(DEVICES)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The cloud's output directory."""
    return tmp_path / "out"


@contextlib.contextmanager
def sites(
    output: Path, model: Path, far_port: int, *, edges: list[str] = EDGES, **more: Any
) -> Iterator[TwoSites]:
    here = len(edges) - len(more.get("far_edges", []))  # standbys are not waited for
    members = FleetSettings(devices=len(DEVICES), edges=here, once=True, stragglers=Stragglers.WAIT)
    lay_out(output, texts_of(output.with_name("given"), DEVICES), TRAINING, members)
    fleet = TwoSites(
        output=output,
        model=model,
        devices=DEVICES,
        edges=edges,
        words=[f"--config={output / 'fleet.toml'}"],
        proxied=False,
        far_port=far_port,
        **more,
    )
    with contextlib.closing(fleet):
        fleet.bridge.shape(delay_s=0.02)
        yield fleet


def until(fleet: TwoSites, condition: Callable[[], bool]) -> None:
    """Keep the fleet running until something has happened; it must not end before."""
    over = False

    def done() -> bool:
        nonlocal over
        over = fleet.keep_running()
        return over or condition()

    assert comes_true(done, PATIENCE_S)
    assert not over


def steps(fleet: TwoSites) -> int:
    file = fleet.output / "metrics.jsonl"
    found = rows(file) if file.exists() else []
    return len([row for row in found if row["role"] == "cloud" and row.get("step")])


def expect_the_bits_of_one_broker(output: Path, model: Path, memory: Path) -> None:
    """One broker and none make the same (test_fleet_of_processes)."""
    report = json.loads((output / "report.json").read_text())
    assert report["ledger"] == {"expected": STEPS, "applied": STEPS, "lost": 0, "duplicated": 0}
    torch.set_num_threads(1)
    with contextlib.closing(RealFleet(model, output, memory)) as fleet:
        fleet.run()
    assert (memory / WEIGHTS).read_bytes() == (output / WEIGHTS).read_bytes()


def retained(port: int, root: str, user: str | None = None) -> set[str]:
    """What somebody who comes later finds on a broker, below its root."""
    filters = frozenset({f"{root}adapter/#", f"{root}round"})
    listener = Listener(port, user=user, filters=filters)
    found = {f"{root}{path}" for path in ("adapter/latest", "adapter/2/head", "adapter/2/0", "round")}
    try:
        comes_true(lambda: found <= {packet.topic for packet in listener.packets})
        return {packet.topic.removeprefix(root) for packet in listener.packets if packet.retain}
    finally:
        listener.close()


def test_a_bridge_that_is_cut_costs_nothing_and_carries_nothing_that_should_stay(
    output: Path, model: Path, tmp_path: Path, start_mosquitto: StartBroker
) -> None:
    access = [f"--fleet={FLEET}", "--edges=edge-1,edge-2", "--recorders=ear", "--bridges=site-out,site-in"]
    for side, prefix in (("floor", ""), ("far", "plant7/")):
        words = (*access, f"--topic-prefix={prefix}", f"--output={tmp_path / side}")
        iotsplit("broker", "config", "--for=mosquitto", *words)
    known = users_file(tmp_path / "users", [*DEVICES, *EDGES, "cloud", "ear", "site-out", "site-in"])
    far = start_mosquitto(users_file=known, acl_file=tmp_path / "far" / "iotsplit.acl")
    password = tmp_path / "password"
    password.write_text("secret\n")
    options: dict[str, Any] = {
        "prefix": "plant7/",
        "with_users": True,
        "bridge_words": [
            "--protocol=v5",
            "--user=site-out,site-in",
            f"--password-file={password}",
            "--edges=edge-1,edge-2",
        ],
        "floor_words": [f"--users-file={known}", f"--acl-file={tmp_path / 'floor' / 'iotsplit.acl'}"],
    }
    with sites(output, model, far.settings.port, **options) as fleet:
        ear = Listener(far.settings.port, user="ear", filters=frozenset({f"{fleet.there}#"}))
        until(fleet, lambda: steps(fleet) >= 3)
        fleet.bridge.cut()
        mended_at = clock.now() + CUT_S
        until(fleet, lambda: clock.now() >= mended_at)
        fleet.bridge.mend()
        assert comes_true(fleet.keep_running, PATIENCE_S)
        found = retained(fleet.port, fleet.here, "ear")
        ear.close()
    heard = ear.topics(fleet.there)
    kinds = {words[0] for words in heard}
    assert kinds >= {"state", "wan", "update", "metrics", "assign", "round", "adapter"}
    assert not kinds & {"lan", "checkpoint"}
    assert {words[1] for words in heard if words[0] == "probe"} == {"cloud"}
    assert found >= {"adapter/latest", "adapter/2/head", "adapter/2/0", "round"}
    expect_the_bits_of_one_broker(output, model, tmp_path / "memory")


def test_the_older_version_of_the_protocol_carries_a_fleet_as_well(
    output: Path, model: Path, tmp_path: Path, start_mosquitto: StartBroker
) -> None:
    far = start_mosquitto()
    with sites(output, model, far.settings.port, bridge_words=["--protocol=v311"]) as fleet:
        ears = {"there": Listener(far.settings.port), "here": Listener(fleet.port)}
        assert comes_true(fleet.keep_running, PATIENCE_S)
        found = retained(fleet.port, fleet.here)
        sizes = {side: ear.sizes(fleet.here) for side, ear in ears.items()}
        for ear in ears.values():
            ear.close()
    assert found >= {"adapter/latest", "adapter/2/head", "adapter/2/0", "round"}
    assert not {"lan", "checkpoint"} & sizes["there"].keys()
    assert sizes["here"]["lan"] > 0 < sizes["here"]["checkpoint"]
    assert sizes["here"]["update"] == sizes["there"]["update"] > 0
    expect_the_bits_of_one_broker(output, model, tmp_path / "memory")


def test_a_standby_on_the_far_side_takes_over_when_all_edges_here_are_lost(
    output: Path, model: Path, tmp_path: Path, start_mosquitto: StartBroker
) -> None:
    far = start_mosquitto()
    spare = {
        "far_edges": ["spare"],
        "bridge_words": ["--protocol=v5", "--cloud-standby=spare", "--edges=edge-1"],
    }
    with sites(output, model, far.settings.port, edges=["edge-1", "spare"], **spare) as fleet:
        ear = Listener(far.settings.port)
        until(fleet, lambda: steps(fleet) >= 5)
        fleet.give_up("edge-1")
        assert comes_true(fleet.keep_running, PATIENCE_S)
        ear.close()
    lan = [words for words in ear.topics(fleet.there) if words[0] == "lan"]
    assert lan
    assert all("spare" in words[1:3] for words in lan)
    moved = [row for row in rows(output / "events.jsonl") if row["kind"] == "session_moved"]
    assert {row["agent"] for row in moved} == set(DEVICES)
    expect_the_bits_of_one_broker(output, model, tmp_path / "memory")
