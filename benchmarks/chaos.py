"""Kill and freeze a real fleet, cut, slow and stall its links, and hold its adapter to that of a quiet run.

    scripts/chaos --seed 1 --rounds 6

Broker, cloud, edges and devices are processes of their own; whoever dies is started again after a moment, as
systemd would do. Prints a line per fault, a table of recoveries, and exits with 1 if the adapters differ.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fleet import PAUSE, POLL_S, Fleet, rows
from iotsplit.datasets import partition
from iotsplit.datasets.records import write_jsonl
from iotsplit.runtime import clock, serve
from iotsplit.tensors.models import resolve

WEIGHTS = "adapter/adapter_model.safetensors"
LIMIT_S = 3600.0
FAULTS = (
    "kill edge",
    "slow",
    "kill device",
    "stall",
    "kill cloud",
    "freeze",
    "kill edge",
    "cut",
    "kill broker",
    "kill two",
)
BRIEF_S, LONG_S = (2.0, 10.0), (25.0, 45.0)
"""How long faults last; a stall of the longer kind is noticed by keepalive before the link is back."""
LONG_STALLS = 0.34
SLOW_DELAY_S, SLOW_RATE = (0.05, 0.3), (1e5, 1e6)
"""One way, and bytes per second."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What was done, to whom, and when."""

    kind: str
    agents: tuple[str, ...]
    at: float
    seconds: float = 0.0


class Chaos:
    """Does faults to a fleet by a seed, one after the other, each when all that died before is back."""

    def __init__(self, fleet: Fleet, seed: int, pause_s: tuple[float, float]) -> None:
        self._fleet, self._chance, self._pause_s = fleet, random.Random(seed), pause_s
        self._next = clock.now() + self._chance.uniform(*pause_s)
        self._undo: list[tuple[float, Callable[[], None]]] = []
        self.faults: list[Fault] = []

    def poll(self) -> None:
        """Do what is due."""
        now = clock.now()
        for entry in [entry for entry in self._undo if entry[0] <= now]:
            self._undo.remove(entry)
            entry[1]()
        if now >= self._next and not self._undo and not self._fleet.ended:
            self._next = now + self._chance.uniform(*self._pause_s)
            self._do(FAULTS[len(self.faults) % len(FAULTS)])

    def _whom(self, kind: str) -> tuple[str, ...]:
        edge, device = self._chance.choice(self._fleet.edges), self._chance.choice(self._fleet.devices)
        of_kind = {"kill edge": edge, "kill device": device, "kill cloud": "cloud", "kill broker": "broker"}
        if kind in of_kind:
            return (of_kind[kind],)
        return tuple(self._chance.sample([edge, device, "cloud"], 2 if kind == "kill two" else 1))

    def _seconds(self, kind: str) -> float:
        long = kind == "stall" and self._chance.random() < LONG_STALLS
        return self._chance.uniform(*(LONG_S if long else BRIEF_S))

    def _do(self, kind: str) -> None:
        who, seconds = self._whom(kind), self._seconds(kind)
        if any(self._fleet.running[name].poll() is not None for name in who):
            return
        self.faults.append(Fault(kind=kind, agents=who, at=clock.wall(), seconds=seconds))
        lasting = "" if kind.startswith("kill") else f" for {seconds:.0f} s"
        print(f"  {kind:12} {', '.join(who)}{lasting}", flush=True)
        undo = self._begin(kind, who)
        if undo is not None:
            self._undo.append((clock.now() + seconds, undo))

    def _begin(self, kind: str, who: tuple[str, ...]) -> Callable[[], None] | None:
        """Do it; gives what ends it."""
        if kind.startswith("kill"):
            for name in who:
                _signal(self._fleet.pid(name), signal.SIGKILL)
            return None
        if kind == "freeze":
            pid = self._fleet.pid(who[0])
            _signal(pid, signal.SIGSTOP)
            return lambda: _signal(pid, signal.SIGCONT)
        proxy = self._fleet.proxies[who[0]]
        if kind == "slow":
            proxy.shape(delay_s=self._chance.uniform(*SLOW_DELAY_S), rate=self._chance.uniform(*SLOW_RATE))
            return proxy.shape
        {"cut": proxy.cut, "stall": proxy.stall}[kind]()
        return proxy.mend


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def run(fleet: Fleet, chaos: Chaos | None) -> None:
    """Run to the end of the rounds."""
    deadline = clock.now() + LIMIT_S
    try:
        while not fleet.keep_running():
            if clock.now() > deadline:
                raise SystemExit(f"not done after {LIMIT_S:.0f} s; see {fleet.output / 'logs'}")
            if chaos is not None:
                chaos.poll()
            PAUSE.wait(POLL_S)
    finally:
        fleet.close()


