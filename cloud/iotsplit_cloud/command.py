"""``iotsplit cloud``: the agent that decides rounds and holds the adapter versions."""

import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import structlog
import torch

from iotsplit.agent import Sink
from iotsplit.options import AgentOptions, parse
from iotsplit.plan import PartPlan, Tier, cut_model
from iotsplit.role import Local
from iotsplit.runtime import serve
from iotsplit.runtime.clock import RoundClock
from iotsplit.runtime.runner import Runner, due_command, new_birth
from iotsplit.settings import FleetSettings, TrainingSettings
from iotsplit.states import Birth, Event, Metrics
from iotsplit.tensors import adapters
from iotsplit.tensors.models import ModelInfo, describe, resolve
from iotsplit.tensors.parts import load_part, sizes
from iotsplit.tensors.recompute import recompute
from iotsplit.topics import check_agent_id
from iotsplit_cloud.caches import Caches
from iotsplit_cloud.chronicle import Chronicle
from iotsplit_cloud.conductor import Parts
from iotsplit_cloud.members import Members
from iotsplit_cloud.report import new_report
from iotsplit_cloud.role import CloudRole
from iotsplit_cloud.store import Saved, Store
from iotsplit_cloud.tail import Tail
from iotsplit_cloud.versions import Library, Version

log = structlog.get_logger()

EXAMPLES = (
    "iotsplit cloud --devices 4 --edges 2 --rounds 3 --output out",
    "iotsplit cloud --schedule 'cron 0 22 * * *' --config cloud.toml",
)


@dataclass(frozen=True, kw_only=True)
class CloudOptions(AgentOptions):
    """The cloud.

    Runs the rounds, the last layers and the adapter versions of a fleet, until all is done or a signal ends it.

    Args:
        output: Directory for adapter, report, metrics, and what a restarted cloud goes on from.
    """

    output: Path = Path("out")
    training: TrainingSettings = field(default_factory=TrainingSettings)
    members: FleetSettings = field(default_factory=FleetSettings)


def main(words: Sequence[str]) -> int:
    """Run the cloud until the rounds are done or a signal ends it."""
    options = parse(CloudOptions, words, name="iotsplit cloud", examples=EXAMPLES)
    serve.start_logging(options.log_level)
    torch.set_num_threads(options.threads)
    agent = check_agent_id(options.id or "cloud")
    directory = resolve(options.model, serve.cache_directory())
    info = describe(directory)
    peft = adapters.peft_config(directory, options.training, base=options.model)
    store = Store(options.output, agent=agent, settings=options.training, model=info.fingerprint, peft=peft)
    saved = store.load()
    birth = new_birth(agent, Tier.CLOUD, model=info.fingerprint, threads=options.threads)
    role = make_role(birth, directory, info, options=options, peft=peft, saved=saved)
    clock: RoundClock | None = None

    def started(runner: Runner) -> None:
        nonlocal clock
        schedule = options.members.schedule
        clock = RoundClock(schedule, options.members.window, lambda: runner.post(due_command()))
        clock.start()

    try:
        code = serve.serve(role, options, sink=keeping(store), started=started)
        store.close("done" if role.finished else "stopped")
    except BaseException as error:
        store.close("failed", str(error))
        raise
    finally:
        if clock is not None:
            clock.close()
    return code


def make_role(  # noqa: PLR0913 - a cloud is made of so many things
    birth: Birth,
    directory: Path,
    info: ModelInfo,
    *,
    options: CloudOptions,
    peft: dict[str, Any],
    saved: Saved | None,
    run: str = "",
) -> CloudRole:
    """Put the cloud together, new or from what it has saved; `run` begins its sessions' names."""
    settings = options.training
    plans = cut_model(info.layers, settings.cut, settings.labels)
    part = load_part(directory, plans[Tier.CLOUD])
    adapters.inject(part, settings)
    if options.gradient_checkpointing:
        recompute(part.layers)
    tail = Tail(part, settings)
    held = saved.versions if saved else [first_version(directory, settings, plans)]
    library = Library(
        model=info.fingerprint,
        peft=peft,
        chunk_bytes=options.largest_bytes,
        shapes={
            tier: {name: tuple(value.shape) for name, value in held[-1].section(tier).items()} for tier in Tier
        },
        settings=settings,
        held=held,
    )
    if saved:
        library.roll_back(saved.version)
    tail.load(library.current.sections[Tier.CLOUD])
    model = {
        "name": info.name,
        "layers": info.layers,
        "hidden_size": info.hidden_size,
        "parameters": info.parameters,
    }
    frozen, trainable = sizes(part)
    birth = msgspec.structs.replace(birth, part_parameters=frozen, trainable_parameters=trainable)
    report = saved.report if saved else new_report(options.fleet, model, settings)
    report.settings = msgspec.to_builtins(settings)  # rounds and evaluate may be others than before
    parts = Parts(
        settings=settings,
        fleet=options.members,
        tail=tail,
        library=library,
        members=Members(model=info.fingerprint, plans=plans),
        caches=Caches(settings, saved.caches if saved else {}),
        chronicle=Chronicle(report, saved.row if saved else None),
    )
    return CloudRole(
        birth=birth,
        parts=parts,
        run=run or secrets.token_hex(3),
        earlier=saved.earlier if saved else None,
    )


def first_version(directory: Path, settings: TrainingSettings, plans: dict[Tier, PartPlan]) -> Version:
    """Version 0: a fresh adapter for all layers, the same for the same seed."""
    whole = adapters.initial(directory, settings)
    sections = {str(tier): adapters.to_bytes(adapters.select(whole, plans[tier])) for tier in Tier}
    return Version(version=0, round=0, sections=sections)


def keeping(store: Store) -> Sink:
    """What writes to the store, and tells people."""

    def keep(kept: Local | Metrics | Event) -> None:
        store.take(kept)
        if isinstance(kept, Event):
            tell(kept)

    return keep


def tell(event: Event) -> None:
    """Say what happened in the log: who starts a cloud by hand sees its rounds."""
    detail: Any = event.detail
    if event.detail.startswith("{"):  # figures
        with contextlib.suppress(msgspec.DecodeError):
            detail = msgspec.json.decode(event.detail)
    log.info(event.kind, about=event.agent, **({"detail": detail} if detail else {}))
