"""A fleet of real processes, each started again when it ends, as systemd would do."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from iotsplit.runtime import clock, processes
from iotsplit.runtime.proxy import TcpProxy

RESTART_S = 1.0
POLL_S = 0.1
PAUSE = threading.Event()


@dataclass(kw_only=True)
class Fleet:
    """Processes that are started again when they end.

    Args:
        output: for logs, state and the adapter.
        model: model directory.
        devices: their names; data lies in `output`/data.
        edges: their names.
        words: options of the cloud.
        proxied: whether every agent reaches the broker through a proxy of its own.
    """

    output: Path
    model: Path
    devices: Sequence[str]
    edges: Sequence[str]
    words: Sequence[str]
    proxied: bool
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    proxies: dict[str, TcpProxy] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.output / "logs").mkdir(parents=True, exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = int(listener.getsockname()[1])
        self.start("broker")
        deadline = clock.now() + 20
        while clock.now() < deadline and not listens(self.port):
            PAUSE.wait(POLL_S)
        for name in self.agents:
            self.proxies[name] = TcpProxy(self.port)
            self.start(name)

    @property
    def agents(self) -> list[str]:
        return ["cloud", *self.edges, *self.devices]

    def start(self, name: str) -> None:
        """Start one process."""
        words = [sys.executable, "-m", "iotsplit", *self._words(name)]
        log = self.output / "logs" / f"{name}.log"
        self.running[name] = processes.start(words, log=log, environment={"PYTHONUNBUFFERED": "1"})

    def _words(self, name: str) -> list[str]:
        if name == "broker":
            return ["broker", f"--port={self.port}", f"--directory={self.output / 'broker'}", "--autosave-s=1"]
        port = self.proxies[name].port if self.proxied else self.port
        common = [f"--id={name}", f"--broker=mqtt://127.0.0.1:{port}", f"--model={self.model}", "--fleet=chaos"]
        common.append(f"--state-dir={self.output / 'state' / name}")
        if name == "cloud":
            return ["cloud", *common, f"--output={self.output}", *self.words]
        if name in self.edges:
            return ["edge", *common]
        return ["device", *common, f"--data={self.output / 'data' / name}.jsonl"]

    def keep_running(self) -> bool:
        """Start again what has ended; true when the cloud is done."""
        for name, process in self.running.items():
            if process.poll() is None:
                continue
            if name == "cloud" and process.returncode == 0:
                return True
            at = self.ended.setdefault(name, clock.now() + RESTART_S)
            if clock.now() >= at:
                del self.ended[name]
                self.start(name)
        return False

    def pid(self, name: str) -> int:
        """Process id; of the broker itself, not of what watches it."""
        process = psutil.Process(self.running[name].pid)
        children = process.children() if name == "broker" else []
        return int(children[0].pid if children else process.pid)

    def close(self) -> None:
        """End everything."""
        for process in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
            processes.stop(process)
        for proxy in self.proxies.values():
            proxy.close()


def listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """Lines of a .jsonl file; one that a kill has torn is passed over."""
    for line in file.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)
