"""``iotsplit adapters`` and ``iotsplit export``: adapter versions of a live fleet, over MQTT alone."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iotsplit.errors import RunFailedError, UsageError
from iotsplit.flags import suggest
from iotsplit.fleet import peft_files
from iotsplit.fleet.client import connect
from iotsplit.fleet.output import refuse_file
from iotsplit.options import BrokerOptions, CommonOptions, parse
from iotsplit.runtime.files import writing
from iotsplit.states import AdapterHead

USAGE = """\
Examples:
  iotsplit adapters list --broker mqtt://broker.local:1883 --fleet plant7
  iotsplit adapters show 3
  iotsplit adapters rollback 2

Usage: iotsplit adapters list|show VERSION|rollback VERSION [OPTIONS]

  list      versions that can be had, and which is current
  show      what a version is
  rollback  make an older version current; the next round starts from it

iotsplit adapters list --help shows the options.
"""
EXPORT_EXAMPLES = (
    "iotsplit export --output adapter --broker mqtt://broker.local:1883",
    "iotsplit export --output adapter-3 --version 3",
)


@dataclass(frozen=True, kw_only=True)
class AdaptersOptions(BrokerOptions, CommonOptions):
    """Adapter versions of a live fleet."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(BrokerOptions, CommonOptions):
    """What is exported.

    Writes an adapter version of a live fleet as a PEFT directory.

    Args:
        output: Directory for adapter_config.json and adapter_model.safetensors.
        version: Which version; by default the current one.
    """

    output: Path
    version: int | None = None


def main(words: Sequence[str]) -> int:
    """List, show or roll back versions."""
    if not words or words[0] in {"--help", "-h"}:
        sys.stdout.write(USAGE)
        return 0
    verb, rest = words[0], list(words[1:])
    if verb not in VERBS:
        raise UsageError(
            f"no command adapters {verb}{suggest(verb, list(VERBS))}", fix="see iotsplit adapters --help"
        )
    wants_version, command = VERBS[verb]
    version = _version(verb, rest) if wants_version else 0
    options = parse(AdaptersOptions, rest, name=f"iotsplit adapters {verb}")
    return command(options, version)


def export(words: Sequence[str]) -> int:
    """Write a version as a PEFT directory."""
    options = parse(ExportOptions, words, name="iotsplit export", examples=EXPORT_EXAMPLES)
    refuse_file(options.output)
    with connect(options) as client:
        head = client.head(client.latest() if options.version is None else options.version)
        sections = client.fetch(head)
    with writing(options.output):
        peft_files.write(options.output, sections, head.peft)
    result = {"version": head.version, "round": head.round, "path": str(options.output)}
    _tell(options, result, f"adapter version {head.version} is in {options.output}")
    return 0


def _list(options: AdaptersOptions, _: int) -> int:
    with connect(options) as client:
        latest, heads = client.versions()
    rows = [_row(head, latest) for head in heads]
    lines = [
        f"{row['version']:>7}  round {row['round']:<5}{row['size_bytes'] / 1e6:>8.1f} MB"
        + ("  current" if row["current"] else "")
        for row in rows
    ]
    _tell(options, rows, "\n".join(["version", *lines]))
    return 0


def _show(options: AdaptersOptions, version: int) -> int:
    with connect(options) as client:
        latest = client.latest()
        head = client.head(version)
    row = _row(head, latest) | {"model": head.model, "peft": head.peft}
    sections = {
        name: {"size_bytes": each.size_bytes, "sha256": each.sha256} for name, each in head.sections.items()
    }
    row["sections"] = sections
    lines = [f"version {head.version}" + (" (current)" if row["current"] else "")]
    lines += [f"round   {head.round}", f"model   {head.model}"]
    lines += [f"rank    {head.peft.get('r')}   modules {_modules(head)}"]
    lines += [
        f"{name:<8}{each.size_bytes:>10} bytes  sha256 {each.sha256}" for name, each in head.sections.items()
    ]
    _tell(options, row, "\n".join(lines))
    return 0


def _roll_back(options: AdaptersOptions, version: int) -> int:
    with connect(options) as client:
        reply = client.ask("rollback", version=version)
    if not reply.ok:
        raise RunFailedError(f"the cloud did not roll back: {reply.detail}", fix="see iotsplit adapters list")
    _tell(options, {"version": version, "detail": reply.detail}, reply.detail)
    return 0


VERBS: dict[str, tuple[bool, Callable[[AdaptersOptions, int], int]]] = {
    "list": (False, _list),
    "show": (True, _show),
    "rollback": (True, _roll_back),
}
"""For each verb whether it wants a version, and what it does."""


def _version(verb: str, rest: list[str]) -> int:
    """Take the version off the words behind the verb."""
    if {"--help", "-h"}.intersection(rest):
        return 0
    if not rest or not rest[0].isdecimal():
        raise UsageError(
            f"adapters {verb} needs a version behind it", fix=f"for example iotsplit adapters {verb} 2"
        )
    return int(rest.pop(0))


def _row(head: AdapterHead, latest: int) -> dict[str, Any]:
    size = sum(section.size_bytes for section in head.sections.values())
    return {"version": head.version, "round": head.round, "size_bytes": size, "current": head.version == latest}


def _modules(head: AdapterHead) -> str:
    modules = head.peft.get("target_modules") or []
    return modules if isinstance(modules, str) else ", ".join(sorted(map(str, modules)))


def _tell(options: CommonOptions, result: object, text: str) -> None:
    sys.stdout.write((json.dumps(result) if options.json else text) + "\n")
