"""A reader that begins in the midst of a tape finds what one finds that reads all of it."""

from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from iotsplit.fleet.replay import Source
from iotsplit.states import Round
from iotsplit.tape import files
from iotsplit.tape.files import TapeWriter
from iotsplit.tape.format import MARK, Header, Record, index_blocks
from iotsplit.tape.places import Index, Place
from iotsplit.tape.selection import Moment, Selection, place_before

S = 10**9


def said(at_s: float, *, round_: int | None = None) -> Record:
    """A record, of a round's state if there is one."""
    topic = "iotsplit/f/round" if round_ is not None else "iotsplit/f/metrics/a"
    state = Round(round=round_ or 0, phase="training", version=0, sessions=0)
    return Record(int(at_s * S), 0, topic, msgspec.json.encode(state) if round_ is not None else b"x" * 40)


def write(path: Path, blocks: list[list[Record]], *, fleet: str = "f") -> Path:
    with TapeWriter(path, Header(fleet=fleet)) as writer:
        for block in blocks:
            for record in block:
                writer.add(record)
            writer.flush()
    return path


def without_index(path: Path) -> Path:
    whole = path.read_bytes()
    other = path.with_name("unclosed.tape")
    other.write_bytes(whole[: whole.rindex(MARK + b"I")])
    return other


def chosen(path: Path, start: Moment | None, end: Moment | None) -> list[Record]:
    source = Source(path, Selection(), start, end)
    source.open()
    return list(source.records())


SAID = st.builds(said, st.integers(0, 30), round_=st.none() | st.integers(0, 4))
BLOCKS = st.lists(st.lists(SAID, min_size=1, max_size=3), min_size=1, max_size=8)
MOMENTS = st.builds(Moment, st.integers(0, 31).map(float)) | st.builds(Moment, round=st.integers(0, 5))


def ordered(blocks: list[list[Record]]) -> list[list[Record]]:
    times = iter(sorted(record.mono_ns for block in blocks for record in block))
    return [[msgspec.structs.replace(record, mono_ns=next(times)) for record in block] for block in blocks]


@given(BLOCKS, st.booleans(), MOMENTS, st.none() | MOMENTS, st.sampled_from(["f", ""]))
@example([[said(0, round_=3)], [said(5)], [said(6)]], True, Moment(5.5), Moment(round=2), "f")
@example([[said(0)], [said(5, round_=1)], [said(5)], [said(6, round_=2)]], True, Moment(5.0), None, "f")
def test_with_an_index_the_same_is_found_as_without(
    blocks: list[list[Record]], in_order: bool, start: Moment, end: Moment | None, fleet: str
) -> None:
    with TemporaryDirectory() as directory:
        tape = write(Path(directory) / "x.tape", ordered(blocks) if in_order else blocks, fleet=fleet)
        assert chosen(tape, start, end) == chosen(without_index(tape), start, end)


@given(BLOCKS)
def test_an_index_that_is_made_again_is_the_same(blocks: list[list[Record]]) -> None:
    with TemporaryDirectory() as directory:
        tape = write(Path(directory) / "x.tape", blocks)
        again = without_index(tape)
        assert files.rebuild_index(again) == files.index(tape) == files.index(again)


LONG = [[said(0)], *([said(at), said(at)] for at in range(1, 50)), [said(50, round_=2)], [said(51)]]


@pytest.mark.parametrize(("start", "count"), [(Moment(49.5), 2), (Moment(round=2), 2), (Moment(51.0), 1)])
def test_what_lies_before_is_not_read(start: Moment, count: int, tmp_path: Path) -> None:
    tape = write(tmp_path / "x.tape", LONG)
    data = bytearray(tape.read_bytes())
    index = files.index(tape)
    assert index is not None
    first, second = index.places[1].offset, index.places[49].offset
    data[first:second] = bytes(second - first)  # whoever read that would say that it is damaged
    tape.write_bytes(data)
    told: list[str] = []
    place = place_before(index, start, None, origin_ns=0)
    assert place is not None
    items = files.items_from(tape, place)
    assert items is not None
    found = list(files.rest(items, tape, tell=told.append))
    assert told == []
    assert found[-count:] == chosen(tape, start, None) == [r for block in LONG for r in block][-count:]
    assert len(found) <= count + 2  # one block before at most


def lying(tape: Path, change: Index, *, offset: int | None = None) -> None:
    whole = tape.read_bytes()
    at = whole.rindex(MARK + b"I")
    tape.write_bytes(whole[:at] + index_blocks(change, at if offset is None else offset))


@pytest.mark.parametrize("place", [Place(9, 45 * S, 0), Place(2**63, 45 * S, 0), Place(-3, 45 * S, 0)])
def test_an_index_that_names_a_wrong_place_is_not_used(place: Place, tmp_path: Path) -> None:
    tape = write(tmp_path / "x.tape", LONG)
    index = files.index(tape)
    assert index is not None
    lying(tape, msgspec.structs.replace(index, places=(place,)))
    assert chosen(tape, Moment(49.5), None) == LONG[-2] + LONG[-1]


@pytest.mark.parametrize("offset", [8, 2**63])
def test_an_index_that_does_not_lie_where_the_end_says_is_none(offset: int, tmp_path: Path) -> None:
    tape = write(tmp_path / "x.tape", LONG)
    lying(tape, Index(), offset=offset)
    assert files.index(tape) is None
    assert chosen(tape, Moment(49.5), None) == LONG[-2] + LONG[-1]


def test_tapes_of_times_that_go_back_are_read_from_the_beginning(tmp_path: Path) -> None:
    tape = write(tmp_path / "x.tape", [[said(0)], [said(9)], [said(2)], [said(9)]])
    assert chosen(tape, Moment(5.0), None) == [said(9), said(9)]
    assert len(chosen(tape, Moment(1.0), None)) == 3


def test_more_rounds_than_the_index_names_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("places", "selection"):
        monkeypatch.setattr(f"iotsplit.tape.{module}.MAX_PLACES", 2)
    tape = write(tmp_path / "x.tape", [[said(n, round_=n), said(n)] for n in range(6)])
    for start, end in [
        (Moment(round=5), None),
        (Moment(round=1), Moment(round=4)),
        (Moment(3.0), Moment(round=4)),
    ]:
        assert chosen(tape, start, end) == chosen(without_index(tape), start, end) != []


def test_a_round_that_no_integer_of_a_tape_holds_does_no_harm(tmp_path: Path) -> None:
    tape = write(tmp_path / "x.tape", [[said(0)], [said(1, round_=2**70)], [said(2)]])
    assert len(chosen(tape, Moment(round=2**70), None)) == 2
