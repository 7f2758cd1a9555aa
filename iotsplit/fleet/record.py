"""``iotsplit record``: what is on a broker, written to a tape."""

import json
import re
import secrets
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from iotsplit.errors import RunFailedError, UsageError
from iotsplit.options import BrokerOptions, CommonOptions, parse
from iotsplit.quantities import read_duration, read_size
from iotsplit.runtime.address import address_of
from iotsplit.runtime.processes import signals_handled
from iotsplit.tape.files import PIPE, TapeWriter, new_header
from iotsplit.tape.recorder import Limits, Recorder, Tally, unchanged
from iotsplit.tape.redaction import Redactor
from iotsplit.topics import Topics, check_filter

EXAMPLES = (
    "iotsplit record --fleet plant7 --rounds 2 plant7.tape",
    "iotsplit record --broker mqtt://broker.local:1883 --topic '#' --duration 60s everything.tape",
    "iotsplit record --session 3fa2c1-t2-press - | iotsplit inspect -",
)


@dataclass(frozen=True, kw_only=True)
class RecordOptions(BrokerOptions, CommonOptions):
    """The recording.

    Writes what is on the bus to a tape. It only listens: agents do not notice.

    Args:
        tape: File of the tape, or - for a pipe. A file that is there is not overwritten.
        topic: Topic filters to record instead of the whole fleet; give it again for more.
        session: Record only what belongs to this session.
        duration: End after so long, such as 60s, 10m or 8h.
        rounds: End when so many training rounds have finished.
        max_size: End when the tape has so many bytes, such as 500MB or 1GB.
        redact_tensors: Write zeros instead of tensors, labels and LoRA parameters.
    """

    tape: Path
    topic: tuple[str, ...] = ()
    session: str | None = None
    duration: str | None = None
    rounds: int | None = None
    max_size: str | None = None
    redact_tensors: bool = False


def main(words: Sequence[str]) -> int:
    """Record until a limit is reached or a signal ends it."""
    options = parse(RecordOptions, words, name="iotsplit record", examples=EXAMPLES, places=("tape",))
    from iotsplit.runtime.serve import start_logging  # noqa: PLC0415 - keeps --help quick

    start_logging("info")  # on stderr: unconfigured it would be in the output
    topics = Topics(options.fleet, options.topic_prefix)
    filters = filters_of(options, topics)
    limits = _limits(options)
    address = address_of(options)
    observer = f"record-{secrets.token_hex(4)}"
    from iotsplit.runtime.mqtt import MqttLink  # noqa: PLC0415 - keeps --help quick

    ours = not options.topic
    header = new_header(
        filters=tuple(sorted(filters)),
        fleet=options.fleet if ours else "",
        prefix=options.topic_prefix if ours else "",
        redacted=options.redact_tensors,
    )
    redactor = Redactor(topics) if options.redact_tensors else None
    with TapeWriter(options.tape, header, sync=True) as writer:
        recorder = Recorder(
            MqttLink(address, observer),
            writer,
            observer=observer,
            redact=redactor.take if redactor is not None else unchanged,
            tell=_warn,
        )
        with signals_handled((signal.SIGINT, signal.SIGTERM), lambda *_: recorder.stop()):
            tally = recorder.run(filters, limits)
    tally.tape_bytes = writer.encoder.offset  # now that all is written, and compressed
    _tell(options, tally)
    if not tally.records:
        raise RunFailedError(
            f"nothing was said on {', '.join(sorted(filters))} at {options.broker}",
            fix="check --fleet, --topic-prefix and --topic, and what this user may read",
        )
    return 0


def filters_of(options: RecordOptions, topics: Topics) -> frozenset[str]:
    """What is subscribed to.

    Raises:
        UsageError: a topic filter is not one.
    """
    for pattern in options.topic:
        check_filter(pattern)
    if options.topic and options.session is not None:
        raise UsageError("--topic and --session are two ways to choose", fix="give one of them")
    if options.topic:
        return frozenset(options.topic)
    if options.session is None:
        return frozenset({f"{topics.root}#"})
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", options.session):
        raise UsageError(f"session {options.session!r} is not one", fix="see iotsplit inspect for their names")
    session = options.session
    below = (
        *("state/+", "round", "assign/+", "adapter/#", "checkpoint/#", "metrics/+", "events"),
        *(f"lan/+/+/{session}", f"wan/+/+/{session}", f"update/+/{session}/+"),
    )
    return frozenset(topics.root + each for each in below)


def _limits(options: RecordOptions) -> Limits:
    if options.rounds is not None and options.rounds < 1:
        raise UsageError(f"rounds {options.rounds} is too small", fix="use 1 or more")
    return Limits(
        duration_s=None if options.duration is None else read_duration(options.duration),
        rounds=options.rounds,
        size_bytes=None if options.max_size is None else read_size(options.max_size),
    )


def _warn(line: str) -> None:
    sys.stderr.write(f"iotsplit record: {line}\n")


def _tell(options: RecordOptions, tally: Tally) -> None:
    out = sys.stderr if str(options.tape) == PIPE else sys.stdout
    if options.json:
        out.write(json.dumps(msgspec.to_builtins(tally)) + "\n")
        return
    lost = f"{tally.lost} lost" if tally.lost else "none lost"
    gaps = f", {tally.gaps} times without connection" if tally.gaps else ""
    out.write(
        f"{tally.records} messages, {tally.payload_bytes / 1e6:.1f} MB in {tally.seconds:.1f} s, "
        f"{lost}{gaps}: {tally.tape_bytes / 1e6:.1f} MB in {options.tape}\n"
    )
