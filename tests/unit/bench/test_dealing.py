"""The data of a case: dealt once, marked, the same for every scheme."""

from pathlib import Path

import pytest

from iotsplit.bench import dealing
from iotsplit.bench.cells import ALL, Case
from iotsplit.datasets.records import Pair, Record, Text, read
from iotsplit.errors import UsageError

CASE = Case(partition="files", samples=ALL, devices=2, seed=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    for name in ("press", "pump"):
        rows = "".join(f'"{name} {at // 2}","answer {at}"\n' for at in range(60))
        (made / f"{name}.csv").write_text(f"mr,ref\n{rows}")
    return made


def dealt(folder: Path, case: Case = CASE, held_out: int = 6) -> dealing.Shares:
    columns = ("mr", "ref")
    return dealing.deal(str(folder), case, columns=columns, sequence_length=16, held_out=held_out).shares


def prompts(records: list[Record] | tuple[Record, ...], split: str) -> set[str]:
    return {each.prompt for each in records if isinstance(each, Pair) and each.split == split}


def test_every_record_is_learnt_or_held_out_and_no_prompt_is_both(folder: Path) -> None:
    shares = dealt(folder)
    assert list(shares) == ["press", "pump"]
    for records in shares.values():
        assert len(records) == 60
        assert prompts(tuple(records), "train").isdisjoint(prompts(tuple(records), "eval"))
        assert len(prompts(tuple(records), "eval")) == 3


def test_what_one_device_holds_out_no_other_learns(tmp_path: Path) -> None:
    rows = "".join(f'"asked {at // 8}","answer {at}"\n' for at in range(240))
    (tmp_path / "all.csv").write_text(f"mr,ref\n{rows}")
    case = Case(partition="iid", samples=ALL, devices=4, seed=0)
    dealt = dealing.deal(str(tmp_path), case, columns=("mr", "ref"), sequence_length=16, held_out=2)
    together = [record for records in dealt.shares.values() for record in records]
    held = prompts(tuple(together), "eval")
    assert held
    assert held.isdisjoint(prompts(tuple(together), "train"))
    assert held <= set(dealt.answers)
    assert {len(each) for each in dealt.answers.values()} == {8}


def test_what_is_marked_as_held_out_somewhere_is_learnt_nowhere(tmp_path: Path) -> None:
    for name, split in (("press", '"eval"'), ("pump", '"train"'), ("belt", "null")):
        lines = [f'{{"prompt": "{name} {at}", "completion": "a"}}\n' for at in range(40)]
        lines += [f'{{"prompt": "all have it", "completion": "{name}", "split": {split}}}\n' for _ in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    case = Case(partition="files", samples=ALL, devices=3, seed=0)
    shares = dealing.deal(str(tmp_path), case, columns=(), sequence_length=16, held_out=60).shares
    learnt = {name: prompts(tuple(records), "train") for name, records in shares.items()}
    assert all("all have it" not in each for each in learnt.values())
    assert all("all have it" in prompts(tuple(records), "eval") for records in shares.values())


def test_samples_are_a_part_of_all_and_the_same_again(folder: Path) -> None:
    few = dealt(folder, Case(partition="files", samples=8, devices=2, seed=0), held_out=2)
    assert [len(records) for records in few.values()] == [10, 10]
    assert set(few["pump"]) <= set(dealt(folder)["pump"])
    assert few == dealt(folder, Case(partition="files", samples=8, devices=2, seed=0), held_out=2)
    assert few != dealt(folder, Case(partition="files", samples=8, devices=2, seed=1), held_out=2)


def test_texts_are_cut_to_about_a_sequence(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("".join(f"line {at} of a log\n" for at in range(400)))
    (tmp_path / "b.log").write_text("".join(f"row {at} of another\n" for at in range(400)))
    shares = dealing.deal(str(tmp_path), CASE, columns=(), sequence_length=16, held_out=24).shares
    texts = [each for each in shares["a"] if isinstance(each, Text)]
    assert max(len(each.text) for each in texts) <= 48
    assert "".join(sorted(each.text for each in texts)) != ""
    assert {each.split for each in texts} == {"train", "eval"}


def test_all_together_hold_what_each_holds(folder: Path, tmp_path: Path) -> None:
    shares = dealt(folder)
    apart, together = dealing.write(tmp_path / "dealt", shares)
    assert {file.stem: read(file) for file in apart.iterdir()} == {
        name: list(each) for name, each in shares.items()
    }
    (pooled,) = together.iterdir()
    assert read(pooled) == [record for records in shares.values() for record in records]


def test_prompts_are_asked_in_turns(folder: Path) -> None:
    asked = dealing.asked(dealt(folder), 3)
    assert [pair.prompt.split()[0] for pair in asked] == ["press", "pump", "press"]
    assert len({pair.prompt for pair in asked}) == 3
    assert {pair.split for pair in asked} == {"eval"}
    assert dealing.asked({"a": [Text("no question", "eval")]}, 3) == []


def test_too_little_to_hold_some_out_is_said(tmp_path: Path) -> None:
    for name in ("press", "pump"):
        (tmp_path / f"{name}.csv").write_text("mr,ref\nwhy,because\n")
    with pytest.raises(UsageError, match=r"press has 1 records .* too few to learn"):
        dealt(tmp_path)
