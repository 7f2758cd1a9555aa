"""What runs come to: figures, table, page."""

import csv
import io
from typing import Any

import msgspec
import pytest

from iotsplit.bench import plots, texts
from iotsplit.bench.cells import ALL, Case
from iotsplit.bench.figures import Figures, figures_of
from iotsplit.bench.outcomes import Outcome, Text
from iotsplit.bench.page import Section, page
from iotsplit.bench.schemes import Placement, Scheme, place
from iotsplit.bench.tables import by_setting, headlines, table_of, to_csv
from iotsplit.plan import Tier
from iotsplit.settings import TrainingSettings
from iotsplit.states import Metrics

TRAINING = TrainingSettings(rounds=2, local_steps=3)
CASE = Case(partition="files", samples=ALL, devices=2, seed=0)


def placement(scheme: Scheme) -> Placement:
    return place(scheme, TRAINING, layers=30, devices=2, edges=1)


def report(scale: int = 1) -> dict[str, Any]:
    hop = {"up": 1000 * scale, "down": 500}
    row = {
        "wall_s": 4.0,
        "bytes": {"device_edge": hop, "edge_cloud": hop, "adapters": {"up": 10, "down": 20}},
        "sessions": [{"tokens": 30}, {"tokens": 30}],
        "dropped": [],
    }
    agents = [
        {
            "id": "cloud",
            "role": "cloud",
            "peak_rss_bytes": 900,
            "part_parameters": 50,
            "trainable_parameters": 5,
        },
        {
            "id": "edge-1",
            "role": "edge",
            "peak_rss_bytes": 700,
            "part_parameters": 40,
            "trainable_parameters": 4,
        },
        {"id": "a", "role": "device", "peak_rss_bytes": 400, "part_parameters": 20, "trainable_parameters": 2},
        {"id": "b", "role": "device", "peak_rss_bytes": 500, "part_parameters": 20, "trainable_parameters": 2},
        {
            "id": "broker",
            "role": "broker",
            "peak_rss_bytes": 9,
            "part_parameters": 0,
            "trainable_parameters": 0,
        },
    ]
    score = {"loss": 1.0 * scale, "perplexity": 2.7, "exact_match": 0.5, "exact": 1}
    return {
        "rounds": [{"round": 1, **row}, {"round": 2, **row}],
        "agents": agents,
        "eval": {
            "before": score,
            "after": score,
            "devices": {device: {"before": score, "after": score} for device in "ab"},
        },
        "tokens_per_second": 15.0,
    }


def metrics() -> list[Metrics]:
    told = [
        Metrics(
            agent="cloud",
            role=Tier.CLOUD,
            session=f"s-{device}",
            step=step,
            loss=3.0 - step,
            tokens=10,
            time=step,
        )
        for step in range(3)
        for device in "ab"
    ]
    heartbeat = Metrics(agent="cloud", role=Tier.CLOUD, time=9.0)
    device = Metrics(agent="a", role=Tier.DEVICE, session="s-a", step=0, loss=99.0, tokens=10, time=0.0)
    return [*told, heartbeat, device]


def figures(scheme: Scheme = Scheme.SPLITLLM, scale: int = 1) -> Figures:
    return figures_of(
        report(scale), metrics(), placement(scheme), imports={"device": 100, "edge": 100, "cloud": 100}, table=5
    )


def test_peaks_are_taken_apart_and_add_up() -> None:
    found = figures()
    device = found.tiers["device"]
    assert (device.imports, device.weights, device.optimizer, device.activations) == (100, 60, 32, 308)
    assert device.total == 500
    assert found.tiers["edge"].optimizer == 4 * 16 * 2  # of two sessions
    assert found.peaks == {"devices": 900, "servers": 1600}


def test_what_stays_within_a_server_is_not_moved() -> None:
    assert figures(Scheme.SPLITLLM).network_bytes == 2 * (1500 + 1500 + 30)
    assert figures(Scheme.SFL).network_bytes == 2 * (1500 + 30)


@pytest.mark.parametrize(
    ("scheme", "of_the_fleet", "seconds"), [(Scheme.SFL, 2, 4.0), (Scheme.SL, 4, 8.0), (Scheme.CENTRAL, 1, 2.0)]
)
def test_a_round_is_over_when_all_devices_have_had_their_turn(
    scheme: Scheme, of_the_fleet: int, seconds: float
) -> None:
    told = report()
    told["rounds"] = told["rounds"][:1] * of_the_fleet
    found = figures_of(told, metrics(), placement(scheme), imports={}, table=5)
    assert found.round_s == seconds


