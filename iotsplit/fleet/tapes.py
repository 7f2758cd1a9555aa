"""``iotsplit tape``: compare, cut, merge and convert tapes, and mend their index."""

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from iotsplit.errors import DiffersError, RunFailedError, UsageError
from iotsplit.flags import suggest
from iotsplit.fleet.inspection import selection_of
from iotsplit.options import CommonOptions, parse
from iotsplit.runtime.files import writing
from iotsplit.tape import files
from iotsplit.tape.conversion import Kind, read, write
from iotsplit.tape.cutting import Cutter, merge
from iotsplit.tape.difference import compare
from iotsplit.tape.files import FREE, PIPE, TapeWriter, new_header
from iotsplit.tape.format import Header, Record
from iotsplit.tape.selection import read_moment

USAGE = """\
Examples:
  iotsplit tape diff before.tape after.tape --tolerance 1e-6
  iotsplit tape cut plant7.tape round2.tape --from round:2 --to round:3
  iotsplit tape merge both.tape shop-floor.tape cloud.tape
  mosquitto_sub -t '#' -F '%U %t %q %r %x' | iotsplit tape import - foreign.tape
  iotsplit tape export plant7.tape plant7.csv --kind mqtt-recorder --base64

Usage: iotsplit tape diff|cut|merge|import|export|index [OPTIONS] FILE...

  diff A B        whether two tapes hold the same; the first difference if not
  cut A OUT       write a part of a tape, with what was retained when it begins
  merge OUT A...  write several tapes as one, by wall time
  import A OUT    write a tape from lines of mosquitto_sub or the CSV of mqtt-recorder
  export A OUT    write such lines or such a CSV from a tape
  index A         write an index behind a tape that was not closed

iotsplit tape diff --help shows the options of a command.
"""


@dataclass(frozen=True, kw_only=True)
class DiffOptions(CommonOptions):
    """What is compared.

    Compares what was said on two tapes, whatever the order and the times: exit code 7 if it is not the same.

    Args:
        first: The tape that is expected.
        second: The other one.
        tolerance: Largest difference in a tensor, as a share of its largest value; 0 for the same bytes.
    """

    first: Path
    second: Path
    tolerance: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CutOptions(CommonOptions):
    """What is cut out.

    Args:
        tape: The tape, or - for a pipe.
        output: The part's file, or - for a pipe.
        from_: Where to begin: seconds from the tape's start (90s, 1:30), or round:2.
        to: Where to end, in the same way.
        topic: Topic filters; give it again for more.
        session: Only frames of this session.
        round: Only what belongs to this round.
    """

    tape: Path
    output: Path
    from_: str | None = None
    to: str | None = None
    topic: tuple[str, ...] = ()
    session: str | None = None
    round: int | None = None


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(CommonOptions):
    """What is converted.

    Args:
        source: File to read, or - for stdin.
        output: File to write, or - for stdout.
        kind: Lines of mosquitto (mosquitto_sub -F '%U %t %q %r %x') or the CSV of mqtt-recorder.
        base64: Payloads of mqtt-recorder are base64.
    """

    source: Path
    output: Path
    kind: Kind = Kind.MOSQUITTO
    base64: bool = False


@dataclass(frozen=True, kw_only=True)
class IndexOptions(CommonOptions):
    """The tape.

    Args:
        tape: File of the tape.
    """

    tape: Path


def main(words: Sequence[str]) -> int:
    """Do what the verb says."""
    if not words or words[0] in {"--help", "-h"}:
        sys.stdout.write(USAGE)
        return 0
    verb, rest = words[0], list(words[1:])
    if verb not in VERBS:
        raise UsageError(f"no command tape {verb}{suggest(verb, list(VERBS))}", fix="see iotsplit tape --help")
    return VERBS[verb](rest)


def _diff(words: list[str]) -> int:
    options = parse(DiffOptions, words, name="iotsplit tape diff", places=("first", "second"))
    sides = [_side(path) for path in (options.first, options.second)]
    comparison, difference = compare(sides[0], sides[1], tolerance=options.tolerance)
    result = {
        "same": difference is None,
        "compared": comparison.compared,
        "largest": comparison.largest,
        "difference": msgspec.to_builtins(difference),
    }
    if difference is not None:
        if options.json:
            sys.stdout.write(json.dumps(result) + "\n")
        raise DiffersError(
            f"{options.second} differs from {options.first}: {difference}",
            fix="look at both with iotsplit inspect",
        )
    if not comparison.compared:
        raise RunFailedError(
            f"{options.first} and {options.second} hold nothing to compare", fix="see iotsplit inspect"
        )
    near = f", tensors within {comparison.largest:.2g} of their largest value" if comparison.largest else ""
    _tell(options, result, f"the same: {comparison.compared} messages{near}")
    return 0


def _side(path: Path) -> tuple[Header, Iterator[Record]]:
    header, source = files.begin(path)
    return header, files.rest(source, path, tell=_warn)


