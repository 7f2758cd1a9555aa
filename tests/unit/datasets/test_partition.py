"""Dealing data to devices: nothing lost, nothing twice, the same for the same seed."""

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.datasets.names import device_ids
from iotsplit.datasets.partition import deal, load
from iotsplit.datasets.records import Pair, Record, Text
from iotsplit.errors import UsageError


def notes(kind: str, train: int, held_out: int = 0) -> list[Record]:
    made: list[Record] = [Pair(f"{kind} {n}", "ticket") for n in range(train)]
    return made + [Pair(f"{kind} eval {n}", "ticket", "eval") for n in range(held_out)]


def texts(records: list[Record]) -> list[str]:
    return [record.text for record in records if isinstance(record, Text)]


def kinds(records: list[Record]) -> Counter[str]:
    return Counter(record.prompt[0] for record in records if isinstance(record, Pair))


def logs(folder: Path, names: list[str], lines: int = 30) -> str:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name} line {n} of a log\n" for n in range(lines)))
    return str(folder)


many_names = st.lists(st.text(max_size=40), max_size=30)


@given(names=many_names)
def test_device_ids_are_unique_and_allowed_in_topics(names: list[str]) -> None:
    ids = device_ids(names)
    assert len(ids) == len(set(ids)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,23}", device) for device in ids)


def test_device_ids_stay_readable() -> None:
    assert device_ids(["press", "line 3/ä", "press", "x" * 30, "x" * 30, "ö"]) == [
        "press",
        "line-3",
        "press-2",
        "x" * 23,
        "x" * 21 + "-2",
        "device",
    ]


def test_files_go_to_devices_in_turn(tmp_path: Path) -> None:
    data = logs(tmp_path, ["a.log", "b.log", "c.log", "d.log", "e.log"])
    dealt = load(data, devices=2)
    assert list(dealt) == ["a", "b"]
    starts = {name: [text[:5] for text in texts(records)] for name, records in dealt.items()}
    assert starts == {"a": ["a.log", "c.log", "e.log"], "b": ["b.log", "d.log"]}


def test_without_a_number_each_file_is_a_device(tmp_path: Path) -> None:
    data = logs(tmp_path, ["Linux.log", "Spark.log", "v1.2/x.log", "v1.2/y.log"])
    dealt = load(data)
    assert {name: len(records) for name, records in dealt.items()} == {
        "Linux": 1,
        "Spark": 1,
        "v1-2": 2,
    }


def test_files_of_one_stem_are_two_devices(tmp_path: Path) -> None:
    assert list(load(logs(tmp_path, ["a.log", "a.txt"]))) == ["a", "a-2"]


def test_too_few_files_name_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"1 files .* 3 devices.*--partition iid"):
        load(logs(tmp_path, ["a.log"]), devices=3, partition="files")


def test_one_file_is_dealt_by_records(tmp_path: Path) -> None:
    logs(tmp_path, ["a.log"], lines=400)
    dealt = load(str(tmp_path / "a.log"))
    assert list(dealt) == ["device-1", "device-2", "device-3", "device-4"]
    lines = [line for records in dealt.values() for t in texts(records) for line in t.splitlines()]
    assert sorted(lines) == sorted((tmp_path / "a.log").read_text().splitlines())
    assert {len(records) for records in dealt.values()} in [{8}, {9}, {8, 9}, {9, 10}]


def test_a_folder_with_one_file_is_dealt_by_records(tmp_path: Path) -> None:
    assert len(load(logs(tmp_path, ["a.log"], lines=200), devices=3)) == 3


def test_a_single_endless_line_is_cut_too() -> None:
    dealt = deal([Text("x" * 10_000)], partition="iid", devices=2, seed=0)
    assert sum(len(t) for records in dealt.values() for t in texts(records)) == 10_000


def test_cut_text_keeps_its_split() -> None:
    records: list[Record] = [Text("line\n" * 500), Text("held\n" * 500, "eval")]
    dealt = deal(records, partition="iid", devices=2, seed=0)
    for hand in dealt.values():
        assert {r.split for r in hand} == {None, "eval"}
        assert all(("held" in str(r)) == (r.split == "eval") for r in hand)


