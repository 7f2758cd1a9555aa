"""Makes the golden tapes: ``python -m tests.tapes.make`` from the repository's root writes them anew."""

import dataclasses
import json
import random
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from iotsplit.settings import FleetSettings, Stragglers, TrainingSettings, UpdateCodec
from iotsplit.tape.stage import MemoryFleet
from tests.support import letters_model

HERE = Path(__file__).parent
WORDS = ("press hot", "ram stuck", "belt slow", "oil low", "pump loud", "valve shut")
EVAL_LIMIT = 1
TRAINING = TrainingSettings(
    rounds=1,
    local_steps=6,
    batch_size=2,
    micro_batches=2,
    sequence_length=12,
    cut=(1, 3),
    codec="fp32",
    update_codec=UpdateCodec.FP32,
    rank=2,
    alpha=4.0,
    learning_rate=1e-2,
    checkpoint_every=2,
    seed=3,
)


def write_data(directory: Path) -> dict[str, Path]:
    """Data of two devices."""
    found = {}
    for device in ("a", "b"):
        chance = random.Random(device)
        rows = [{"text": " ".join(chance.choices(WORDS, k=3))} for _ in range(16)]
        found[device] = directory / f"{device}.jsonl"
        found[device].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return found


def new_fleet(model: Path, data: Mapping[str, Path], disk: Path, **changes: object) -> MemoryFleet:
    """A fleet of two edges that waits for nobody to come back, and for everybody."""
    fleet = FleetSettings(devices=len(data), edges=2, once=True, stragglers=Stragglers.WAIT)
    settings: dict[str, object] = {"edges": ("edge-1", "edge-2"), "training": TRAINING, "fleet": fleet}
    return MemoryFleet(model, data, disk, eval_limit=EVAL_LIMIT, **(settings | changes))  # type: ignore[arg-type]


def has_trained(device: str, step: int) -> Callable[[MemoryFleet], bool]:
    """Whether a device has done a step."""
    return lambda fleet: any(each.agent == device and each.step == step for each in fleet.metrics)


def quiet(fleet: MemoryFleet) -> None:
    """A round in which nothing happens."""
    fleet.run()


def fail_over(fleet: MemoryFleet) -> None:
    """An edge is lost in the midst of a round, and the other takes over from its checkpoint."""
    fleet.run(has_trained("a", 3))
    fleet.lose("edge-1")
    fleet.run()


def restart(fleet: MemoryFleet) -> None:
    """A device is lost in the midst of a round, and starts again from its disk."""
    fleet.run(has_trained("a", 3))
    fleet.lose("a")
    fleet.start("a")
    fleet.run()


def rollback(fleet: MemoryFleet) -> None:
    """A person goes back to the version before the round, and the next round starts from there."""
    fleet.run(lambda each: each.happened("evaluated") == 1)
    fleet.due()
    fleet.run(lambda each: each.happened("round_finished") == 1)
    fleet.ask("rollback", version=0)
    fleet.run(lambda each: each.happened("rolled_back") == 1)
    fleet.due()
    fleet.run()


def remembered(fleet: MemoryFleet) -> None:
    """In the second round changes travel, until the edge is lost and its successor asks for what it lacks."""
    fleet.run(lambda each: any((row.agent, row.round, row.step) == ("a", 2, 2) for row in each.metrics))
    fleet.lose("edge-2")  # that serves it
    fleet.run()


STORIES: dict[str, Callable[[MemoryFleet], None]] = {
    "quiet": quiet,
    "fail-over": fail_over,
    "restart": restart,
    "rollback": rollback,
    "remembered": remembered,
}


def record(story: str, model: Path, directory: Path) -> Path:
    """Let a story happen and write its tape."""
    data = write_data(directory)
    changes: dict[str, object] = {}
    if story == "rollback":
        # One device, two short rounds that begin when somebody says so.
        data = {"a": data["a"]}
        changes["training"] = dataclasses.replace(TRAINING, rounds=2, local_steps=2)
        changes["fleet"] = FleetSettings(devices=1, edges=1, once=True, schedule="every 1h")
        changes["edges"] = ("edge-1",)
    if story == "remembered":
        data = {"a": data["a"]}
        changes["training"] = dataclasses.replace(
            TRAINING, rounds=2, local_steps=5, batch_size=4, codec_cache="1MB"
        )
        changes["fleet"] = FleetSettings(devices=1, edges=2, once=True, stragglers=Stragglers.WAIT)
    fleet = new_fleet(model, data, directory / f"disk-{story}", **changes)
    STORIES[story](fleet)
    fleet.close()
    tape = directory / f"{story}.tape"
    fleet.write(tape)
    return tape


def main() -> None:
    """Write all tapes beside this file."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        model = letters_model(Path(place) / "model")
        for story in STORIES:
            tape = record(story, model, Path(place))
            (HERE / f"{story}.tape").write_bytes(tape.read_bytes())
            print(f"{story}: {tape.stat().st_size} bytes")  # noqa: T201 - a script
        write_data(HERE)


if __name__ == "__main__":
    main()
