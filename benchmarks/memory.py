"""Where the memory of each tier goes, beside one PEFT process that trains the whole model alike.

    python benchmarks/memory.py
    python benchmarks/memory.py --base-dtype bf16 --gradient-checkpointing

Starts a broker and, each as a process of its own, cloud, edge and devices, which train one round of batches of
4 x 128 tokens; once with one device and once with `--devices`, to see what a further session costs. Linux only.
Figures are MB of 10^6 bytes. Peak is VmHWM; anonymous memory is the process's own, the rest are pages of files.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from benchmarks.probe import MB, Facts
from iotsplit.runtime import clock, processes, serve
from iotsplit.tensors.models import resolve

SETTINGS = ("--rounds=1", "--batch-size=4", "--sequence-length=128", "--evaluate=ends", "--checkpoint-every=2")
WAIT_S = 900.0
PACKAGES = 8


def fleet(options: argparse.Namespace, model: Path, devices: int) -> dict[str, Facts]:
    """Train one round; gives what the probes of cloud, edge and first device have found."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
        listener.close()
        root = Path(folder)
        names = [f"d{number}" for number in range(devices)]
        write_data(root, names)
        common = [f"--broker=mqtt://127.0.0.1:{port}", f"--model={model}"]
        common += ["--gradient-checkpointing"] if options.gradient_checkpointing else []
        training = [
            *SETTINGS,
            f"--cut={options.cut}",
            f"--local-steps={options.steps}",
            f"--codec={options.codec}",
        ]
        training += [f"--base-dtype={options.base_dtype}", f"--devices={devices}", "--once", f"--output={root}"]
        running = [
            start(root, "broker", ["broker", f"--port={port}", f"--directory={root / 'broker'}"], probed=False)
        ]
        await_port(port)
        cloud = start(root, "cloud", ["cloud", *common, *training])
        running.append(start(root, "edge", ["edge", "--id=edge", *common]))
        for name in names:
            own = [f"--id={name}", f"--data={root / name}.txt", f"--state-dir={root / 'state' / name}"]
            running.append(start(root, name, ["device", *own, *common]))
        try:
            code = cloud.wait(WAIT_S)
        finally:
            for process in (cloud, *reversed(running)):
                processes.stop(process)
        if code:
            raise SystemExit((root / "cloud.log").read_text()[-2000:])
        return {name: Facts.read(root / f"{name}.json") for name in ("cloud", "edge", names[0])}


def start(root: Path, name: str, words: list[str], *, probed: bool = True) -> "subprocess.Popen[bytes]":
    """Start an agent, in a probe or as it is."""
    how = ["benchmarks.probe", str(root / f"{name}.json")] if probed else ["iotsplit"]
    surroundings = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path[1:]])}
    return processes.start(
        [sys.executable, "-m", *how, *words], log=root / f"{name}.log", environment=surroundings
    )


def write_data(root: Path, names: list[str]) -> None:
    """Deal Python's own reference to the devices."""
    texts = list(topics.values())
    for number, name in enumerate(names):
        (root / f"{name}.txt").write_text("\n\n".join(texts[number :: len(names)][:20]), encoding="utf-8")


def await_port(port: int) -> None:
    deadline = clock.now() + 20
    while clock.now() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            threading.Event().wait(0.1)
        else:
            return
    raise SystemExit("the broker does not start")


def single(model: Path, steps: int) -> Facts:
    """The whole model in one PEFT process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "single.json"
        words = [sys.executable, "-m", "benchmarks.probe", str(out), "single", str(model), str(steps)]
        subprocess.run(words, check=True, cwd=Path(__file__).parents[1])
        return Facts.read(out)


def show(title: str, columns: dict[str, Facts]) -> None:
    """A table of contributors."""
    print(f"\n{title:34}" + "".join(f"{name:>12}" for name in columns))
    rows = list(dict.fromkeys(row for facts in columns.values() for row in facts.rows()))
    for row in rows:
        cells = [facts.rows().get(row) for facts in columns.values()]
        print(f"{row:34}" + "".join(f"{'' if cell is None else f'{cell / MB:.1f}':>12}" for cell in cells))


def show_imports(columns: dict[str, Facts]) -> None:
    """The packages that take most."""
    total: Counter[str] = Counter()
    for facts in columns.values():
        total.update(facts.imports)
    largest = [name for name, _ in total.most_common(PACKAGES)]
    print(f"\n{'imports by package':34}" + "".join(f"{name:>12}" for name in columns))
    for name in largest:
        print(f"{name:34}" + "".join(f"{each.imports.get(name, 0) / MB:12.1f}" for each in columns.values()))
    rest = [
        sum(size for name, size in each.imports.items() if name not in largest) for each in columns.values()
    ]
    print(f"{'all others':34}" + "".join(f"{size / MB:12.1f}" for size in rest))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--cut", default="4,15")
    parser.add_argument("--codec", default="int8")
    parser.add_argument("--base-dtype", default="fp32")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--devices", type=int, default=3, help="of the second fleet; 1 leaves it out")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    options = parser.parse_args()
    model = resolve(options.model, serve.cache_directory())
    alone = single(model, options.steps)
    one = fleet(options, model, 1)
    columns = {"device": one["d0"], "edge": one["edge"], "cloud": one["cloud"], "single": alone}
    how = (
        f"base {options.base_dtype}, gradient checkpointing {'on' if options.gradient_checkpointing else 'off'}"
    )
    show("MB", columns)
    show_imports(columns)
    ratio = alone.tensors / one["d0"].tensors
    print(f"\n{how}: peak less imports {one['d0'].tensors / MB:.0f} on the device,", end=" ")
    print(f"{alone.tensors / MB:.0f} in the single process, {ratio:.1f} times as much")
    figures: dict[str, Any] = {name: facts.plain() for name, facts in columns.items()}
    if options.devices > 1:
        many = fleet(options, model, options.devices)
        for tier in ("edge", "cloud"):
            more = (many[tier].peak - one[tier].peak) / (options.devices - 1)
            peak = f"peak {many[tier].peak / MB:.0f} with {options.devices} devices"
            print(f"{tier}: {peak}, {more / MB:.1f} for each more")
            figures[f"{tier} of {options.devices}"] = many[tier].plain()
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
