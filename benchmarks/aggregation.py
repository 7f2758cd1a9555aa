"""What each rule of aggregation learns from devices whose data differ: fleets of the real roles, in memory.

    python -m benchmarks.aggregation --data ../logs --partition files --rules fedavg flexlora rolora --seeds 0 1

All fleets of a seed see the same batches in the same order; only the rule differs. Prints held-out loss of all
devices before and after, of the device that is worst off, and the bytes of the updates.
"""

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.codec_loss import tell
from iotsplit.datasets import partition
from iotsplit.runtime import serve
from iotsplit.settings import Aggregation, FleetSettings, TrainingSettings
from iotsplit.tensors.models import resolve
from tests.flows.real import RealFleet, lay_out


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", default="plant")
    parser.add_argument("--partition", default="files", help="files, iid or dirichlet:A")
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument(
        "--rules", nargs="+", default=["fedavg", "flexlora", "rolora"], choices=list(Aggregation)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--local-steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--sequence-length", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="a CSV file; rows come in one by one")
    return parser.parse_args()


def trained(options: argparse.Namespace, model: Path, rule: str, seed: int) -> dict[str, Any]:
    """A fleet's figures."""
    settings = TrainingSettings(
        aggregation=Aggregation(rule),
        seed=seed,
        rounds=options.rounds,
        local_steps=options.local_steps,
        batch_size=options.batch_size,
        sequence_length=options.sequence_length,
        learning_rate=options.learning_rate,
    )
    members = FleetSettings(devices=options.devices, edges=1, once=True)
    with tempfile.TemporaryDirectory() as place:
        shares = partition.load(options.data, devices=options.devices, partition=options.partition, seed=seed)
        ran = lay_out(Path(place), shares, settings, members)
        with contextlib.closing(RealFleet(model, ran, ran / "out")) as fleet:
            fleet.run()
    report = fleet.report
    worst = max(each["after"]["loss"] for each in report.eval["devices"].values())
    return {
        "partition": options.partition,
        "seed": seed,
        "rule": rule,
        "before": report.eval["before"]["loss"],
        "after": report.eval["after"]["loss"],
        "worst_device": worst,
        "update_mb": sum(row["bytes"]["adapters"]["up"] for row in report.rounds) / 1e6,
    }


def main() -> None:
    """Run everything and print a table."""
    options = parsed()
    torch.set_num_threads(options.threads)
    model = resolve(options.model, serve.cache_directory())
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        for rule in options.rules:
            rows.append(trained(options, model, rule, seed))
            tell(rows, options.output)
    summary(rows)


def summary(rows: Sequence[dict[str, Any]]) -> None:
    """Differences to plain averaging of the same seed."""
    plain = {row["seed"]: row["after"] for row in rows if row["rule"] == Aggregation.FEDAVG}
    for rule in dict.fromkeys(row["rule"] for row in rows):
        gaps = [
            row["after"] - plain[row["seed"]] for row in rows if row["rule"] == rule and row["seed"] in plain
        ]
        if gaps:
            spread = f"{min(gaps):+.4f} to {max(gaps):+.4f}"
            print(f"{rule:10} loss - fedavg: mean {statistics.mean(gaps):+.4f}, {spread}")


if __name__ == "__main__":
    main()
