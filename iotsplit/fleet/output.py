"""The output directory of a run: claimed, prepared, started over."""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from iotsplit.datasets.records import Record, write_jsonl
from iotsplit.errors import UsageError
from iotsplit.runtime.files import replace, writing

MARKER = "run.json"
LOCK = "run.lock"
EVENTS = "events.jsonl"
# Everything that a run writes; nothing else is ever removed.
OWN_FOLDERS = ("state", "data", "logs", "adapter", "adapter-best", "alone", "alone-data")
OWN_FILES = (
    MARKER,
    "fleet.toml",
    "report.json",
    "metrics.jsonl",
    EVENTS,
    "rounds.jsonl",
    "loss.png",
)


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where the data of an output directory comes from; a run that goes on must agree with it."""

    model: str
    data: str
    columns: tuple[str, ...] = ()
    devices: int | None
    partition: str | None
    seed: int


class Output:
    """An output directory.

    Args:
        root: the directory; made when it is claimed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def data(self) -> Path:
        """A ``.jsonl`` file for each device."""
        return self.root / "data"

    @property
    def logs(self) -> Path:
        """A ``.log`` file for each agent."""
        return self.root / "logs"

    def log(self, agent: str) -> Path:
        """The log of one agent."""
        return self.logs / f"{agent}.log"

    @property
    def has_trained(self) -> bool:
        """Whether there is anything that a run could go on from."""
        with contextlib.suppress(FileNotFoundError), (self.root / EVENTS).open("rb") as lines:
            return any(b'"round_started"' in line for line in lines)
        return False

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the directory: only one run at a time writes into it.

        Raises:
            UsageError: another run holds it, or it is a file.
            RunFailedError: it cannot be written, then or later.
        """
        refuse_file(self.root)
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / LOCK).open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"another run is writing into {self.root}", fix="wait for it or choose another --output"
                ) from None
            with writing(self.root):
                yield

    def start_over(self) -> None:
        """Remove what an earlier run left.

        Raises:
            UsageError: the directory is not one of ours.
        """
        if not self.root.exists():
            return
        found = {entry.name for entry in self.root.iterdir()} - {LOCK}
        if found and not (self.root / MARKER).exists():
            raise UsageError(
                f"{self.root} was not made by iotsplit run",
                fix="choose another --output",
            )
        for name in OWN_FOLDERS:
            shutil.rmtree(self.root / name, ignore_errors=True)
        for name in OWN_FILES:
            (self.root / name).unlink(missing_ok=True)

    def origin(self) -> Origin | None:
        """What an earlier run dealt here, if it came so far."""
        try:
            return msgspec.json.decode((self.root / MARKER).read_bytes(), type=Origin)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def deal(self, origin: Origin, shares: Mapping[str, Sequence[Record]]) -> None:
        """Write each device's data; the marker comes last, so that a half-written deal is done again."""
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir()
        self.logs.mkdir(exist_ok=True)
        for device, records in shares.items():
            write_jsonl(self.data / f"{device}.jsonl", records)
        (self.root / MARKER).write_bytes(msgspec.json.encode(origin) + b"\n")

    def devices(self) -> list[str]:
        """Ids of the devices that data was dealt to."""
        return sorted(file.stem for file in self.data.glob("*.jsonl"))

    def report(self) -> dict[str, Any]:
        """The report as the cloud wrote it last; empty if it wrote none."""
        try:
            report: dict[str, Any] = json.loads((self.root / "report.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return report

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Replace the report as a whole."""
        replace(self.root / "report.json", json.dumps(report, indent=2).encode() + b"\n")


def refuse_file(output: Path) -> None:
    """Refuse a file where a directory is to be.

    Raises:
        UsageError: it is one.
    """
    if output.is_file():
        raise UsageError(f"{output} is a file", fix="name a directory with --output")


def to_toml(*settings: Any) -> str:
    """Settings as TOML, in the form that ``--config`` reads; None is left out."""
    lines = []
    for each in settings:
        for field in fields(each):
            value = getattr(each, field.name)
            if value is not None:
                lines.append(f"{field.name} = {_toml_value(value)}\n")
    return "".join(lines)


def _toml_value(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    # A JSON string is a TOML basic string, but for DEL.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
