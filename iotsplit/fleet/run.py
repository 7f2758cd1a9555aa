"""``iotsplit run``: a whole fleet on this machine, each agent a process of its own, talking MQTT only."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from iotsplit.datasets import partition
from iotsplit.errors import RunFailedError, UsageError
from iotsplit.fleet import summary
from iotsplit.fleet.client import connect
from iotsplit.fleet.launcher import (
    BROKER,
    ENDS,
    Broker,
    Launcher,
    end_of,
    how_it_ended,
    interruptible,
    peak_rss_bytes,
)
from iotsplit.fleet.output import Origin, Output, to_toml
from iotsplit.fleet.progress import Progress
from iotsplit.home_assistant import PREFIX
from iotsplit.options import BrokerOptions, CommonOptions, parse
from iotsplit.plan import Tier, cut_model
from iotsplit.runtime import clock
from iotsplit.settings import FleetSettings, Stragglers, TrainingSettings, at_least
from iotsplit.topics import Topics

if TYPE_CHECKING:
    from iotsplit.tensors.models import ModelInfo

INTERRUPTED = 130
MAX_RESTARTS = 3
CLOUD = "cloud"
STANDBY = "standby"
EXAMPLES = (
    "iotsplit run --model smollm2 --data plant --rounds 3",
    "iotsplit run --data logs/ --devices 4 --edges 2 --rounds 3 --cut 4,15 --output out",
    "iotsplit run --data notes.jsonl --partition dirichlet:0.3 --labels device --json",
    "iotsplit run --config fleet.toml --broker mqtt://broker.local:1883",
)
BROKER_KINDS = frozenset({"", "embedded", "mosquitto"})


@dataclass(frozen=True, kw_only=True)
class RunOptions(BrokerOptions, CommonOptions):
    """The fleet.

    Starts a broker, a cloud, edges and devices on this machine, each a process of its own, and trains.

    Args:
        model: Packaged name (smollm2), directory, .gguf file or hub id.
        data: Built-in set (plant, python-reference, fortunes), folder with a file per device, or a file.
        devices: Number of devices; by default one for each file of a folder, else 4.
        edges: Number of edges; none is started where devices hold the whole model.
        devices_per_edge: Devices that an edge serves in a round; by default all, dealt evenly.
        standby: Start one more edge, which serves only when no other can.
        step_timeout: Seconds after which a session that brings nothing holds up the others too long.
        stragglers: Then the others wait for as long as it takes, or go on without it in this round; with
            `carry` the steps that it has done count in this round or, if it comes too late, in the next.
        columns: Columns or keys of the data: one of texts, or two of prompts and completions.
        partition: How data is dealt: files, iid or dirichlet:0.3; by default files where there are several.
        broker: Address of a broker, or embedded, or mosquitto; by default Mosquitto if found, else embedded.
        device_broker: Address at which devices reach it, if they come another way: a proxy or a bridged broker.
        output: Directory for adapter, report, metrics, logs; a run in the same one goes on.
        fresh: Start over in that directory.
        threads: CPU threads of each agent.
        gradient_checkpointing: Compute layers again for the backward pass: same bits, less memory, slower.
        return_memory: Edges and cloud give freed memory back at once: same bits, less memory, slower.
        chunk_bytes: Largest MQTT payload to send, below the broker's limit; by default 61440, or what the
            profile and --max-rate allow.
        home_assistant: Let the agents appear in Home Assistant on this broker; its discovery prefix may follow.
    """

    broker: str = ""
    device_broker: str = ""
    model: str = "smollm2"
    data: str = "plant"
    devices: int | None = None
    edges: int = 1
    devices_per_edge: int | None = None
    standby: bool = False
    step_timeout: float = 120.0
    stragglers: Stragglers = Stragglers.DROP
    columns: tuple[str, ...] = ()
    partition: str | None = None
    output: Path = Path("out")
    fresh: bool = False
    threads: int = 1
    gradient_checkpointing: bool = False
    return_memory: bool = False
    chunk_bytes: int | None = None
    home_assistant: str = field(default="", metadata={"bare": PREFIX})
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        """Refuse values that cannot work before anything long begins.

        Raises:
            UsageError: a value is out of its range, or a name cannot stand in topics.
        """
        super().__post_init__()
        self.limits.chunk_bytes(self.chunk_bytes)
        for name in ("edges", "threads"):
            at_least(name, getattr(self, name), 1)
        for name in ("devices", "devices_per_edge"):
            at_least(name, 1 if getattr(self, name) is None else getattr(self, name), 1)
        Topics(self.fleet, self.topic_prefix)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a run needs to know before its first process starts."""

    model: Path
    info: "ModelInfo"
    devices: tuple[str, ...]
    edges: tuple[str, ...]


