"""A real browser for tests: headless Chromium, driven over a pipe by the DevTools protocol."""

import base64
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iotsplit.runtime import clock

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
WAIT_S = 60.0


def find_browser() -> str | None:
    """The program of a browser that is installed."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One page, and what the browser told of it.

    Args:
        reading: file descriptor that the browser answers on.
        writing: file descriptor that it listens on.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self.complaints: list[str] = []
        """Errors and warnings of the page's scripts, and whatever it wrote to its console."""
        self.requests: list[str] = []
        """Addresses that it asked for."""
        self._reading, self._writing = reading, writing
        self._read = b""
        self._count = 0
        self._session = ""
        self._events: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, url: str, *, width: int = 1280, height: int = 600) -> None:
        """Go to an address, and wait until the page is there."""
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **sizes)
        self._events.clear()
        self.call("Page.navigate", url=url)
        while "Page.loadEventFired" not in self._events:
            self._take()

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Move the mouse, press or release its left button, or turn its wheel there."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def screenshot(self, path: Path) -> None:
        """Write what a person would see as a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Have something done, and wait for the answer."""
        self._count += 1
        number = self._count
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._take()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _take(self) -> dict[str, Any]:
        until = clock.now() + WAIT_S
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._reading], [], [], max(0.0, until - clock.now()))
            piece = os.read(self._reading, 1 << 20) if ready else b""
            assert piece, "the browser says nothing more"
            self._read += piece
        first, _, self._read = self._read.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, told: dict[str, Any]) -> None:
        self._events.append(method)
        match method:
            case "Runtime.exceptionThrown":
                self.complaints.append(str(told["exceptionDetails"]))
            case "Runtime.consoleAPICalled":
                self.complaints.append(str(told["args"]))
            case "Log.entryAdded":
                self.complaints.append(told["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])


@contextmanager
def open_browser(program: str, home: Path) -> Iterator[Page]:
    """A browser with an empty profile and one page; it is ended afterwards."""
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    words += ["--remote-debugging-pipe", f"--user-data-dir={home}", "about:blank"]
    (its_end, writing), (reading, its_answer) = os.pipe(), os.pipe()
    # It reads from descriptor 3 and writes to 4, whatever ours are called.
    script = f'exec "$@" 3<&{its_end} 4>&{its_answer}'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", program, *words],
        pass_fds=(its_end, its_answer),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(its_end)
    os.close(its_answer)
    try:
        yield Page(reading, writing)
    finally:
        os.close(writing)
        os.close(reading)
        process.terminate()
        process.wait(WAIT_S)
