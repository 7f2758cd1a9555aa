"""Every agent of every golden tape still says what it said, and an agent that does not is found out."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import safetensors.torch
import torch

from iotsplit.cli import main
from iotsplit.errors import MismatchError, UsageError
from iotsplit.plan import Tier
from iotsplit.tape import files
from iotsplit.tape.files import TapeWriter
from iotsplit.tape.format import Record
from iotsplit.tape.letters import Listener
from iotsplit.tensors.trained import Trained
from iotsplit.testing import MemoryFleet, Outcome, expect_same, memory_fleet, replay_tape
from iotsplit.topics import Topics
from iotsplit_edge.role import EdgeRole
from tests.support import letters_model
from tests.tapes import make

pytestmark = pytest.mark.slow

__all__ = ["memory_fleet"]  # the fixture

HERE = Path(__file__).parent
TOLERANCE = 1e-4  # another processor sums in another order
AGENTS = [("device", "a"), ("device", "b"), ("edge", "edge-1"), ("edge", "edge-2"), ("cloud", "cloud")]
ABSENT = {"rollback": {("device", "b"), ("edge", "edge-2")}, "remembered": {("device", "b")}}
# Of what is remembered a sign tips on another processor, and all that follows is a change of something else.
CASES = [
    (story, tier, agent)
    for story in make.STORIES
    for tier, agent in AGENTS
    if (tier, agent) not in ABSENT.get(story, set())
    if story != "remembered"
]


def held(tape: Path, tier: str, agent: str, model: Path, **more: Any) -> Outcome:
    plain: dict[str, Any] = {"data": str(HERE / f"{agent}.jsonl") if tier == "device" else "", "eval_limit": 1}
    return replay_tape(tape, tier, agent=agent, model=model, **(plain | more))


@pytest.mark.parametrize(("story", "tier", "agent"), CASES)
def test_an_agent_says_what_is_on_its_golden_tape(story: str, tier: str, agent: str, model: Path) -> None:
    expect_same(held(HERE / f"{story}.tape", tier, agent, model, tolerance=TOLERANCE))


def test_an_edge_that_took_over_has_asked_for_what_is_remembered() -> None:
    said = b"".join(bytes(record.payload) for record in files.records(HERE / "remembered.tape"))
    assert b"device_rows" in said
    assert b"cloud_rows" in said


def test_golden_tapes_are_small() -> None:
    assert sum(tape.stat().st_size for tape in HERE.glob("*.tape")) <= 1 << 20


@pytest.mark.parametrize("story", ["fail-over", "restart", "remembered"])
def test_on_the_same_machine_it_is_the_same_to_the_byte(story: str, model: Path, tmp_path: Path) -> None:
    tape = make.record(story, model, tmp_path)
    for tier, agent in (AGENTS[0], AGENTS[2], AGENTS[3], AGENTS[4]):
        outcome = held(tape, tier, agent, model)
        expect_same(outcome)
        assert outcome.largest == 0.0
        assert outcome.compared > 10


@pytest.mark.parametrize(
    ("story", "tier", "agent", "incarnations"),
    [("restart", "device", "a", 2), ("fail-over", "edge", "edge-2", 1), ("quiet", "device", "a", 1)],
)
def test_an_agent_that_starts_again_plays_both_its_lives(
    story: str, tier: str, agent: str, incarnations: int, model: Path
) -> None:
    outcome = held(HERE / f"{story}.tape", tier, agent, model, tolerance=TOLERANCE)
    assert outcome.incarnations == incarnations


# --- what is not the same


def broken_step(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Trained.step

    def step(self: Trained) -> None:
        whole(self)
        with torch.no_grad():
            for parameter in self.parameters.values():
                parameter.add_(1e-2)

    monkeypatch.setattr(Trained, "step", step)


@pytest.mark.parametrize(
    ("tier", "agent", "what"), [("device", "a", "activation"), ("edge", "edge-1", "activation")]
)
def test_a_build_that_computes_something_else_is_found_out(
    tier: str, agent: str, what: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_step(monkeypatch)
    outcome = held(HERE / "quiet.tape", tier, agent, model, tolerance=TOLERANCE)
    difference = outcome.difference
    assert difference is not None
    assert (difference.what, difference.step, difference.field) == (what, 1, "hidden")
    assert difference.max_abs is not None
    assert 1e-6 < difference.max_abs < 1
    assert len(difference.where) == 3
    assert difference.session.endswith("-t1-a")
    with pytest.raises(AssertionError, match=r"step 1.*hidden: expected .* largest difference"):
        expect_same(outcome)


def test_a_cloud_that_averages_in_another_way_is_found_out(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iotsplit_cloud.versions.next_version", lambda tensors, *_, **__: tensors[0])
    difference = held(HERE / "quiet.tape", "cloud", "cloud", model, tolerance=TOLERANCE).difference
    assert difference is not None
    assert difference.what.startswith("adapter version 1 section")


def test_an_edge_that_keeps_something_else_is_found_out(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Trained.checkpoint

    def other(self: Trained) -> bytes:
        kept = safetensors.torch.load(whole(self))
        return safetensors.torch.save({name: value * 1.01 for name, value in kept.items()})

    monkeypatch.setattr(Trained, "checkpoint", other)
    difference = held(HERE / "quiet.tape", "edge", "edge-1", model, tolerance=TOLERANCE).difference
    assert difference is not None
    assert (difference.what, difference.step, difference.session) == ("checkpoint", 2, "run1-t1-a")


@pytest.mark.parametrize("story", make.STORIES)
def test_everything_on_a_golden_tape_is_understood(story: str) -> None:
    tape = HERE / f"{story}.tape"
    listener = Listener(Topics(files.header(tape).fleet))
    letters = [letter for record in files.records(tape) if (letter := listener.take(record)) is not None]
    assert listener.unreadable == 0
    assert all(letter.sender for letter in letters if letter.first not in ("command", "probe") and letter.body)


def test_an_agent_that_says_nothing_more_is_found_out(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EdgeRole, "tick", lambda *_: [])
    monkeypatch.setattr(EdgeRole, "handle", lambda *_: [])
    difference = held(HERE / "quiet.tape", "edge", "edge-1", model, tolerance=TOLERANCE).difference
    assert difference is not None
    assert (difference.expected, difference.got) == ("it", "nothing")
    assert difference.record > 0


def test_what_an_agent_says_beyond_its_tape_is_found_out(model: Path, tmp_path: Path) -> None:
    tape = tmp_path / "without.tape"
    original = list(files.records(HERE / "quiet.tape"))
    lost = [each for each in original if "/lan/edge-1/a/" in each.topic][5]
    with TapeWriter(tape, files.header(HERE / "quiet.tape")) as writer:
        for record in original:
            if record is not lost:
                writer.add(record)
    difference = held(tape, "device", "a", model, tolerance=TOLERANCE).difference
    assert difference is not None
    assert (difference.expected, difference.got, difference.record) == ("nothing", "it", 0)


def test_data_that_are_not_the_devices_are_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="the data is not what a had"):
        held(HERE / "quiet.tape", "device", "a", model, data=str(HERE / "b.jsonl"))


def test_another_model_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(99)
    other = letters_model(tmp_path / "other")
    config = (other / "config.json").read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-03')
    (other / "config.json").write_text(config)
    with pytest.raises(MismatchError, match="edge-1 has model"):
        held(HERE / "quiet.tape", "edge", "edge-1", other)


# --- what a tape lacks


def test_a_session_that_had_begun_before_the_tape_is_passed_over(model: Path, tmp_path: Path) -> None:
    tape = tmp_path / "late.tape"
    original = list(files.records(HERE / "rollback.tape"))
    begin = next(n for n, each in enumerate(original) if "/lan/a/edge-1/" in each.topic)
    retained = {each.topic: each for each in original[:begin] if "/metrics/" not in each.topic}
    with TapeWriter(tape, files.header(HERE / "rollback.tape")) as writer:
        for record in retained.values():
            if record.topic.split("/")[2] in ("state", "assign", "adapter", "round"):
                writer.add(_retained(record))
        for record in original[begin:]:
            writer.add(record)
    outcome = held(tape, "device", "a", model, tolerance=TOLERANCE)
    expect_same(outcome)
    assert outcome.skipped == ["run1-e0-a"]


def _retained(record: Record) -> Record:
    return msgspec.structs.replace(record, retain=True)


def test_the_command_tells_where_an_agent_differs(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["replay", str(HERE / "quiet.tape"), "--against=edge", "--agent=edge-1", f"--model={model}"]
    assert main([*words, f"--tolerance={TOLERANCE}"]) == 0
    assert "edge edge-1 says the same: " in capsys.readouterr().out
    broken_step(monkeypatch)
    report = tmp_path / "report.json"
    assert main([*words, f"--tolerance={TOLERANCE}", f"--report={report}"]) == 7
    told = capsys.readouterr().err
    assert "edge-1 says something else than" in told
    assert "step 1, micro-batch 0, hidden: expected" in told
    assert msgspec.json.decode(report.read_bytes())["difference"]["field"] == "hidden"


def test_the_fixture_makes_fleets(memory_fleet: Any, model: Path, tmp_path: Path) -> None:
    data = make.write_data(tmp_path)
    fleet: MemoryFleet = memory_fleet(model, {"a": data["a"]}, training=make.TRAINING, eval_limit=1)
    fleet.run(lambda each: each.happened("evaluated") == 1)
    fleet.write(tmp_path / "run.tape")
    outcome = held(tmp_path / "run.tape", Tier.DEVICE, "a", model, data=data["a"])
    expect_same(outcome)


def test_the_page_shows_a_test_that_passes(memory_fleet: Any, tmp_path: Path) -> None:
    page = (HERE.parents[1] / "docs" / "replay.md").read_text(encoding="utf-8")
    shown = page[page.index("# test_firmware.py") :].partition("```")[0]
    names: dict[str, Any] = {"__file__": str(tmp_path / "test_firmware.py")}
    exec(compile(shown, "docs/replay.md", "exec"), names)
    names["test_the_other_edge_takes_over"](memory_fleet, tmp_path)