def main(words: Sequence[str]) -> int:
    """Run a fleet on this machine until its rounds are done."""
    options = parse(RunOptions, words, name="iotsplit run", examples=EXAMPLES)
    console = console_for(options)
    try:
        with interruptible():
            report = run(options, console)
    except KeyboardInterrupt:
        console.print(stopped(options))
        return INTERRUPTED
    if options.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        summary.show(report, options.output, console)
    return 0


def console_for(options: CommonOptions) -> Console:
    """Where progress goes: stdout is kept free for JSON."""
    return Console(stderr=options.json)


def stopped(options: RunOptions) -> str:
    """What is said when a run was interrupted."""
    without = " without --fresh" if options.fresh else ""
    return f"stopped; the same command{without} goes on from the last round in {options.output}"


def run(options: RunOptions, console: Console, *, title: str = "iotsplit run") -> dict[str, Any]:
    """Prepare the output, run the fleet, and return the report.

    Raises:
        UserError: something has to be mended by a person, or an agent failed.
        KeyboardInterrupt: a signal ended the run; the fleet is gone by then.
    """
    output = Output(options.output)
    started = clock.now()
    if options.broker not in BROKER_KINDS:
        with connect(options):  # each agent would only find the same fault seconds later
            pass
    with output.claimed():
        if options.fresh:
            output.start_over()
        prepared = prepare(options, output, console)
        console.print(first_line(options, prepared, title), markup=False, highlight=False, soft_wrap=True)
        launcher = Launcher(output.logs)
        try:
            broker = _start(launcher, options, prepared, console)
            with Progress(options.output, options.training, console) as progress:
                _watch(launcher, progress, prepared, console)
            peak = peak_rss_bytes(broker.pid) if broker else 0
        finally:
            launcher.stop(CLOUD)
        return _finish(output, broker, peak, wall_s=clock.now() - started)


def prepare(options: RunOptions, output: Output, console: Console) -> Prepared:
    """Find the model, check the cut, deal the data, and write the cloud's settings."""
    from iotsplit.runtime.serve import cache_directory  # noqa: PLC0415 - keeps --help quick
    from iotsplit.tensors.models import describe, resolve  # noqa: PLC0415 - needs torch

    with console.status("preparing the model"):
        model = resolve(options.model, cache_directory())
        info = describe(model)
    cut_model(info.layers, options.training.cut, options.training.labels)
    devices = tuple(_deal(options, output))
    count = 0 if options.training.federated else options.edges
    edges = tuple(f"edge-{number}" for number in range(1, count + 1))
    _check_names(devices, edges)
    members = FleetSettings(
        devices=len(devices),
        edges=len(edges) or 1,  # whole models on the devices need none, whatever this says
        devices_per_edge=options.devices_per_edge,
        step_timeout=options.step_timeout,
        stragglers=options.stragglers,
        once=True,
    )
    (output.root / "fleet.toml").write_text(to_toml(options.training, members), encoding="utf-8")
    return Prepared(model=model.absolute(), info=info, devices=devices, edges=edges)


def _deal(options: RunOptions, output: Output) -> list[str]:
    origin = Origin(
        model=options.model,
        data=options.data,
        columns=options.columns,
        devices=options.devices,
        partition=options.partition,
        seed=options.training.seed,
    )
    earlier = output.origin()
    if earlier is None or (earlier != origin and not output.has_trained):
        shares = partition.load(
            options.data,
            devices=options.devices,
            partition=options.partition,
            seed=options.training.seed,
            columns=options.columns,
        )
        output.deal(origin, shares)
    elif earlier != origin:
        raise UsageError(
            f"{output.root} holds a run of other model, data or devices",
            fix="use the same ones to go on with it, another --output, or --fresh",
        )
    return output.devices()


def _check_names(devices: Sequence[str], edges: Sequence[str]) -> None:
    taken = {CLOUD, BROKER, STANDBY, *edges}.intersection(devices)
    if taken:
        raise UsageError(
            f"a device would be named {min(taken)}, as another agent is", fix="rename its file or folder"
        )


def first_line(options: RunOptions, prepared: Prepared, title: str) -> str:
    """What runs, and what leaves a device."""
    training = options.training
    plans = cut_model(prepared.info.layers, training.cut, training.labels)
    tiers = " | ".join(f"{tier} {plans[tier]}" for tier in Tier if not plans[tier].is_empty)
    return (
        f"{title} · {prepared.info.name} ({prepared.info.layers} layers) · {tiers} · LoRA r={training.rank}"
        f" · boundary {training.codec} · {_count(prepared.devices, 'device')}, {_count(prepared.edges, 'edge')}"
        f" · {summary.LEAVES_WHOLE_DEVICE if training.federated else summary.LEAVES[training.labels]}"
    )


