"""A cloud for those who drive it themselves: replay, and fleets in memory."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from iotsplit.errors import UsageError
from iotsplit.messages import Message
from iotsplit.runtime.runner import due_command
from iotsplit.states import Event, decode_state
from iotsplit.tape.casting import Actor, Props, find_model
from iotsplit.tape.letters import Letter
from iotsplit.tensors import adapters
from iotsplit_cloud.command import CloudOptions, make_role
from iotsplit_cloud.store import Saved, Store


def cast(props: Props) -> Actor:
    """A cloud from its model, settings and disk.

    Raises:
        UsageError: the model cannot be used, or nothing says what is trained.
        MismatchError: the model is another one.
    """
    if props.training is None:
        raise UsageError("no assignment says how this fleet trains", fix="record from before the first round")
    torch.set_num_threads(props.birth.threads)
    directory, info = find_model(props)
    options = CloudOptions(
        id=props.birth.agent,
        fleet=props.fleet_name,
        model=props.model,
        chunk_bytes=props.chunk_bytes,
        output=props.disk / "out",
        training=props.training,
        members=props.fleet,
    )
    if props.kept is not None and not options.output.exists():
        _take_over(props.kept, options.output)
    peft = adapters.peft_config(directory, props.training, base=props.base or props.model)
    store = Store(
        options.output,
        agent=props.birth.agent,
        settings=props.training,
        model=info.fingerprint,
        peft=peft,
        draws=False,
    )
    role = make_role(
        props.birth,
        directory,
        info,
        options=options,
        peft=peft,
        saved=_as_found(store.load(), props.resumed_at),
        run=props.run,
    )
    return Actor(role=role, sink=store.take, prompt=_prompt, close=lambda: store.close("stopped"))


def _take_over(kept: Path, output: Path) -> None:
    """Begin with what an output directory held; the run's logs and its exported adapter are not read again."""
    shutil.copytree(kept / "state" / "cloud", output / "state" / "cloud")
    rounds = kept / "rounds.jsonl"
    if rounds.exists():
        shutil.copy(rounds, output)


def _as_found(saved: Saved | None, step: int | None) -> Saved | None:
    """What was on the disk when the step that the cloud went on from was the newest."""
    if saved is None or step is None:
        return saved
    checkpoints = [each for each in saved.earlier.checkpoints if each.step <= step]
    return dataclasses.replace(saved, earlier=dataclasses.replace(saved.earlier, checkpoints=checkpoints))


def _prompt(letter: Letter) -> Sequence[Message]:
    """Rounds begin when the round clock says so, which is not on the bus."""
    if letter.first != "events":
        return []
    begins = decode_state(letter.body, Event).kind == "round_started"
    return [due_command()] if begins else []