def steps_at(output: Path) -> list[float]:
    """Times at which the cloud has finished a step for the first time."""
    seen: dict[tuple[str, int], float] = {}
    for row in rows(output / "metrics.jsonl"):
        if row["role"] == "cloud" and row.get("step") is not None:
            seen.setdefault((row["session"], row["step"]), row["time"])
    return sorted(seen.values())


def table(output: Path, faults: Sequence[Fault]) -> None:
    """Seconds from each fault to the next new step, by kind of fault; and the moves of sessions."""
    steps = steps_at(output)
    gaps: dict[str, list[float]] = collections.defaultdict(list)
    for fault in faults:
        later = [at for at in steps if at > fault.at]
        if later:
            gaps[fault.kind].append(later[0] - fault.at)
    print("fault         times   next new step after, s (median, max)")
    for kind, seconds in sorted(gaps.items()):
        print(f"{kind:12}{len(seconds):7}   {statistics.median(seconds):6.1f} {max(seconds):6.1f}")
    events = list(rows(output / "events.jsonl"))
    moves = [json.loads(event["detail"]) for event in events if event["kind"] == "session_moved"]
    if moves:
        took, replayed = [move["seconds"] for move in moves], [move["steps_replayed"] for move in moves]
        print(
            f"sessions moved {len(moves)}: seconds from the decision to the next new step "
            f"median {statistics.median(took):.2f}, max {max(took):.2f}; steps replayed "
            f"median {statistics.median(replayed):.0f}, max {max(replayed)}"
        )
    kinds = collections.Counter(event["kind"] for event in events)
    told = ("edge_lost", "device_lost", "device_restarted", "cloud_resumed", "session_moved", "round_again")
    print("events: " + ", ".join(f"{kinds[kind]} {kind}" for kind in told))


def digest(output: Path) -> str:
    """SHA-256 of an adapter."""
    return hashlib.sha256((output / WEIGHTS).read_bytes()).hexdigest()


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", default="plant")
    parser.add_argument("--devices", type=int, default=3)
    parser.add_argument("--edges", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--local-steps", type=int, default=12)
    parser.add_argument("--checkpoint-every", type=int, default=4)
    parser.add_argument("--pause", type=float, nargs=2, default=(8.0, 20.0), help="seconds between faults")
    parser.add_argument("--output", type=Path, help="kept if named")
    parser.add_argument("more", nargs="*", help="more options of the cloud, behind --")
    return parser.parse_args()


def ran(root: Path, options: argparse.Namespace, *, disturbed: bool) -> tuple[Path, list[Fault]]:
    """One run; gives its output directory and what was done to it."""
    name = "chaos" if disturbed else "quiet"
    shares = partition.load(options.data, devices=options.devices)
    (root / name / "data").mkdir(parents=True)
    for device, records in shares.items():
        write_jsonl(root / name / "data" / f"{device}.jsonl", records)
    words = [f"--rounds={options.rounds}", f"--local-steps={options.local_steps}", "--once"]
    words += [f"--checkpoint-every={options.checkpoint_every}", f"--devices={len(shares)}"]
    words += [f"--edges={options.edges}", "--stragglers=wait", *options.more]
    print(f"{name} run: {len(shares)} devices, {options.edges} edges, {options.rounds} rounds", flush=True)
    started = clock.now()
    fleet = Fleet(
        output=root / name,
        model=resolve(options.model, serve.cache_directory()).absolute(),
        devices=list(shares),
        edges=[f"edge-{number}" for number in range(1, options.edges + 1)],
        words=words,
        proxied=disturbed,
    )
    chaos = Chaos(fleet, options.seed, tuple(options.pause)) if disturbed else None
    run(fleet, chaos)
    print(f"  done after {clock.now() - started:.0f} s; adapter {digest(root / name)[:16]}", flush=True)
    return root / name, chaos.faults if chaos else []


def main() -> int:
    """Run in quiet and in chaos, and compare."""
    options = parsed()
    with contextlib.ExitStack() as stack:
        root = options.output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        quiet, _ = ran(root, options, disturbed=False)
        chaos, faults = ran(root, options, disturbed=True)
        table(chaos, faults)
        ledger = json.loads((chaos / "report.json").read_text())["ledger"]
        print("ledger: " + ", ".join(f"{value} {key}" for key, value in ledger.items()))
        same = digest(quiet) == digest(chaos)
    print("the adapters are the same to the bit" if same else "THE ADAPTERS DIFFER")
    return 0 if same and ledger["lost"] == ledger["duplicated"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