def _cut(words: list[str]) -> int:
    options = parse(CutOptions, words, name="iotsplit tape cut", places=("tape", "output"))
    selection = selection_of(options.topic, session=options.session, round_=options.round)
    start, end = (read_moment(each) if each is not None else None for each in (options.from_, options.to))
    header, source = files.begin(options.tape)
    cutter = Cutter(header, selection, start, end)
    records = cutter.cut(files.rest(source, options.tape, tell=_warn))
    return _write_tape(options, options.output, header, records)


def _merge(words: list[str]) -> int:
    places = [word for word in words if word == PIPE or not word.startswith("-")]
    options = parse(CommonOptions, [word for word in words if word not in places], name="iotsplit tape merge")
    if len(places) < 3:  # noqa: PLR2004 - one to write, two to read
        raise UsageError("merge needs OUT and at least two tapes", fix="see iotsplit tape --help")
    output, *tapes = map(Path, places)
    headers, records = zip(*map(_side, tapes), strict=True)
    merged = new_header(
        filters=tuple(sorted({each for header in headers for each in header.filters})),
        fleet=headers[0].fleet if len({(h.fleet, h.prefix) for h in headers}) == 1 else "",
        prefix=headers[0].prefix if len({(h.fleet, h.prefix) for h in headers}) == 1 else "",
        redacted=any(header.redacted for header in headers),
    )
    return _write_tape(options, output, merged, merge(records))


def _import(words: list[str]) -> int:
    options = parse(ConvertOptions, words, name="iotsplit tape import", places=("source", "output"))
    with _text(options.source) as lines:
        records = read(lines, options.kind, name=str(options.source), is_base64=options.base64)
        # One has to be right before a file is made of it.
        first = next(records, None)
        if first is None:
            raise UsageError(f"{options.source} holds no messages", fix="record again")
        return _write_tape(options, options.output, new_header(), _chained(first, records))


def _export(words: list[str]) -> int:
    options = parse(ConvertOptions, words, name="iotsplit tape export", places=("source", "output"))
    lines = write(files.records(options.source, tell=_warn), options.kind, is_base64=options.base64)
    count = 0
    first = next(lines, None)
    if first is None:
        raise UsageError(f"{options.source} holds no messages", fix="record again")
    with writing(options.output, fix=FREE), _new_text(options.output) as out:
        for line in _chained(first, lines):
            out.write(line)
            count += 1
    if str(options.output) != PIPE:
        _tell(options, {"records": count}, f"{count} messages in {options.output}")
    return 0


def _index(words: list[str]) -> int:
    options = parse(IndexOptions, words, name="iotsplit tape index", places=("tape",))
    if str(options.tape) == PIPE:
        raise UsageError("an index is written behind a tape, which a pipe has not", fix="name the file")
    if files.index(options.tape) is not None:
        raise UsageError(f"{options.tape} has an index already", fix="nothing has to be done")
    found = files.rebuild_index(options.tape, tell=_warn)
    _tell(options, {"records": found.records}, f"{found.records} messages, {len(found.places)} places")
    return 0


def _write_tape(options: CommonOptions, output: Path, header: Header, records: Iterator[Record]) -> int:
    first = next(records, None)
    if first is None:
        raise UsageError("nothing is chosen", fix="see iotsplit inspect TAPE for what is there")
    with TapeWriter(output, header) as writer:
        for record in _chained(first, records):
            writer.add(record)
    if str(output) != PIPE:
        count = writer.encoder.survey.records
        _tell(options, {"records": count}, f"{count} messages in {output}")
    return 0


def _chained(first: Any, rest: Iterable[Any]) -> Iterator[Any]:
    yield first
    yield from rest


@contextlib.contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    try:
        # As it came, also line ends: they may be in a payload.
        with (
            io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", newline="")
            if str(path) == PIPE
            else path.open(encoding="utf-8", newline="")
        ) as lines:
            yield lines
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"{path} cannot be read: {reason}", fix="check the path") from None


@contextlib.contextmanager
def _new_text(path: Path) -> Iterator[IO[str]]:
    if str(path) == PIPE:
        yield sys.stdout
        return
    try:
        out = path.open("x", encoding="utf-8", newline="")
    except FileExistsError:
        raise UsageError(f"{path} exists already", fix="choose another name, or remove it") from None
    with out:
        yield out


def _warn(line: str) -> None:
    sys.stderr.write(f"iotsplit tape: {line}\n")


def _tell(options: CommonOptions, result: object, text: str) -> None:
    sys.stdout.write((json.dumps(result) if options.json else text) + "\n")


VERBS: dict[str, Callable[[list[str]], int]] = {
    "diff": _diff,
    "cut": _cut,
    "merge": _merge,
    "import": _import,
    "export": _export,
    "index": _index,
}
"""What each verb does with the words behind it."""
