"""Records of training data, and the files that they are read from."""

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from iotsplit.errors import UsageError

Split = Literal["train", "eval"]
SUFFIXES = (".txt", ".log", ".jsonl", ".csv")
MAX_FIELD_BYTES = 1 << 30
"""Of CSV; Python's own limit is 128 KiB, which a log is soon longer than."""


@dataclass(frozen=True, slots=True)
class Text:
    """Running text: every token is learnt."""

    text: str
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and what is to follow it: only the completion is learnt."""

    prompt: str
    completion: str
    split: Split | None = None

    @property
    def lead(self) -> str:
        """What the completion follows: the prompt, and a line break if nothing else parts the two."""
        touching = self.prompt[-1:].strip() and self.completion[:1].strip()
        return self.prompt + ("\n" if touching else "")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat that ends with the assistant's message, which is what is learnt."""

    messages: tuple[ChatMessage, ...]
    split: Split | None = None

    @property
    def prompt(self) -> tuple[ChatMessage, ...]:
        """All messages but the last."""
        return self.messages[:-1]

    @property
    def completion(self) -> str:
        """What the assistant says last."""
        return self.messages[-1].content


Record = Text | Pair | Chat


class _Row(msgspec.Struct, omit_defaults=True):
    """What a line of .jsonl or .csv may hold; other keys are ignored."""

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: tuple[ChatMessage, ...] | None = None
    split: Split | None = None


def read(path: Path, *, columns: tuple[str, ...] = ()) -> list[Record]:
    """Read a file, or all files of a folder in the order of their names.

    Args:
        path: a .txt, .log, .jsonl or .csv file, or a folder with such files.
        columns: name of the column of a text, or names of those of prompt and completion; by default these.

    Raises:
        UsageError: something cannot be read; says what, where and what to do.
    """
    if len(columns) > len(("prompt", "completion")):
        raise UsageError(
            f"{len(columns)} columns are named",
            fix="name one column (text) or two (prompt,completion)",
        )
    if path.is_dir():
        return [record for file in files_of(path) for record in read(file, columns=columns)]
    records = _read_file(path, columns)
    if not records:
        raise UsageError(f"{path} is empty", fix="remove it or fill it with data")
    return records


def files_of(folder: Path) -> list[Path]:
    """Every usable file below a folder, sorted; hidden ones and unknown kinds are passed over.

    Raises:
        UsageError: there is none, or the folder cannot be read.
    """
    try:
        found = sorted(file for file in folder.rglob("*") if _is_usable(file.relative_to(folder)))
        found = [file for file in found if file.is_file()]
    except OSError as error:
        raise _unreadable(folder, error) from None
    if not found:
        raise UsageError(
            f"{folder} holds no {', '.join(SUFFIXES)} file",
            fix="put data files into it or give another folder",
        )
    return found


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Write records so that `read` gives the same ones back.

    A file that existed is replaced as a whole, or not at all.
    """
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(to_jsonl(records))
    partial.replace(path)


def to_jsonl(records: Iterable[Record]) -> bytes:
    """Records as lines of JSON."""
    rows = ({k: v for k, v in msgspec.to_builtins(record).items() if v is not None} for record in records)
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


def _is_usable(file: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.parts)
    return not hidden and file.suffix.lower() in SUFFIXES


def _read_file(path: Path, columns: tuple[str, ...]) -> list[Record]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES and path.exists():
        raise UsageError(
            f"{path}: files of kind {suffix or '(no suffix)'} cannot be read",
            fix=f"use one of {', '.join(SUFFIXES)}",
        )
    content = _decode(path)
    if suffix in {".txt", ".log"}:
        return [Text(content)] if content.strip() else []
    rows = _jsonl_rows(path, content) if suffix == ".jsonl" else _csv_rows(path, content)
    return [_record(f"{path} line {line}", row, columns) for line, row in rows]


def _decode(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", fix="check the path of the data") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        return raw.decode("utf-8-sig")  # spreadsheets put a byte-order mark in front
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path} line {line} is not UTF-8",
            fix="convert it, for example with iconv -f latin1 -t utf-8",
        ) from None


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path} cannot be read ({error.strerror})", fix="check its permissions and the disk")


def _jsonl_rows(path: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not splitlines: JSON strings may hold U+2028 and others that it takes for line ends.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise UsageError(
                f"{path} line {number} is not a JSON object ({error})",
                fix='write one object a line, like {"text": "..."}',
            ) from None
        yield number, row


def _csv_rows(path: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(MAX_FIELD_BYTES)
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        for row in reader:
            # The reader files surplus fields under None.
            if None in row or None in row.values():
                raise UsageError(
                    f"{path} line {reader.line_num} has not as many fields as the header",
                    fix="put quotes around fields that hold commas or line ends",
                )
            yield reader.line_num, {name: text for name, text in row.items() if text or name != "split"}
    except csv.Error as error:
        raise UsageError(
            f"{path} line {reader.reader.line_num} is not CSV ({error})",
            fix="save it as comma-separated UTF-8 with a header line",
        ) from None


def _record(where: str, row: dict[str, Any], columns: tuple[str, ...]) -> Record:
    wanted = dict(row)
    if columns:
        missing = [name for name in columns if name not in row]
        if missing:
            raise UsageError(
                f"{where} has no column {', '.join(missing)}",
                fix=f"choose columns among {', '.join(row) or '(none)'}",
            )
        roles = ("text",) if len(columns) == 1 else ("prompt", "completion")
        wanted = {role: row[name] for role, name in zip(roles, columns, strict=True)}
        wanted["split"] = row.get("split")
    try:
        parsed = msgspec.convert(wanted, type=_Row)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {error}", fix='texts are strings, split is "train" or "eval"') from None
    return _choose(where, row, parsed)


def _choose(where: str, row: dict[str, Any], parsed: _Row) -> Record:
    if parsed.messages is not None:
        return _chat(where, parsed.messages, parsed.split)
    if parsed.prompt is not None and parsed.completion is not None:
        return Pair(parsed.prompt, parsed.completion, parsed.split)
    if parsed.text is not None:
        return Text(parsed.text, parsed.split)
    raise UsageError(
        f"{where} has no text, no prompt and completion and no messages, but {', '.join(row) or 'nothing'}",
        fix="rename the keys or name the columns, for example --columns mr,ref",
    )


def _chat(where: str, messages: tuple[ChatMessage, ...], split: Split | None) -> Chat:
    for end in range(len(messages), 0, -1):
        if messages[end - 1].role == "assistant":
            return Chat(messages[:end], split)
    raise UsageError(
        f"{where}: messages hold none of the assistant",
        fix='give at least one message with "role": "assistant"',
    )
