"""Tapes from and to what other tools write: lines of mosquitto_sub, and the CSV of mqtt-recorder. Pure.

``mosquitto_sub -F '%U %t %q %r %x'`` writes time, topic, QoS, retain flag and the payload in hex digits.
mqtt-recorder (PyPI) writes rows of topic, payload, QoS, retain flag, time and pause; the payload is text, or
base64 if it was told so.
"""

import base64
import binascii
import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum

from iotsplit.errors import UsageError
from iotsplit.tape.format import Record

LINES_FORMAT = "%U %t %q %r %x"
MAX_FIELD_BYTES = 1 << 30  # twice the largest payload of MQTT; Python's own limit is 128 KiB
COLUMNS = 6

_SECONDS = re.compile(r"(\d{1,12})(?:\.(\d{1,9}))?\d*")
_FLAGS = {"0": False, "1": True, "False": False, "True": True, "false": False, "true": True}


class Kind(StrEnum):
    """What another tool writes."""

    MOSQUITTO = "mosquitto"
    MQTT_RECORDER = "mqtt-recorder"


def read(lines: Iterable[str], kind: Kind, *, name: str, is_base64: bool) -> Iterator[Record]:
    """Records from lines.

    Args:
        lines: of text.
        kind: who wrote them.
        name: of the file, for errors.
        is_base64: whether the payloads of mqtt-recorder are.

    Raises:
        UsageError: a line is not of that kind.
    """
    yield from READERS[kind](lines, name, is_base64)


def write(records: Iterable[Record], kind: Kind, *, is_base64: bool) -> Iterator[str]:
    """Lines from records, each with its end.

    Raises:
        UsageError: a payload or topic cannot be written in that way.
    """
    yield from WRITERS[kind](records, is_base64)


def _read_mosquitto(lines: Iterable[str], name: str, _: bool) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            # A topic may hold blanks; the fields around it cannot.
            rest, qos, retain, digits = line.rstrip("\r\n").rsplit(" ", 3)
            seconds, topic = rest.split(" ", 1)
            yield _record(seconds, topic, bytes.fromhex(digits), qos, retain)
        except (ValueError, KeyError):
            raise UsageError(
                f"{name} line {number} is not of mosquitto_sub",
                fix=f"record with mosquitto_sub -F '{LINES_FORMAT}'",
            ) from None


def _read_mqtt_recorder(lines: Iterable[str], name: str, is_base64: bool) -> Iterator[Record]:
    csv.field_size_limit(MAX_FIELD_BYTES)
    for number, row in enumerate(csv.reader(lines), 1):
        try:
            topic, payload, qos, retain, seconds, _ = row
            body = base64.b64decode(payload, validate=True) if is_base64 else payload.encode()
            yield _record(seconds, topic, body, qos, retain)
        except (ValueError, KeyError, binascii.Error):
            raise UsageError(
                f"{name} row {number} is not of mqtt-recorder",
                fix="its rows are topic, payload, qos, retain, time, pause; with --base64 if payloads are that",
            ) from None


def _record(seconds: str, topic: str, payload: bytes, qos: str, retain: str) -> Record:
    found = _SECONDS.fullmatch(seconds)
    if found is None or not topic or qos not in {"0", "1", "2"}:
        raise ValueError(seconds)
    at = int(found[1]) * 1_000_000_000 + int((found[2] or "").ljust(9, "0"))
    return Record(
        mono_ns=at,
        wall_ns=at,
        topic=topic,
        payload=payload,
        qos=int(qos),
        retain=_FLAGS[retain],
        observer="import",
    )


def _write_mosquitto(records: Iterable[Record], _: bool) -> Iterator[str]:
    for each in records:
        at = f"{each.wall_ns // 1_000_000_000}.{each.wall_ns % 1_000_000_000:09}"
        yield f"{at} {each.topic} {each.qos} {int(each.retain)} {each.payload.hex()}\n"


def _write_mqtt_recorder(records: Iterable[Record], is_base64: bool) -> Iterator[str]:
    before: int | None = None
    for each in records:
        pause = 0 if before is None else each.wall_ns - before
        before = each.wall_ns
        row = (
            each.topic,
            _text(each, is_base64),
            each.qos,
            each.retain,
            f"{each.wall_ns / 1e9:.6f}",
            f"{pause / 1e9:.6f}",
        )
        out = io.StringIO()
        csv.writer(out).writerow(row)
        yield out.getvalue()


def _text(record: Record, is_base64: bool) -> str:
    if is_base64:
        return base64.b64encode(record.payload).decode()
    try:
        return record.payload.decode()
    except UnicodeDecodeError:
        raise UsageError(
            f"the payload on {record.topic} is not text", fix="add --base64, and give it to mqtt-recorder too"
        ) from None


READERS: dict[Kind, Callable[[Iterable[str], str, bool], Iterator[Record]]] = {
    Kind.MOSQUITTO: _read_mosquitto,
    Kind.MQTT_RECORDER: _read_mqtt_recorder,
}
WRITERS: dict[Kind, Callable[[Iterable[Record], bool], Iterator[str]]] = {
    Kind.MOSQUITTO: _write_mosquitto,
    Kind.MQTT_RECORDER: _write_mqtt_recorder,
}
