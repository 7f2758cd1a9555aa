"""The output directory: claimed once, dealt once, emptied only if it is ours."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.datasets.records import Text, read
from iotsplit.errors import RunFailedError, UsageError
from iotsplit.fleet.output import Origin, Output, to_toml
from iotsplit.options import parse
from iotsplit.settings import FleetSettings, TrainingSettings

ORIGIN = Origin(model="smollm2", data="logs", devices=2, partition=None, seed=0)


@dataclass(frozen=True, kw_only=True)
class Anything:
    """Values of all kinds."""

    text: str
    number: float
    count: int
    flag: bool
    words: tuple[str, ...]
    nothing: str | None = None


@pytest.fixture
def output(tmp_path: Path) -> Output:
    made = Output(tmp_path / "out")
    made.root.mkdir()
    return made


def test_what_is_dealt_can_be_read_again(output: Output) -> None:
    output.deal(ORIGIN, {"pump": [Text("a")], "press": [Text("b"), Text("c")]})
    assert output.devices() == ["press", "pump"]
    assert read(output.data / "press.jsonl") == [Text("b"), Text("c")]
    assert output.origin() == ORIGIN


def test_a_deal_that_broke_off_does_not_count(output: Output) -> None:
    class Broken(Mapping[str, list[Text]]):
        def __getitem__(self, name: str) -> list[Text]:
            raise OSError(28, "No space left on device")

        def __iter__(self) -> Iterator[str]:
            return iter(["pump"])

        def __len__(self) -> int:
            return 1

    with pytest.raises(OSError, match="No space"):
        output.deal(ORIGIN, Broken())
    assert output.origin() is None


def test_only_one_run_writes_into_a_directory(output: Output) -> None:
    with (
        output.claimed(),
        pytest.raises(UsageError, match="another run is writing"),
        Output(output.root).claimed(),
    ):
        pass
    with Output(output.root).claimed():
        pass


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(RunFailedError, match=r"cannot write .*file/out: Not a directory; free space"),
        Output(tmp_path / "file" / "out").claimed(),
    ):
        pass


def test_a_disk_that_gets_full_is_one_clear_line(output: Output) -> None:
    with pytest.raises(RunFailedError, match="No space left on device"), output.claimed():
        raise OSError(28, "No space left on device", "somewhere")


def test_starting_over_removes_what_a_run_left_and_nothing_else(output: Output) -> None:
    output.deal(ORIGIN, {"pump": [Text("a")]})
    (output.root / "state").mkdir()
    (output.root / "report.json").touch()
    (output.root / "mine.txt").touch()
    output.start_over()
    assert [file.name for file in output.root.iterdir()] == ["mine.txt"]


def test_a_directory_that_is_not_ours_is_never_emptied(output: Output) -> None:
    (output.root / "data").mkdir()
    (output.root / "data" / "precious").touch()
    with pytest.raises(UsageError, match="was not made by iotsplit run"):
        output.start_over()
    assert (output.root / "data" / "precious").exists()


def test_starting_over_where_nothing_is_does_nothing(tmp_path: Path) -> None:
    Output(tmp_path / "none").start_over()


def test_a_report_that_is_not_there_or_broken_is_empty(output: Output) -> None:
    assert output.report() == {}
    (output.root / "report.json").write_text("{")
    assert output.report() == {}
    output.write_report({"rounds": []})
    assert output.report() == {"rounds": []}


@given(
    text=st.text(),
    number=st.floats(allow_nan=False, allow_infinity=False),
    count=st.integers(-(2**62), 2**62),
    flag=st.booleans(),
    words=st.lists(st.text()).map(tuple),
)
def test_toml_holds_the_values_that_went_in(
    text: str, number: float, count: int, flag: bool, words: tuple[str, ...]
) -> None:
    given_values = Anything(text=text, number=number, count=count, flag=flag, words=words)
    table = tomllib.loads(to_toml(given_values))
    assert "nothing" not in table
    assert Anything(**{**table, "words": tuple(table["words"])}) == given_values


def test_settings_travel_to_the_cloud_through_toml(output: Output) -> None:
    training = TrainingSettings(rounds=9, cut=(2, 5), target_modules=("all-linear",), learning_rate=1e-5)
    path = output.root / "fleet.toml"
    path.write_text(to_toml(training))
    assert parse(Both, ["--config", str(path)], name="x", environment={}).training == training


def test_settings_of_the_fleet_travel_too() -> None:
    table = tomllib.loads(to_toml(FleetSettings(devices=4, edges=2, once=True)))
    assert (table["devices"], table["edges"], table["once"]) == (4, 2, True)
    assert "devices_per_edge" not in table


@dataclass(frozen=True, kw_only=True)
class Both:
    """A configuration file and what may stand in it."""

    training: TrainingSettings
    config: Path | None = None
