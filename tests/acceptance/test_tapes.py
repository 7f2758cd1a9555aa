"""The commands around tapes: what they show, what they write, and how they refuse."""

import io
import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from iotsplit.cli import main
from iotsplit.fleet.replay import Source
from iotsplit.tape import files
from iotsplit.tape.files import TapeWriter
from iotsplit.tape.format import Encoder, Header, Record
from iotsplit.tape.selection import Selection

GOLDEN = Path(__file__).parents[1] / "tapes"
QUIET = GOLDEN / "quiet.tape"
NOBODY = "--broker=mqtt://127.0.0.1:1"

# For each command line: the exit code, and words that the line must hold.
CASES: list[tuple[str, int, str, str]] = [
    ("inspect", 2, "needs TAPE", "--help"),
    ("inspect {tmp}/none.tape", 2, "{tmp}/none.tape cannot be read: No such file", "check the path"),
    ("inspect {tmp}/empty.tape", 2, "{tmp}/empty.tape is empty", "record again"),
    ("inspect {tmp}/no.tape", 2, "{tmp}/no.tape is no tape", "iotsplit record"),
    ("inspect {tmp}/later.tape", 6, "{tmp}/later.tape is a tape of format 2", "the version of iotsplit"),
    ("inspect {tmp}/silent.tape", 2, "{tmp}/silent.tape holds no messages", "inspect"),
    ("inspect {quiet} --topic=none/#", 2, "nothing in {quiet} is of topic none/#", "inspect"),
    ("inspect {quiet} --session=x --round=2", 2, "of session x, round 2", "inspect"),
    ("inspect {quiet} --topic=a#", 2, "topic filter 'a#' is not one", "at the end"),
    ("inspect {quiet} --timeline={tmp}/no.tape", 2, "{tmp}/no.tape exists already", "another name"),
    ("inspect {quiet} --extract={tmp}", 2, "{tmp} is not empty", "--extract"),
    (f"record {{tmp}}/new.tape {NOBODY}", 3, "nobody listens at mqtt://127.0.0.1:1", "iotsplit broker"),
    ("record {tmp}/no.tape", 2, "{tmp}/no.tape exists already", "another name"),
    ("record {tmp}/none/x.tape", 1, "cannot write {tmp}/none/x.tape", "another place"),
    ("record {tmp}/x.tape --duration=soon", 2, "duration 'soon'", "60s"),
    ("record {tmp}/x.tape --max-size=big", 2, "size 'big'", "1GB"),
    ("record {tmp}/x.tape --rounds=0", 2, "rounds 0", "1 or more"),
    ("record {tmp}/x.tape --topic=a --session=b", 2, "--topic and --session", "one of them"),
    (f"replay {{quiet}} {NOBODY}", 3, "nobody listens at mqtt://127.0.0.1:1", "iotsplit broker"),
    ("replay {quiet} --speed=fast", 2, "speed 'fast'", "10x"),
    ("replay {quiet} --map-topic=x", 2, "topic mapping 'x'", "s/old/new/"),
    ("replay {quiet} --map-topic=s/(/b/", 2, "topic mapping 's/(/b/'", "regular expression"),
    ("replay {quiet} --from=noon", 2, "'noon' is no place in a tape", "round:2"),
    ("replay {quiet} --loop=0", 2, "loop 0", "1 or more"),
    ("replay {quiet} --tpic=x", 2, "--tpic. Did you mean --topic?", "--help"),
    ("replay --tpic=x {quiet}", 2, "--tpic=x (did you mean --topic?)", "--help"),
    ("replay {quiet} --against=edge", 2, "the tape holds 2 agents", "--agent: edge-1, edge-2"),
    ("replay {quiet} --against=edge --agent=edge-3", 2, "no edge named edge-3", "edge-1, edge-2"),
    ("replay {quiet} --against=device", 2, "a device's data are not on the tape", "--data"),
    ("replay {quiet} --against=edge --tolerance=-1", 2, "tolerance -1", "1e-6"),
    ("replay - --against=edge", 2, "a tape is read twice", "into a file"),
    ("replay {tmp}/foreign.tape --against=edge", 2, "of no fleet of iotsplit", "without --against"),
    ("replay {tmp}/redacted.tape --against=edge", 2, "were replaced by zeros", "--redact-tensors"),
    ("replay {quiet} --against=cloud --report={tmp}/no.tape", 2, "{tmp}/no.tape exists already", "another"),
    ("tape dff", 2, "no command tape dff (did you mean diff?)", "--help"),
    ("tape diff {quiet}", 2, "needs SECOND", "--help"),
    ("tape diff {quiet} {quiet2}", 7, "differs from {quiet}: record", "inspect"),
    ("tape cut {quiet} {tmp}/no.tape", 2, "{tmp}/no.tape exists already", "another name"),
    ("tape cut {quiet} {tmp}/x.tape --from=1h", 2, "nothing is chosen", "inspect"),
    ("tape merge {tmp}/x.tape {quiet}", 2, "at least two", "--help"),
    ("tape import {tmp}/no.tape {tmp}/x.tape", 2, "{tmp}/no.tape line 1", "mosquitto_sub -F"),
    ("tape import {tmp}/nothing {tmp}/x.tape", 2, "{tmp}/nothing holds no messages", "record again"),
    ("tape export {quiet} {tmp}/x.csv --kind=mqtt-recorder", 2, "is not text", "--base64"),
    ("tape export {quiet} {tmp}/no.tape", 2, "{tmp}/no.tape exists already", "another name"),
    ("tape index {quiet}", 2, "has an index already", "nothing"),
    ("tape cut {quiet} {tmp}/x.tape --topic=none/#", 2, "nothing is chosen", "inspect"),
    ("replay {tmp}/silent.tape --against=edge", 2, "the tape holds no messages", "record again"),
    (f"replay {{tmp}}/silent.tape {NOBODY}", 2, "{tmp}/silent.tape holds no messages", "record again"),
    (
        f"replay {{quiet}} --fleet=x {NOBODY}",
        2,
        "on iotsplit/memory, not on iotsplit/x",
        "s|^iotsplit/memory/|",
    ),
    (f"replay {{quiet}} --topic-prefix=p/ {NOBODY}", 2, "not on p/iotsplit/default", "|p/iotsplit/default/|"),
    (f"replay {{quiet}} --fleet=x --map-topic=s/memory/x/ {NOBODY}", 3, "nobody listens at", "broker"),
]