@given(
    sizes=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), min_size=1, max_size=4),
    devices=st.integers(1, 12),
    partition=st.sampled_from(["files", "iid", "dirichlet:0.01", "dirichlet:0.3", "dirichlet:50"]),
    seed=st.integers(0, 5),
)
def test_every_record_goes_to_exactly_one_device(
    sizes: list[tuple[int, int]], devices: int, partition: str, seed: int
) -> None:
    groups = {f"g{n}": notes(f"g{n}", *size) for n, size in enumerate(sizes)}
    try:
        dealt = deal(groups, partition=partition, devices=devices, seed=seed)
    except UsageError:
        least = len(groups) if partition == "files" else sum(map(len, groups.values()))
        assert least < devices
        return
    assert len(dealt) == devices
    before = Counter(r for records in groups.values() for r in records)
    assert Counter(r for records in dealt.values() for r in records) == before


def test_iid_is_even_in_training_and_in_held_out_records() -> None:
    groups = {"a": notes("a", 40, 6), "b": notes("b", 24, 6)}
    for hand in deal(groups, partition="iid", devices=4, seed=0).values():
        assert Counter(r.split for r in hand) == {None: 16, "eval": 3}
        assert len(kinds(hand)) == 2


def test_dirichlet_skews_and_leaves_nobody_without_data() -> None:
    groups = {kind: notes(kind, 60, 4) for kind in "abcd"}

    def largest_share(partition: str) -> float:
        hands = deal(groups, partition=partition, devices=4, seed=3).values()
        assert min(sum(r.split is None for r in hand) for hand in hands) >= 8
        assert min(sum(r.split == "eval" for r in hand) for hand in hands) >= 1
        return sum(max(kinds(hand).values()) / len(hand) for hand in hands)

    assert largest_share("dirichlet:0.1") > largest_share("dirichlet:100") + 0.5


def test_a_tiny_concentration_gives_each_group_to_one_device() -> None:
    dealt = deal({"a": notes("a", 100, 6)}, partition="dirichlet:1e-9", devices=2, seed=0)
    splits = [Counter(r.split for r in hand) for hand in dealt.values()]
    assert sorted(split[None] for split in splits) == [8, 92]
    assert sorted(split["eval"] for split in splits) == [1, 5]


@pytest.mark.parametrize("partition", ["iid", "dirichlet:0.5"])
def test_the_seed_decides_who_gets_what(partition: str) -> None:
    groups = {"a": notes("a", 40), "b": notes("b", 40)}
    first = deal(groups, partition=partition, devices=3, seed=1)
    assert deal(groups, partition=partition, devices=3, seed=1) == first
    assert deal(groups, partition=partition, devices=3, seed=2) != first


def test_names_of_many_devices_sort_in_order() -> None:
    dealt = deal(notes("a", 30), partition="iid", devices=10, seed=0)
    assert list(dealt) == sorted(dealt)
    assert next(iter(dealt)) == "device-01"


@pytest.mark.parametrize(
    "partition",
    ["by-size", "iid:3", "dirichlet", *(f"dirichlet:{a}" for a in ("", "0", "-1", "x", "nan", "inf"))],
)
def test_an_unknown_partition_is_refused(partition: str) -> None:
    with pytest.raises(UsageError, match=r"dirichlet:0\.3"):
        deal(notes("a", 30), partition=partition, devices=2, seed=0)


def test_fewer_records_than_devices_are_refused() -> None:
    with pytest.raises(UsageError, match="3 records are too few for 4 devices"):
        deal(notes("a", 3), partition="iid", devices=4, seed=0)


@pytest.mark.parametrize("devices", [0, -1])
def test_at_least_one_device_is_needed(devices: int) -> None:
    with pytest.raises(UsageError, match="cannot train"):
        load("plant", devices=devices)
    with pytest.raises(UsageError, match="cannot train"):
        deal(notes("a", 3), partition="iid", devices=devices, seed=0)


def test_data_that_is_nowhere_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="plant, python-reference, fortunes"):
        load(str(tmp_path / "gone"))


def test_the_plant_gives_each_device_its_machine() -> None:
    dealt = load("plant", devices=5, seed=2)
    assert list(dealt) == ["press", "pump", "conveyor", "robot", "compressor"]
    assert len(load("plant")) == 4
    assert list(load("plant", devices=3, partition="iid")) == ["device-1", "device-2", "device-3"]


def test_all_topics_of_the_reference_are_dealt() -> None:
    dealt = load("python-reference", devices=4)
    assert list(dealt)[:2] == ["assert", "assignment"]
    assert sum(map(len, dealt.values())) > 50


def test_columns_reach_the_files(tmp_path: Path) -> None:
    (tmp_path / "e2e.csv").write_text("mr,ref\n" + "name[x],There is x.\n" * 9)
    dealt = load(str(tmp_path / "e2e.csv"), devices=1, columns=("mr", "ref"))
    assert dealt["device-1"][0] == Pair("name[x]", "There is x.")
