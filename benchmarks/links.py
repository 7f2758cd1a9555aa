"""Time of a step when each device's link is slow and far: against what compute and bytes alone would take.

    python benchmarks/links.py --links inf/0 20/0 20/50 5/50 1/50 --codec int8 --micro-batches 4

A link is Mbit per second in each direction, and milliseconds one way. Real processes and Mosquitto; each device
reaches the broker through a TCP proxy, edge and cloud directly. The bound of a link is the longest of three:
a step without any bound on the link, a device's bytes up and its bytes down, each divided by the rate.
"""

import argparse
import contextlib
import itertools
import json
import math
import shutil
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fleet import PAUSE, POLL_S, Fleet, rows
from iotsplit.runtime import serve
from iotsplit.tensors.models import resolve

DEVICES = ("device-1", "device-2")
LINES = 15
"""Lines of a record: more than the tokens of a sequence."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run.

    Args:
        step_s: the cloud's time from one step to the next, the median.
        up_bytes: of a device in a step.
        down_bytes: to a device in a step.
    """

    step_s: float
    up_bytes: float
    down_bytes: float


def run(model: Path, options: argparse.Namespace, *, rate: float, delay_s: float) -> Measured:
    """Train one round over links of so many bytes per second."""
    output = Path(tempfile.mkdtemp())
    (output / "data").mkdir()
    for device in DEVICES:
        notes = [f"line {n}: {device} reports pressure {n * 37 % 101}" for n in range(3000)]
        texts = ({"text": "; ".join(some)} for some in zip(*[iter(notes)] * LINES, strict=False))
        (output / "data" / f"{device}.jsonl").write_text("".join(f"{json.dumps(text)}\n" for text in texts))
    words = ["--devices=2", "--edges=1", "--rounds=1", "--once", "--cut", options.cut]
    words += [f"--local-steps={options.steps}", f"--codec={options.codec}"]
    words += [f"--micro-batches={options.micro_batches}", "--checkpoint-every=1000"]
    fleet = Fleet(output=output, model=model, devices=DEVICES, edges=("edge-1",), words=words, proxied=True)
    with contextlib.closing(fleet):
        for device in DEVICES:
            fleet.proxies[device].shape(delay_s=delay_s, rate=rate)
        while not fleet.keep_running():
            PAUSE.wait(POLL_S)
    measured = read(output)
    shutil.rmtree(output)
    return measured


def read(output: Path) -> Measured:
    """What a run tells of itself."""
    times: dict[int, float] = {}
    for row in rows(output / "metrics.jsonl"):
        if row["role"] == "cloud" and "session" in row:
            times[row.get("step", 0)] = row["time"]
    steps = [later - sooner for sooner, later in itertools.pairwise(times.values())]
    *_, last = rows(output / "rounds.jsonl")
    hop, count = last["bytes"]["device_edge"], sum(session["steps"] for session in last["sessions"])
    return Measured(step_s=statistics.median(steps), up_bytes=hop["up"] / count, down_bytes=hop["down"] / count)


def main() -> None:
    """Measure each link and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--links", nargs="+", default=["inf/0", "20/0", "20/50", "5/0", "5/50", "1/0", "1/50"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--cut", default="4,19")
    parser.add_argument("--codec", default="int8")
    parser.add_argument("--micro-batches", type=int, default=4)
    options = parser.parse_args()
    model = resolve(options.model, serve.cache_directory())
    compute_s = math.nan
    print(f"{'Mbit/s':>7} {'ms':>4} {'s/step':>8} {'compute':>8} {'up':>7} {'down':>7} {'bound/step':>11}")
    for mbit, delay_ms in (map(float, link.split("/")) for link in options.links):
        rate = mbit * 1e6 / 8
        found = run(model, options, rate=rate, delay_s=delay_ms / 1e3)
        compute_s = found.step_s if math.isinf(mbit) else compute_s
        up_s, down_s = found.up_bytes / rate, found.down_bytes / rate
        share = max(compute_s, up_s, down_s) / found.step_s
        link = f"{mbit:7.0f} {delay_ms:4.0f} {found.step_s:8.2f}"
        print(f"{link} {compute_s:8.2f} {up_s:7.2f} {down_s:7.2f} {share:11.2f}", flush=True)


if __name__ == "__main__":
    main()