# Every command that reads a tape, for what is none.
READING = (
    "inspect {tape}",
    f"replay {{tape}} {NOBODY}",
    "replay {tape} --against=edge",
    "tape cut {tape} {tmp}/x.tape",
    "tape diff {quiet} {tape}",
    "tape merge {tmp}/x.tape {quiet} {tape}",
    "tape export {tape} {tmp}/x.txt",
    "tape index {tape}",
)
UNFIT = (
    ("later", 6, "is a tape of format 2", "the version of iotsplit"),
    ("empty", 2, "is empty", "record again"),
    ("no", 2, "is no tape", "iotsplit record"),
)
CASES += [
    (command.replace("{tape}", f"{{tmp}}/{name}.tape"), code, f"{{tmp}}/{name}.tape {what}", fix)
    for command in READING
    for name, code, what, fix in UNFIT
]


def write(path: Path, *records: Record, header: Header | None = None) -> Path:
    with TapeWriter(path, header or Header()) as writer:
        for record in records:
            writer.add(record)
    return path


def foreign(count: int) -> list[Record]:
    return [
        Record(n * 10**9, 10**18 + n * 10**9, f"hall/{n % 2} x", bytes([n, 10, 255]), n % 3, n == 1)
        for n in range(count)
    ]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "empty.tape").write_bytes(b"")
    (tmp_path / "no.tape").write_bytes(b"some text\n")
    (tmp_path / "nothing").write_bytes(b"")
    (tmp_path / "later.tape").write_bytes(Encoder().begin(msgspec.structs.replace(Header(), format=2)))
    write(tmp_path / "silent.tape")
    write(tmp_path / "foreign.tape", *foreign(3))
    write(tmp_path / "redacted.tape", *foreign(3), header=Header(fleet="x", redacted=True))
    return tmp_path


