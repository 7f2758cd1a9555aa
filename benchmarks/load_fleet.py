"""A fleet of light devices: its size, what it trains, its broker and its cloud."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fleet import PAUSE, listens
from iotsplit.runtime import processes
from iotsplit.runtime.mqtt import BrokerAddress
from iotsplit.settings import TrainingSettings
from iotsplit_broker.process import find_mosquitto
from iotsplit_broker.settings import BrokerSettings, mosquitto_conf

FLEET = "load"
VOCABULARY = 16
MODEL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    "tie_word_embeddings": True,
}
STEPS: dict[str, Any] = {
    "cut": (1, 2),
    "batch_size": 1,
    "micro_batches": 1,
    "sequence_length": 8,
    "rank": 1,
}
CHANGED = (*STEPS, "rounds", "local_steps")
STEP_TIMEOUT_S = 600
LOOK_EVERY_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Size:
    """One fleet to be measured; its files lie in `root`."""

    root: Path
    model: Path
    devices: int
    edges: int
    settings: TrainingSettings


def address(port: int) -> BrokerAddress:
    """A broker on this machine."""
    return BrokerAddress.parse(f"mqtt://127.0.0.1:{port}")


@contextlib.contextmanager
def mosquitto(directory: Path) -> Iterator[tuple[int, int]]:
    """A broker configured as ours, whose counters come every second; gives its port and process id."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    directory.mkdir()
    settings = BrokerSettings(directory=directory, port=port)
    conf = directory / "mosquitto.conf"
    user = "root" if os.getuid() == 0 else None
    conf.write_text(f"{mosquitto_conf(settings, user=user)}sys_interval 1\n")
    process = processes.start([find_mosquitto() or "mosquitto", "-c", str(conf)], log=directory / "broker.log")
    try:
        while not listens(port):
            PAUSE.wait(LOOK_EVERY_S)
        yield port, process.pid
    finally:
        processes.stop(process)


@contextlib.contextmanager
def cloud_of(size: Size, port: int, more: Sequence[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A real cloud."""
    words = [sys.executable, "-m", "iotsplit", "cloud", f"--broker=mqtt://127.0.0.1:{port}", f"--fleet={FLEET}"]
    words += [f"--model={size.model}", f"--output={size.root / 'out'}", "--once"]
    words += [f"--devices={size.devices}", f"--edges={size.edges}", f"--step-timeout={STEP_TIMEOUT_S}"]
    for name in CHANGED:
        value = getattr(size.settings, name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        words.append(f"--{name.replace('_', '-')}={text}")
    process = processes.start([*words, *more], log=size.root / "cloud.log")
    try:
        yield process
    finally:
        processes.stop(process)
