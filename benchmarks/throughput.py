"""Tokens per second of a fleet on this machine against single-process PEFT, in turns; how busy each tier is.

    python benchmarks/throughput.py --pairs 3
    python benchmarks/throughput.py --pairs 1 --devices 4 --cut 4,15

Both train the same model on the same sequences with the same number of threads in all: the fleet's tiers have
one each and share the machine's cores, the single process has `--threads`. "One each" is as many
single-threaded processes at once, which know nothing of each other, added up. Busy is the share of the training
rounds in which an agent works for its sessions, as its heartbeats tell.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from iotsplit.runtime import serve
from iotsplit.tensors.models import resolve

SINGLE = """
import json, resource, sys, time
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
model, threads, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
torch.manual_seed(0)
base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
tuned = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-3)
def step():
    ids = torch.randint(0, 49000, (4, 128))
    torch.autograd.backward(tuned(input_ids=ids, labels=ids).loss)
    optimizer.step()
    optimizer.zero_grad()
step()
began = time.perf_counter()
for _ in range(steps):
    step()
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"tokens_per_second": steps * 512 / seconds, "peak_rss_bytes": peak}))
"""

Figures = dict[str, float]


def single(model: Path, options: argparse.Namespace) -> Figures:
    """Train the whole model in one process."""
    (row,) = at_once(model, options, processes=1, threads=options.threads)
    return row


def at_once(model: Path, options: argparse.Namespace, *, processes: int, threads: int) -> list[Figures]:
    """Train the whole model in some processes that know nothing of each other."""
    words = [sys.executable, "-c", SINGLE, str(model), str(threads), str(options.steps // processes)]
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    told = [process.communicate()[0] for process in started]
    return [json.loads(text) for text in told]


def apart(model: Path, options: argparse.Namespace) -> float:
    """Tokens per second of one single-threaded process for each thread: the most that these cores give."""
    rows = at_once(model, options, processes=options.threads, threads=1)
    return sum(row["tokens_per_second"] for row in rows)


def fleet(model: Path, options: argparse.Namespace, data: Path) -> Figures:
    """Train with one edge and the cloud; gives tokens per second and each tier's share of busy time."""
    with tempfile.TemporaryDirectory() as output:
        words = [sys.executable, "-m", "iotsplit", "run", "--model", str(model), "--data", str(data), "--json"]
        words += ["--devices", str(options.devices), "--edges", "1", "--rounds", "1", "--partition", "iid"]
        words += ["--local-steps", str(options.steps // options.devices), "--output", output]
        words += ["--cut", options.cut, "--codec", options.codec]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        busy = busy_shares(Path(output))
    report = json.loads(done.stdout)
    device = max(row["peak_rss_bytes"] for row in report["agents"] if row["role"] == "device")
    return {"tokens_per_second": report["tokens_per_second"], "peak_rss_bytes": device, **busy}


def busy_shares(output: Path) -> Figures:
    """Of the time between the first and the last step of the cloud, by tier; the mean of its agents."""
    steps: list[float] = []
    beats: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in map(json.loads, (output / "metrics.jsonl").read_text().splitlines()):
        if "session" not in row:
            beats[row["role"], row["agent"]].append(row)
        elif row["role"] == "cloud":
            steps.append(row["time"])
    shares: dict[str, list[float]] = defaultdict(list)
    for (role, _), rows in beats.items():
        inside = [row for row in rows if steps[0] <= row["time"] <= steps[-1]]
        if len(inside) > 1:
            first, last = inside[0], inside[-1]
            worked = last.get("busy_s", 0.0) - first.get("busy_s", 0.0)
            shares[role].append(worked / (last["time"] - first["time"]))
    return {f"busy {role}": statistics.mean(values) for role, values in shares.items()}


def main() -> None:
    """Measure in turns and print medians, spread and the ratio of each pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=32, help="of all devices together")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--cut", default="4,19", help="the default halves the work between cloud and the rest")
    parser.add_argument("--codec", default="int8")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the single process")
    options = parser.parse_args()
    model = resolve(options.model, serve.cache_directory())
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "text.txt"
        data.write_text(
            "".join(f"line {n}: pump {n % 7} reports pressure {n * 37 % 101}\n" for n in range(4000))
        )
        runs = [
            (fleet(model, options, data), single(model, options), apart(model, options))
            for _ in range(options.pairs)
        ]
    pairs = [(ours, theirs) for ours, theirs, _ in runs]
    show("tokens/s, fleet", [ours["tokens_per_second"] for ours, _ in pairs])
    show("tokens/s, single process", [theirs["tokens_per_second"] for _, theirs in pairs])
    show("tokens/s, one each", [most for *_, most in runs])
    show("ratio of tokens/s", [a["tokens_per_second"] / b["tokens_per_second"] for a, b in pairs])
    show("peak MB, device", [ours["peak_rss_bytes"] / 1e6 for ours, _ in pairs])
    show("peak MB, single process", [theirs["peak_rss_bytes"] / 1e6 for _, theirs in pairs])
    for name in ("busy cloud", "busy edge", "busy device"):
        show(name, [ours.get(name, 0.0) for ours, _ in pairs])


def show(name: str, values: list[float]) -> None:
    """One line: median, and least to most."""
    print(f"{name:26}{statistics.median(values):10.2f}   {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()