def _count(agents: Sequence[str], name: str) -> str:
    return f"{len(agents)} {name}{'' if len(agents) == 1 else 's'}"


def _start(launcher: Launcher, options: RunOptions, prepared: Prepared, console: Console) -> Broker | None:
    """Start all processes; gives the broker if it is one of them."""
    broker = None
    address = options.broker
    if address in BROKER_KINDS:
        kind = [f"--kind={address}"] if address else []
        directory = options.output / "state" / BROKER
        with console.status("starting a broker"):
            broker = launcher.start_broker(["broker", "--port=0", "--json", f"--directory={directory}", *kind])
        address = broker.address
        for note in broker.notes:
            console.print(note, markup=False, highlight=False, soft_wrap=True)
    who = f"own {broker.kind}" if broker else "not ours"
    line = f"broker {address} ({who})   logs {options.output / 'logs'}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    own = [f"--output={options.output}", f"--config={options.output / 'fleet.toml'}"]
    launcher.start(CLOUD, [CLOUD, *_agent_words(CLOUD, options, prepared, address), *own])
    for edge in prepared.edges:
        launcher.start(edge, ["edge", *_agent_words(edge, options, prepared, address)])
    if options.standby and prepared.edges:
        launcher.start(STANDBY, ["edge", *_agent_words(STANDBY, options, prepared, address), "--standby"])
    for device in prepared.devices:
        data = Output(options.output).data / f"{device}.jsonl"
        words = _agent_words(device, options, prepared, options.device_broker or address)
        launcher.start(device, ["device", *words, f"--data={data}"])
    return broker


def _agent_words(agent: str, options: RunOptions, prepared: Prepared, address: str) -> list[str]:
    values: dict[str, object] = {
        "--id": agent,
        "--broker": address,
        "--fleet": options.fleet,
        "--model": prepared.model,
        "--threads": options.threads,
        "--chunk-bytes": options.chunk_bytes,
        "--topic-prefix": options.topic_prefix or None,
        "--user": options.user,
        "--password-file": options.password_file,
        "--ca-file": options.ca_file,
        "--cert-file": options.cert_file,
        "--key-file": options.key_file,
        "--profile": options.profile or None,
        "--max-rate": ",".join(options.max_rate) or None,
        "--home-assistant": options.home_assistant or None,
        "--state-dir": options.output / "state" / agent,
    }
    given = [f"{flag}={value}" for flag, value in values.items() if value is not None]
    switches = {
        "--gradient-checkpointing": options.gradient_checkpointing,
        "--return-memory": options.return_memory,
        "--verbose": options.verbose,
    }
    return [*given, *(flag for flag, on in switches.items() if on)]


def _watch(launcher: Launcher, progress: Progress, prepared: Prepared, console: Console) -> None:
    """Wait for the cloud's end. Devices and edges that were killed are started again and go on where they were.

    The fleet goes on without a device or an edge, but not without all of them.

    Raises:
        UserError: an agent ended that the fleet cannot do without.
    """
    gone: set[str] = set()
    starts: Counter[str] = Counter()
    while launcher.wait(CLOUD) is None:
        progress.poll()
        for child in launcher.newly_dead():
            if child.agent == CLOUD:
                continue  # since it was asked for above
            error = end_of(child)
            killed = child.process.returncode < 0 and child.agent != BROKER
            if killed and starts[child.agent] < MAX_RESTARTS:
                starts[child.agent] += 1
                launcher.start(child.agent, child.words)
                line = f"{how_it_ended(child)}; it is started again"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
                continue
            gone.add(child.agent)
            mended_by_a_person = child.process.returncode in ENDS
            tiers = [prepared.devices, prepared.edges, (BROKER,)]
            needed = any(set(tier) <= gone for tier in tiers if tier)
            if mended_by_a_person or needed or not progress.training:
                raise error
            console.print(f"going on without {error}", markup=False, highlight=False, soft_wrap=True)
    cloud = launcher.child(CLOUD)
    if cloud.process.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    if cloud.process.returncode != 0:
        raise end_of(cloud)


def _finish(output: Output, broker: Broker | None, peak: int, *, wall_s: float) -> dict[str, Any]:
    report = output.report()
    if not report:
        raise RunFailedError("the cloud ended without a report", fix=f"see {output.log(CLOUD)}")
    if broker is not None:
        row = {"id": BROKER, "role": BROKER, "pid": broker.pid, "peak_rss_bytes": peak}
        row |= {"part_parameters": 0, "trainable_parameters": 0}
        agents = [each for each in report.get("agents", []) if each.get("role") != BROKER]
        report["agents"] = [*agents, row]
    if not report.get("wall_s"):
        report["wall_s"] = wall_s
    output.write_report(report)
    return report
