"""Fleets behind a proxy that enforces what shared brokers allow: none is ever cut."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from iotsplit.runtime.proxy import DOWN, TcpProxy
from iotsplit.settings import Codec, FleetSettings, TrainingSettings
from tests.broker.conftest import StartBroker
from tests.broker.threads import ThreadedFleet
from tests.flows.real import RealFleet, lay_out, texts_of
from tests.quotas import SERVICES, Enforcer
from tests.support import letters_model
from tests.waiting import comes_true

pytestmark = [pytest.mark.slow, pytest.mark.broker]

DEVICES = ("press", "pump")
TRAINING = TrainingSettings(
    rounds=1,
    local_steps=2,
    cut=(1, 3),
    rank=64,
    codec=Codec.FP32,
    batch_size=2,
    micro_batches=1,
    sequence_length=16,
    learning_rate=0.01,
)
MEMBERS = FleetSettings(devices=len(DEVICES), edges=1, once=True)
# A quarter of a megabyte of adapter, cut so that its chunks at once would be too much for the service.
SAID = {
    "aws": ["--chunk-bytes=1000"],
    "azure": [],
    "emqx-serverless": ["--chunk-bytes=10000"],  # an edge wants more than ten of them at once
    "small": ["--chunk-bytes=5000"],
}
ACKNOWLEDGED_AFTER_S = 0.02
# Of what is not acknowledged at once too much is soon under way, however slow the machine is.
HELD_BACK_S = {"azure": 1.0, "small": 1.0}
PATIENCE_S = 200.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters_model(tmp_path_factory.mktemp("tiny"))


@contextlib.contextmanager
def enforced(
    start_mosquitto: StartBroker, profile: str, *, acknowledged_after_s: float = ACKNOWLEDGED_AFTER_S
) -> Iterator[tuple[Enforcer, list[str]]]:
    """A service: what is held against it, and the options that lead to it."""
    enforcer = Enforcer(SERVICES[profile])
    proxy = TcpProxy(start_mosquitto().settings.port, enforcer.watch)
    proxy.shape(delay_s=acknowledged_after_s, ways=[DOWN])
    with contextlib.closing(proxy):
        yield (
            enforcer,
            [f"--broker=mqtt://127.0.0.1:{proxy.port}", "--topic-prefix=plant7/line3/", *SAID[profile]],
        )


@pytest.mark.parametrize("profile", SERVICES)
def test_a_fleet_that_keeps_to_a_profile_is_never_cut_and_trains_the_same_bits(
    profile: str, model: Path, start_mosquitto: StartBroker, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    ran = lay_out(tmp_path / "ran", texts_of(tmp_path / "given", DEVICES), TRAINING, MEMBERS)
    made = []
    with (
        enforced(start_mosquitto, profile) as (enforcer, broker),
        contextlib.closing(
            RealFleet(model, ran, tmp_path / "broker", [*broker, f"--profile={profile}"])
        ) as fleet,
    ):
        with contextlib.closing(ThreadedFleet(fleet)) as running:
            assert comes_true(lambda: bool(enforcer.breaches) or running.is_over, PATIENCE_S)
        assert enforcer.breaches == []
        assert running.errors == {}
        assert fleet.report.ledger == {"expected": 4, "applied": 4, "lost": 0, "duplicated": 0}
        assert enforcer.seen_bytes > 500_000
        made.append(fleet.versions[-1].sections)

    with contextlib.closing(RealFleet(model, ran, tmp_path / "memory")) as fleet:
        fleet.run()
        made.append(fleet.versions[-1].sections)
    assert made[0] == made[1]


@pytest.mark.parametrize("profile", SERVICES)
def test_the_cloud_of_that_fleet_is_cut_without_the_profile(
    profile: str, model: Path, start_mosquitto: StartBroker, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    ran = lay_out(tmp_path / "ran", texts_of(tmp_path / "given", DEVICES), TRAINING, MEMBERS)
    late_s = HELD_BACK_S.get(profile, ACKNOWLEDGED_AFTER_S)
    with (
        enforced(start_mosquitto, profile, acknowledged_after_s=late_s) as (enforcer, broker),
        contextlib.closing(RealFleet(model, ran, tmp_path / "out", broker)) as fleet,
        contextlib.closing(ThreadedFleet(fleet, ["cloud"])) as running,
    ):
        assert comes_true(lambda: bool(enforcer.breaches) or running.is_over, PATIENCE_S)
    assert enforcer.breaches, running.errors
