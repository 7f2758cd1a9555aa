"""Fleets of real processes behind a proxy that enforces what shared brokers allow: none is ever cut."""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from iotsplit.runtime import processes
from tests.broker.conftest import StartBroker
from tests.flows.real import RealFleet
from tests.proxy import DOWN, TcpProxy
from tests.quotas import SERVICES, Enforcer
from tests.support import letters_model
from tests.waiting import comes_true

pytestmark = [pytest.mark.slow, pytest.mark.broker, pytest.mark.usefixtures("unmeasured_agents")]

WEIGHTS = "adapter/adapter_model.safetensors"
FLEET = ("--devices=2", "--edges=1", "--rounds=1", "--local-steps=2", "--threads=1", "--cut=1,3")
STEPS = ("--batch-size=2", "--micro-batches=1", "--sequence-length=16", "--learning-rate=0.01", "--codec=fp32")
# A quarter of a megabyte of adapter, cut so that its chunks at once would be too much for the service.
SAID = {
    "aws": ("--rank=64", "--chunk-bytes=1000"),
    "azure": ("--rank=64",),
    "emqx-serverless": ("--rank=64", "--chunk-bytes=10000"),  # an edge wants more than ten of them at once
    "small": ("--rank=64", "--chunk-bytes=5000"),
}
ACKNOWLEDGED_AFTER_S = 0.02
# Of what is not acknowledged at once too much is soon under way, however slow the machine is.
HELD_BACK_S = {"azure": 1.0, "small": 1.0}
PATIENCE_S = 200.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(letters_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    (folder / "press.txt").write_text("the press is too hot today\n" * 60)
    (folder / "pump.txt").write_text("a pump runs dry and hums\n" * 90)
    return str(folder)


@contextlib.contextmanager
def enforced(
    start_mosquitto: StartBroker, profile: str, *, acknowledged_after_s: float = ACKNOWLEDGED_AFTER_S
) -> Iterator[tuple[Enforcer, list[str]]]:
    """A service: what is held against it, and the options that lead to it."""
    enforcer = Enforcer(SERVICES[profile])
    proxy = TcpProxy(start_mosquitto().settings.port, enforcer.watch)
    proxy.shape(delay_s=acknowledged_after_s, ways=[DOWN])
    with contextlib.closing(proxy):
        yield enforcer, [f"--broker=mqtt://127.0.0.1:{proxy.port}", "--topic-prefix=plant7/line3/"]


def command(verb: str, *words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "iotsplit", verb, *STEPS, *(word for some in words for word in some)]


@pytest.mark.parametrize("profile", SERVICES)
def test_a_fleet_that_keeps_to_a_profile_is_never_cut_and_trains_the_same_bits(
    profile: str, model: str, data: str, start_mosquitto: StartBroker, tmp_path: Path
) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    given = [f"--model={model}", f"--data={data}", f"--output={output}", f"--profile={profile}"]
    with enforced(start_mosquitto, profile) as (enforcer, broker):
        running = processes.start(command("run", FLEET, given, broker, SAID[profile]), log=log)
        try:
            assert comes_true(lambda: bool(enforcer.breaches) or running.poll() is not None, PATIENCE_S)
        finally:
            processes.stop(running)
    assert enforcer.breaches == []
    assert running.returncode == 0, log.read_text()
    report = json.loads((output / "report.json").read_text())
    assert report["ledger"] == {"expected": 4, "applied": 4, "lost": 0, "duplicated": 0}
    assert enforcer.seen_bytes > 500_000

    torch.set_num_threads(1)
    with contextlib.closing(RealFleet(Path(model), output, tmp_path / "memory")) as fleet:
        fleet.run()
    assert (tmp_path / "memory" / WEIGHTS).read_bytes() == (output / WEIGHTS).read_bytes()


@pytest.mark.parametrize("profile", SERVICES)
def test_the_cloud_of_that_fleet_is_cut_without_the_profile(
    profile: str, model: str, start_mosquitto: StartBroker, tmp_path: Path
) -> None:
    given = [f"--model={model}", f"--output={tmp_path / 'out'}", "--devices=2", "--cut=1,3"]
    late_s = HELD_BACK_S.get(profile, ACKNOWLEDGED_AFTER_S)
    with enforced(start_mosquitto, profile, acknowledged_after_s=late_s) as (enforcer, broker):
        log = tmp_path / "log"
        running = processes.start(command("cloud", given, broker, SAID[profile]), log=log)
        try:
            assert comes_true(lambda: bool(enforcer.breaches) or running.poll() is not None, PATIENCE_S)
        finally:
            processes.stop(running)
    assert enforcer.breaches, log.read_text()
