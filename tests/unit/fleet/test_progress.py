"""What a person sees of a run, from what the cloud writes."""

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from iotsplit.fleet import summary
from iotsplit.fleet.progress import Progress, Table, Tail, heading
from iotsplit.plan import Labels, Tier
from iotsplit.settings import TrainingSettings
from iotsplit.states import Event, Metrics

HOPS = {"device_edge": {"up": 1_500_000, "down": 500_000}, "edge_cloud": {"up": 0, "down": 0}}


def finished(number: int) -> Event:
    row = {
        "round": number,
        "devices": 3,
        "dropped": 1,
        "loss": 0.41,
        "tokens": 9,
        "wall_s": 30.4,
        "bytes": HOPS,
    }
    return Event(kind="round_finished", agent="cloud", detail=json.dumps(row))


def evaluated(when: str) -> Event:
    return Event(
        kind="evaluated",
        agent="cloud",
        detail=json.dumps({"when": when, "loss": 6.25, "exact": 15, "sequences": 24}),
    )


def shown(table: Table, *events: Event) -> list[list[str]]:
    return [line.split() for event in events for line in table.take(event)]


def table(rounds: int = 2, evaluate: str = "ends") -> Table:
    return Table(settings=TrainingSettings(rounds=rounds, evaluate=evaluate))


def test_the_first_row_is_the_model_before_training() -> None:
    assert shown(table(), evaluated("before")) == [["0", "-", "-", "6.250", "15/24", "-", "-", "-"]]


def test_a_round_without_evaluation_is_shown_at_once() -> None:
    assert shown(table(), finished(1)) == [["1", "3/4", "0.410", "-", "-", "2.0", "MB", "0.0", "MB", "30"]]


def test_a_round_with_evaluation_is_shown_when_that_is_there() -> None:
    each = table(evaluate="rounds")
    assert shown(each, finished(1)) == []
    assert shown(each, evaluated("after"))[0][:5] == ["1", "3/4", "0.410", "6.250", "15/24"]


def test_the_last_round_waits_for_its_evaluation() -> None:
    each = table(rounds=2)
    assert len(shown(each, finished(1))) == 1
    assert shown(each, finished(2)) == []
    assert len(shown(each, evaluated("after"))) == 1


def test_a_round_whose_evaluation_never_came_is_shown_in_the_end() -> None:
    each = table(evaluate="rounds")
    shown(each, finished(1))
    assert [line.split()[0] for line in each.rest()] == ["1"]
    assert each.rest() == []


def test_who_is_lost_is_told() -> None:
    for kind in ("device_lost", "edge_lost"):
        assert table().take(Event(kind=kind, agent="press", detail="silent")) == ["press is gone: silent"]


def test_a_session_that_has_moved_is_told_with_what_it_cost() -> None:
    detail = '{"from":"edge-1","to":"edge-2","epoch":5,"steps_replayed":2,"seconds":3.1}'
    told = table().take(Event(kind="session_moved", agent="press", detail=detail))
    assert told == ["press goes on at edge-2 after 3.1 s, 2 steps repeated"]


@pytest.mark.parametrize("kind", ["device_joined", "round_started", "unheard_of"])
def test_other_events_stay_quiet(kind: str) -> None:
    assert table().take(Event(kind=kind, agent="press")) == []


def test_only_whole_new_lines_are_read(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text("old\n")
    tail = Tail(file)
    with file.open("a") as out:
        out.write("one\ntw")
    assert list(tail.lines()) == [b"one\n"]
    with file.open("a") as out:
        out.write("o\n")
    assert list(tail.lines()) == [b"two\n"]
    assert list(tail.lines()) == []


def test_a_file_that_comes_later_is_read_from_its_start(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "events.jsonl")
    assert list(tail.lines()) == []
    (tmp_path / "events.jsonl").write_text('{"kind": "a", "agent": "b"}\nnonsense\n')
    assert [event.kind for event in tail.messages(Event)] == ["a"]


def _follow(tmp_path: Path, *, terminal: bool) -> str:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=120)
    settings = TrainingSettings(rounds=1)
    with Progress(tmp_path, settings, console) as progress:
        (tmp_path / "events.jsonl").write_bytes(
            b"".join(
                msgspec.json.encode(each) + b"\n"
                for each in (Event(kind="round_started", agent="cloud"), finished(1))
            )
        )
        line = Metrics(agent="press", role=Tier.DEVICE, round=1, session="s", step=3, loss=0.5, tokens=40)
        (tmp_path / "metrics.jsonl").write_bytes(msgspec.json.encode(line) + b"\n")
        progress.poll()
        assert progress.training
    return screen.getvalue()