@pytest.mark.parametrize(("words", "code", "what", "fix"), CASES)
def test_bad_input_is_one_clear_line(
    words: str, code: int, what: str, fix: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"tmp": place, "quiet": QUIET, "quiet2": GOLDEN / "rollback.tape"}
    before = {file: file.read_bytes() for file in place.iterdir()}
    assert main(words.format(**names).split()) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("iotsplit: error: ")
    assert what.format(**names) in line
    assert fix in line
    assert {file: file.read_bytes() for file in before} == before


def test_a_damaged_tape_is_read_around_the_damage(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torn = place / "torn.tape"
    torn.write_bytes(QUIET.read_bytes() + bytes(100))
    assert main(["inspect", str(torn)]) == 0
    told = capsys.readouterr()
    assert "100 bytes at offset" in told.err
    assert "torn and left out" in told.err
    assert "messages" in told.out


@pytest.fixture
def damaged(place: Path) -> Path:
    """A tape of several blocks; one in its middle is not what was written."""
    tape = place / "damaged.tape"
    with TapeWriter(tape, files.header(QUIET)) as writer:
        for number, record in enumerate(files.records(QUIET), 1):
            writer.add(record)
            if number % 40 == 0:
                writer.flush()
    index = files.index(tape)
    assert index is not None
    data = bytearray(tape.read_bytes())
    at = index.places[2].offset
    data[at + 50 : at + 60] = bytes(10)
    tape.write_bytes(data)
    return tape


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("inspect {damaged}", 0),
        ("tape cut {damaged} {tmp}/x.tape", 0),
        ("tape merge {tmp}/x.tape {damaged} {quiet}", 0),
        ("tape export {damaged} {tmp}/x.txt", 0),
        ("tape diff {quiet} {damaged}", 7),
        ("replay {damaged} --against=edge --agent=nobody", 2),
    ],
)
def test_damage_in_the_middle_is_passed_over_and_told(
    words: str, code: int, damaged: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = damaged.read_bytes()
    assert main(words.format(damaged=damaged, tmp=place, quiet=QUIET).split()) == code
    told = capsys.readouterr().err.splitlines()
    assert re.search(r"damaged\.tape: \d+ bytes at offset \d+ are damaged and were passed over", told[0])
    assert len(told) == 1 + (code > 0)
    assert damaged.read_bytes() == before
    for part in place.glob("x.tape"):
        assert len(list(files.records(part))) >= len(list(files.records(QUIET))) - 40


def test_what_is_replayed_tells_of_damage_too(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Source(damaged, Selection(), None, None)
    source.open()
    assert len(list(source.records())) == len(list(files.records(QUIET))) - 40
    assert "are damaged and were passed over" in capsys.readouterr().err


def test_a_tape_without_its_header_can_still_be_used(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(QUIET.read_bytes())
    data[20] ^= 1
    (place / "headless.tape").write_bytes(data)
    words = ["tape", "cut", str(place / "headless.tape"), str(place / "x.tape"), "--from=round:1"]
    assert main(words) == 0
    assert "bytes at offset 8 are damaged" in capsys.readouterr().err
    assert any(each.retain for each in files.records(place / "x.tape"))


def test_a_tape_that_is_torn_before_its_first_message_is_told_to_be(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "torn.tape").write_bytes(QUIET.read_bytes()[:1000])
    tape, made = str(place / "torn.tape"), str(place / "x.tape")
    for words in (["inspect", tape], ["replay", tape, NOBODY], ["tape", "cut", tape, made]):
        assert main(words) == 2
        torn, error = capsys.readouterr().err.splitlines()
        assert "are torn and left out" in torn
        assert "holds no messages" in error or "nothing is chosen" in error
    assert not (place / "x.tape").exists()


def test_inspect_shows_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(GOLDEN / "fail-over.tape"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows["closed"]
    assert {name: row["role"] for name, row in rows["agents"].items()} == {
        "cloud": "cloud",
        "edge-1": "edge",
        "edge-2": "edge",
        "a": "device",
        "b": "device",
    }
    assert rows["agents"]["edge-1"]["lost"] == 1
    moved = rows["sessions"]["run1-t1-a"]
    assert (moved["edges"], moved["moves"], moved["steps"]) == (["edge-1", "edge-2"], 1, 6)
    assert rows["rounds"][0]["detail"]["devices"] == 2
    assert set(rows["hops_s"]) == {"edge forward", "cloud", "edge backward"}
    hidden = rows["tensors"]["activation.hidden device→edge fp32"]
    assert (hidden["dtype"], hidden["nan"], len(hidden["shape"])) == ("float32", 0, 3)
    assert hidden["min"] < 0 < hidden["max"]


def test_inspect_chooses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(QUIET), "--kind", "gradient", "--round", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert set(rows["classes"]) == {"lan", "wan"}
    assert {name.partition(" ")[0] for name in rows["tensors"]} == {"gradient.gradient"}


def test_inspect_reads_topics_of_others(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(place / "foreign.tape"), "--topic", "hall/1 x"]) == 0
    assert "1 messages, 3 B" in capsys.readouterr().out


def test_inspect_extracts_tensors_and_draws(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", str(QUIET), f"--extract={place / 'tensors'}", f"--timeline={place / 'page.html'}"]
    assert main([*words, "--session=run1-t1-a"]) == 0
    names = sorted(file.name for file in (place / "tensors").iterdir())
    assert any(name.endswith("activation.device-edge.hidden.npy") for name in names)
    assert any(name.endswith("update.device-cloud.safetensors") for name in names)
    assert "<script" in (place / "page.html").read_text(encoding="utf-8")
    capsys.readouterr()


@pytest.mark.parametrize("kind", [[], ["--kind=mqtt-recorder", "--base64"]])
def test_other_tools_files_come_and_go(
    kind: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, back = place / "lines", place / "back.tape"
    assert main(["tape", "export", str(place / "foreign.tape"), str(lines), *kind]) == 0
    assert main(["tape", "import", str(lines), str(back), *kind]) == 0
    expected = [msgspec.structs.replace(each, mono_ns=each.wall_ns, observer="import") for each in foreign(3)]
    assert list(files.records(back)) == expected
    capsys.readouterr()


def test_lines_of_mosquitto_sub_are_as_it_writes_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "lines").write_text("1700000000.000000123 a b/c 1 0 00ff\n1700000000.5 d 0 1 \n", encoding="utf-8")
    assert main(["tape", "import", str(place / "lines"), str(place / "made.tape")]) == 0
    first, second = files.records(place / "made.tape")
    assert (first.topic, first.payload, first.qos, first.retain) == ("a b/c", b"\0\xff", 1, False)
    assert (second.wall_ns - first.wall_ns, second.payload, second.retain) == (499_999_877, b"", True)
    capsys.readouterr()


def test_a_part_begins_with_what_was_retained(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = place / "part.tape"
    assert main(["tape", "cut", str(GOLDEN / "rollback.tape"), str(part), "--from=round:2"]) == 0
    records = list(files.records(part))
    context = [each for each in records if each.retain]
    assert records[: len(context)] == context
    assert {each.topic.split("/")[2] for each in context} == {"state", "assign", "adapter", "round"}
    assert len({each.topic for each in context}) == len(context)
    assert files.header(part).fleet == "memory"
    capsys.readouterr()


def test_two_tapes_become_one_by_wall_time(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later = [msgspec.structs.replace(each, wall_ns=each.wall_ns + 5 * 10**8) for each in foreign(3)]
    write(place / "later2.tape", *later)
    words = ["tape", "merge", str(place / "both.tape"), str(place / "foreign.tape"), str(place / "later2.tape")]
    assert main(words) == 0
    times = [each.mono_ns for each in files.records(place / "both.tape")]
    assert times == sorted(times)
    assert len(times) == 6
    capsys.readouterr()


def test_the_same_tape_does_not_differ(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(QUIET, place / "copy.tape")
    assert main(["tape", "diff", str(QUIET), str(place / "copy.tape")]) == 0
    assert capsys.readouterr().out.startswith("the same: ")


def test_an_index_is_made_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = QUIET.read_bytes()
    found = files.index(QUIET)
    assert found is not None
    tape = place / "unclosed.tape"
    closed_at = whole.rindex(b"\xabTB\xbaI")
    tape.write_bytes(whole[:closed_at])
    assert files.index(tape) is None
    assert main(["tape", "index", str(tape)]) == 0
    assert files.index(tape) == found
    capsys.readouterr()


def piped(data: bytes) -> Any:
    class Stdin:
        buffer = io.BytesIO(data)

    return Stdin


def test_a_recording_goes_on_through_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SYNC_EVERY_S", -1.0)  # always
    read, write_ = os.pipe()
    with os.fdopen(read, "rb") as out, os.fdopen(write_, "wb") as buffer:
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=buffer, isatty=lambda: False))
        with TapeWriter(Path("-"), Header(fleet="x"), sync=True) as writer:
            for record in foreign(3):
                writer.add(record)
                writer.flush()
        monkeypatch.undo()
        buffer.close()
        assert out.read()


def test_one_side_of_a_comparison_may_be_a_pipe(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", piped(QUIET.read_bytes()))
    assert main(["tape", "diff", "-", str(QUIET)]) == 0
    monkeypatch.setattr(sys, "stdin", piped(QUIET.read_bytes()))
    assert main(["tape", "merge", str(place / "both.tape"), "-", str(QUIET)]) == 0
    both = len(list(files.records(place / "both.tape")))
    assert both == 2 * len(list(files.records(QUIET)))
    capsys.readouterr()
    assert main(["tape", "index", "-"]) == 2
    assert "a pipe has not" in capsys.readouterr().err
    assert not (place / "-").exists()


def test_what_is_imported_through_a_pipe_is_what_a_file_of_it_is(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = b'a/b,"two\r\nlines",1,0,1700000000.5,0\r\n'  # the line end is of the payload
    words = ["--kind=mqtt-recorder"]
    monkeypatch.setattr(sys, "stdin", piped(rows))
    assert main(["tape", "import", "-", str(place / "piped.tape"), *words]) == 0
    (place / "rows").write_bytes(rows)
    assert main(["tape", "import", str(place / "rows"), str(place / "file.tape"), *words]) == 0
    assert [each.payload for each in files.records(place / "piped.tape")] == [b"two\r\nlines"]
    assert list(files.records(place / "piped.tape")) == list(files.records(place / "file.tape"))
    monkeypatch.setattr(sys, "stdin", piped(b"a/\xff,x,1,0,1700000000.5,0\n"))
    capsys.readouterr()
    assert main(["tape", "import", "-", str(place / "bad.tape"), *words]) == 2
    assert "UTF-8" in capsys.readouterr().err


def test_tapes_go_through_pipes(
    place: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["tape", "cut", str(QUIET), "-", "--topic=iotsplit/memory/round"]) == 0
    made = capfdbinary.readouterr().out
    monkeypatch.setattr(sys, "stdin", piped(made))
    assert main(["inspect", "-", "--json"]) == 0
    rows = json.loads(capfdbinary.readouterr().out)
    assert set(rows["classes"]) == {"round"}
