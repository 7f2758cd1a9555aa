"""``iotsplit edge``: the agent between devices and cloud."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from iotsplit.options import AgentOptions, parse
from iotsplit.plan import PartPlan, Tier, cut_model
from iotsplit.runtime import serve
from iotsplit.runtime.runner import new_birth
from iotsplit.settings import TrainingSettings, at_least
from iotsplit.tensors import adapters
from iotsplit.tensors.models import ModelInfo, describe, resolve
from iotsplit.tensors.parts import Part, load_part
from iotsplit.tensors.recompute import recompute
from iotsplit.topics import check_agent_id
from iotsplit_edge.role import EdgeRole
from iotsplit_edge.work import EdgeWork

EXAMPLES = (
    "iotsplit edge --id standby --standby",
    "iotsplit edge --id edge-1 --broker mqtt://broker.local:1883",
    "iotsplit edge --config edge.toml",
)


@dataclass(frozen=True, kw_only=True)
class EdgeOptions(AgentOptions):
    """The edge.

    Runs the middle layers for the devices that the cloud deals to it, until a signal ends it.

    Args:
        max_sessions: Most devices that it trains with at a time; 0 for as many as come.
        standby: Serve only when no other edge can: beside the cloud, for the day when all edges are lost.
    """

    max_sessions: int = 0
    standby: bool = False

    def __post_init__(self) -> None:
        """Refuse a number that is none.

        Raises:
            UsageError: max_sessions is negative.
        """
        at_least("max_sessions", self.max_sessions, 0)


def main(words: Sequence[str]) -> int:
    """Run an edge until a signal ends it."""
    options = parse(EdgeOptions, words, name="iotsplit edge", examples=EXAMPLES)
    serve.start_logging(options.log_level)
    torch.set_num_threads(options.threads)
    directory = resolve(options.model, serve.cache_directory())
    info = describe(directory)
    birth = new_birth(
        check_agent_id(options.id or "edge"),
        Tier.EDGE,
        model=info.fingerprint,
        part="all" if info.part is None else str(info.part),
        threads=options.threads,
    )
    birth = msgspec.structs.replace(birth, max_sessions=options.max_sessions, standby=options.standby)
    loader = make_loader(directory, info, gradient_checkpointing=options.gradient_checkpointing)
    return serve.serve(EdgeRole(birth=birth, load=loader, chunk_bytes=options.largest_bytes), options)


def make_loader(
    directory: Path, info: ModelInfo, *, gradient_checkpointing: bool = False
) -> Callable[[TrainingSettings, bytes, int], EdgeWork]:
    """What makes a session's work ready; all sessions share the frozen part of the settings last seen."""
    made: dict[tuple[PartPlan, object], Part] = {}

    def load(settings: TrainingSettings, adapter: bytes, round_: int) -> EdgeWork:
        plan = cut_model(info.layers, settings.cut, settings.labels)[Tier.EDGE]
        key = (plan, (settings.rank, settings.alpha, settings.target_modules, settings.base_dtype))
        if key not in made:
            made.clear()
            made[key] = load_part(directory, plan)
            adapters.inject(made[key], settings)
            if gradient_checkpointing:
                recompute(made[key].layers)
        return EdgeWork(made[key], settings, adapter, round_)

    return load
