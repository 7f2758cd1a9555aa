"""For tests of your own: fleets in memory, and agents held against tapes. Needs pytest only for the fixture.

Write in your ``conftest.py``::

    pytest_plugins = ["iotsplit.testing"]

and in a test::

    def test_the_new_build_behaves(tmp_path):
        expect_same(replay_tape("golden.tape", "edge", agent="edge-1", model="models/tiny"))

docs/replay.md tells more.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from iotsplit.fleet.rehearse import AgainstOptions, Outcome, hold
from iotsplit.plan import Tier
from iotsplit.settings import TrainingSettings
from iotsplit.tape.files import tell_nobody
from iotsplit.tape.stage import MemoryFleet

try:
    import pytest
except ModuleNotFoundError:  # everything but the fixture works without it
    pytest = None  # type: ignore[assignment]

__all__ = ["MemoryFleet", "Outcome", "TrainingSettings", "expect_same", "replay_tape", "tiny_model"]

NewFleet = Callable[..., MemoryFleet]


def replay_tape(  # noqa: PLR0913 - each is an option of the command
    tape: Path | str,
    against: Tier | str,
    *,
    model: Path | str,
    agent: str | None = None,
    data: Path | str = "",
    columns: tuple[str, ...] = (),
    tolerance: float = 0.0,
    eval_limit: int | None = None,
    kept: Path | str | None = None,
) -> Outcome:
    """Run one agent of a tape with nobody else there, and compare what it says with the tape.

    Args:
        tape: file of the tape.
        against: device, edge or cloud.
        model: directory or name of the agent's model, or of its part.
        agent: its id, if there are several of its tier.
        data: of a device: file, folder or built-in set.
        columns: columns or keys of the data, as the device had them.
        tolerance: of each tensor, as a share of its largest value; 0 for the same bytes.
        eval_limit: most held-out sequences of a device; None for what the command has.
        kept: copy of the cloud's output directory, as it was when the tape began.

    Raises:
        UsageError: tape, agent, model or data cannot be used.
        MismatchError: the model is another one.
    """
    options = AgainstOptions(
        tape=Path(tape),
        agent=agent,
        model=str(model),
        data=str(data),
        columns=columns,
        tolerance=tolerance,
        eval_limit=eval_limit,
        kept=Path(kept) if kept is not None else None,
    )
    return hold(options, Tier(against), tell=tell_nobody)


def expect_same(outcome: Outcome) -> None:
    """Fail, with the first difference, unless an agent said what is on its tape.

    Raises:
        AssertionError: it said something else, or nothing that can be compared.
    """
    if outcome.difference is not None:
        raise AssertionError(str(outcome.difference))
    if not outcome.compared:
        raise AssertionError(f"{outcome.agent} says nothing on the tape that can be compared")


def tiny_model(directory: Path | str, *, layers: int = 4, seed: int = 0) -> Path:
    """Write a random model that trains in seconds, with a tokenizer of characters; gives its directory.

    Args:
        directory: where; made if it is not there.
        layers: of the model.
        seed: of its parameters.
    """
    from iotsplit.tensors import tiny  # noqa: PLC0415 - needs torch

    return tiny.make(Path(directory), layers=layers, seed=seed)


if pytest is not None:

    @pytest.fixture
    def memory_fleet(tmp_path: Path) -> Iterator[NewFleet]:
        """Makes fleets in memory; their agents are ended after the test.

        Call it with the model's directory or name, the data of each device by its id, and ``training``; other
        words are those of `MemoryFleet`.
        """
        made: list[MemoryFleet] = []

        def new(
            model: Path | str, devices: Mapping[str, Path | str], *, training: TrainingSettings, **more: Any
        ) -> MemoryFleet:
            disk = tmp_path / f"fleet-{len(made)}"
            made.append(MemoryFleet(model, devices, disk, training=training, **more))
            return made[-1]

        yield new
        for fleet in made:
            fleet.close()