def test_the_curve_is_of_who_computes_the_loss() -> None:
    curve = figures().curve
    assert curve[-1].tokens == 60
    assert curve[-1].bytes == figures().network_bytes
    assert curve[0].loss == 3.0
    assert curve[-1].loss == 1.0
    assert figures(Scheme.FL).curve[0].loss == 99.0  # there it is the device


def outcomes() -> list[Outcome]:
    done = [
        Outcome(
            scheme=scheme,
            case=msgspec.structs.replace(CASE, seed=seed),
            state="done",
            figures=figures(scheme, scale),
            needed={"device": 1000, "edge": 500, "cloud": 800},
            texts=[Text(prompt="<why>", wanted="because", written=f"{scheme}!")],
        )
        for seed, scale in ((0, 1), (1, 3))
        for scheme in (Scheme.SPLITLLM, Scheme.SFL)
    ]
    reason = 'needs about 9 GB, 1 is free & "so on"'
    return [*done, Outcome(scheme=Scheme.FL, case=CASE, state="left out", reason=reason)]


def test_seeds_come_together_and_what_was_not_done_is_named() -> None:
    ((setting, schemes),) = by_setting(outcomes()).items()
    assert str(setting) == "files, all samples a device, 2 devices"
    rows = {row[0]: row for row in table_of(schemes)}
    assert rows["FL"][1] == "left out"
    assert rows["SplitLLM"][6] == "2.000 (1.000 to 3.000)"
    assert len({len(row) for row in rows.values()}) == 1
    assert headlines(schemes)[0] == "peak of device: 0 MB, 0 % under SFL (0)"


def test_enough_texts_of_all_seeds_are_scored() -> None:
    assert "BLEU" not in table_of(by_setting(outcomes())[CASE.setting])[0]
    scored = outcomes()
    for score, each in zip((10.0, 20.0, 30.0, 40.0), scored, strict=False):
        each.bleu, each.texts = score, each.texts * 8
    heads, *rows = table_of(by_setting(scored)[CASE.setting])
    assert heads[-1] == "BLEU"
    assert [row[-1] for row in rows] == ["20.0 (10.0 to 30.0)", "30.0 (20.0 to 40.0)", ""]


def test_every_cell_is_a_line_of_the_file() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(outcomes()))))
    assert [line["state"] for line in lines] == ["done"] * 4 + ["left out"]
    assert lines[0]["device_peak_bytes"] == "500"
    assert lines[0]["device_expected_bytes"] == "1000"
    assert lines[1]["network_bytes"] == "3060"


def test_the_page_holds_everything_and_nothing_from_elsewhere() -> None:
    ((setting, schemes),) = by_setting(outcomes()).items()
    pictures = {"loss": plots.losses(schemes), "memory": plots.memory(schemes)}
    assert all(image.startswith(b"\x89PNG") for image in pictures.values())
    text = page(
        "a comparison",
        {"model": "tiny & small"},
        [Section(title=str(setting), schemes=schemes, pictures=pictures)],
    )
    assert text.count("data:image/png;base64,") == 2
    assert "tiny &amp; small" in text
    assert "&lt;why&gt;" in text
    assert "needs about 9 GB, 1 is free &amp; &quot;so on&quot;" in text
    assert "http" not in text


def test_the_page_shows_texts_of_one_seed() -> None:
    told = outcomes()
    for each in told:
        each.texts = [Text(prompt=f"asked by seed {each.case.seed}", wanted="w", written=f"{each.scheme}!")]
    told[0] = msgspec.structs.replace(told[0], state="failed")  # SplitLLM with seed 0
    ((setting, schemes),) = by_setting(told).items()
    text = page("a comparison", {}, [Section(title=str(setting), schemes=schemes, pictures={})])
    assert "asked by seed 1" in text
    assert "asked by seed 0" not in text
    assert "splitllm!" in text
    assert "sfl!" in text


def test_results_read_back_as_they_were_written() -> None:
    for outcome in outcomes():
        assert msgspec.json.decode(msgspec.json.encode(outcome), type=Outcome) == outcome


def test_texts_are_scored_against_all_that_a_prompt_may_be_answered_with() -> None:
    pytest.importorskip("sacrebleu")
    answers = {"p": ["the pump is hot and has to be stopped", "stop the pump, it is hot"]}
    right = [Text(prompt="p", wanted=answers["p"][0], written=answers["p"][1])]
    wrong = [Text(prompt="p", wanted=answers["p"][0], written="a pressure of nine bar was measured there")]
    assert texts.bleu(right, answers) == pytest.approx(100.0)
    assert (texts.bleu(wrong, answers) or 0.0) < 10