def test_off_a_terminal_there_is_a_plain_line_per_round_and_nothing_else(tmp_path: Path) -> None:
    text = _follow(tmp_path, terminal=False)
    assert "\x1b" not in text
    assert [line.split()[0] for line in text.splitlines()] == ["round", "1"]
    assert text.startswith(heading())


def test_on_a_terminal_there_is_a_live_line(tmp_path: Path) -> None:
    assert "step 3/10 · loss 0.500" in _follow(tmp_path, terminal=True)


REPORT: dict[str, Any] = {
    "rounds": [{"bytes": {**HOPS, "adapters": {"up": 1, "down": 2}}}, {"bytes": HOPS}],
    "eval": {
        "before": {"loss": 6.25, "perplexity": 518.0, "exact": 0, "sequences": 24},
        "after": {"loss": 0.5, "perplexity": 1.65, "exact": 22, "sequences": 24},
        "devices": {
            "press": {
                "before": {"loss": 6.0, "perplexity": 1e9, "exact": 0, "sequences": 6},
                "after": {"loss": 0.4, "perplexity": 1.49, "exact": 5, "sequences": 6},
            }
        },
    },
    "agents": [
        {"id": "press", "role": "device", "peak_rss_bytes": 500_000_000, "part_parameters": 7},
        {"id": "pump", "role": "device", "peak_rss_bytes": 600_000_000, "part_parameters": 7},
        {"id": "broker", "role": "broker", "peak_rss_bytes": 13_000_000},
    ],
    "ledger": {"expected": 4, "applied": 4, "lost": 0, "duplicated": 0},
}


def test_the_summary_tells_scores_bytes_memory_and_where_the_results_are(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    screen = io.StringIO()
    summary.show(REPORT, tmp_path, Console(file=screen, width=100))
    text = " ".join(screen.getvalue().split())
    assert "press 6.000 -> 0.400 1.0e+09 -> 1.49 0/6 -> 5/6" in text
    assert "all 6.250 -> 0.500 518.00 -> 1.65 0/24 -> 22/24" in text
    assert "device - edge 3.0 1.0" in text
    assert "device 2 600 7 -" in text
    assert "0 lost, 0 duplicated" in text
    assert f"adapter: {tmp_path / 'adapter'}" in text
    assert "plot:" not in text


@pytest.mark.parametrize(
    ("round_", "version", "told"),
    [(1, 1, "least after round 1: 0.400, and 0.500 at the end"), (0, 0, "least before training"), (2, 2, "")],
)
def test_the_summary_tells_when_held_out_loss_turned(round_: int, version: int, told: str) -> None:
    best = {"adapter_version": version, "round": round_, "loss": 0.4}
    rounds = [{"adapter_version": number} for number in (1, 2)]
    report = REPORT | {"rounds": rounds, "eval": REPORT["eval"] | {"best": best}}
    line = summary.when_it_turned(report)
    assert told in line
    assert bool(told) == bool(line)


def test_a_report_of_a_run_that_came_to_nothing_can_be_shown(tmp_path: Path) -> None:
    summary.show({}, tmp_path, Console(file=io.StringIO()))


def test_what_leaves_a_device_is_told_for_each_place_of_the_labels() -> None:
    assert set(summary.LEAVES) == set(Labels)
    assert "token ids of its training text reach the cloud" in summary.LEAVES[Labels.CLOUD]
    assert "not its text" in summary.LEAVES[Labels.DEVICE]
