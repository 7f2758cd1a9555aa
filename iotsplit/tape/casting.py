"""How a tier's package gives one of its agents to whoever wants to drive it: replay, and fleets in memory.

A package names its function in the entry points of ``iotsplit.roles``, so the core knows no tier.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from iotsplit.agent import Sink, nowhere
from iotsplit.chunks import CHUNK_BYTES
from iotsplit.errors import MismatchError, UsageError
from iotsplit.messages import Message
from iotsplit.plan import Tier
from iotsplit.role import Role
from iotsplit.settings import FleetSettings, TrainingSettings
from iotsplit.states import Birth
from iotsplit.tape.letters import Letter

if TYPE_CHECKING:
    from iotsplit.tensors.models import ModelInfo


@dataclass(frozen=True, kw_only=True)
class Props:
    """What an agent is made from, whatever its tier.

    Args:
        birth: its name, incarnation and model.
        model: name or directory of the model, or of a part.
        disk: what it keeps lies here, from one incarnation to the next.
        chunk_bytes: its largest message.
        data: of a device: file, folder or built-in set.
        columns: of the data.
        eval_limit: most held-out sequences of a device; None for what the command has.
        training: the fleet's settings; only the cloud needs them.
        fleet: who takes part; only the cloud needs it.
        fleet_name: for the cloud's report.
        base: of the cloud: what its adapters say that their model is called; the model's name if empty.
        run: of the cloud: what its sessions' names begin with; a new word if empty.
        kept: of the cloud: what its output directory held before its first incarnation.
        resumed_at: the newest step that this incarnation is known to have found on its disk.
    """

    birth: Birth
    model: str
    disk: Path
    chunk_bytes: int = CHUNK_BYTES
    data: str = ""
    columns: tuple[str, ...] = ()
    eval_limit: int | None = None
    training: TrainingSettings | None = None
    fleet: FleetSettings = field(default_factory=FleetSettings)
    fleet_name: str = "default"
    base: str = ""
    run: str = ""
    kept: Path | None = None
    resumed_at: int | None = None


def no_prompt(letter: Letter) -> Sequence[Message]:
    """Nothing that happens inside an agent follows from what it said."""
    del letter
    return ()


def nothing() -> None:
    """Nothing is open."""


@dataclass(frozen=True, kw_only=True)
class Actor:
    """One incarnation of an agent.

    Args:
        role: its state machine.
        sink: takes what it keeps.
        prompt: what must have happened inside it for it to say something: what its clocks told it.
        close: ends it, so that another incarnation can have its disk.
    """

    role: Role
    sink: Sink = nowhere
    prompt: Callable[[Letter], Sequence[Message]] = no_prompt
    close: Callable[[], None] = nothing


Cast = Callable[[Props], Actor]


def find_model(props: Props) -> tuple[Path, "ModelInfo"]:
    """The directory of the model, and what it is.

    Raises:
        UsageError: the model cannot be used.
        MismatchError: it is not the agent's.
    """
    from iotsplit.runtime.serve import cache_directory  # noqa: PLC0415 - as below
    from iotsplit.tensors.models import describe, resolve  # noqa: PLC0415 - needs torch

    directory = resolve(props.model, cache_directory())
    info = describe(directory)
    if props.birth.model and info.fingerprint != props.birth.model:
        raise MismatchError(
            f"{props.birth.agent} has model {props.birth.model[:12]}, {props.model} is {info.fingerprint[:12]}",
            fix="name the same model, or the agent's part of it",
        )
    return directory, info


def find_cast(tier: Tier) -> Cast:
    """The function of a tier's package.

    Raises:
        UsageError: what the tier needs is not installed.
    """
    for point in entry_points(group="iotsplit.roles"):
        if point.name == tier:
            try:
                cast: Cast = point.load()
            except ModuleNotFoundError as error:
                if (error.name or "").startswith("iotsplit"):
                    raise
                raise UsageError(
                    f"a {tier} needs the package {error.name}, which is not installed",
                    fix=f"pip install 'iotsplit[{tier}]'",
                ) from None
            return cast
    raise UsageError(f"there is no {tier} in this installation", fix=f"pip install 'iotsplit[{tier}]'")
