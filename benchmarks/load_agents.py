"""Light agents, many to a process: roles, mailboxes, runners and links are real, only the model is tiny."""

import contextlib
import faulthandler
import multiprocessing
import os
import threading
import traceback
import typing
from collections.abc import Iterator, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from benchmarks.load_fleet import FLEET, VOCABULARY, Size, address
from iotsplit.agent import Agent
from iotsplit.chunks import CHUNK_BYTES
from iotsplit.errors import BrokerUnreachableError, PeerError
from iotsplit.mailbox import Mailbox
from iotsplit.messages import Message
from iotsplit.packet import Packet
from iotsplit.plan import Tier, cut_model
from iotsplit.role import Output, Role
from iotsplit.runtime import clock, processes, serve
from iotsplit.runtime.link import Deliver
from iotsplit.runtime.mqtt import MqttLink
from iotsplit.runtime.runner import Runner, new_birth
from iotsplit.settings import TrainingSettings
from iotsplit.states import State, decode_state
from iotsplit.tensors import adapters
from iotsplit.tensors.models import describe
from iotsplit.topics import Topics
from iotsplit_device.batches import Batches
from iotsplit_device.role import DeviceRole
from iotsplit_device.work import DeviceWork
from iotsplit_edge.role import EdgeRole
from iotsplit_edge.work import EdgeWork
from tests.flows.weather import quick_part
from tests.support import sequences

PER_PROCESS = 100
"""Agents of a process: select, which paho waits with, takes no file above 1023, and a connection has three."""
EDGE_PROCESSES = 2
FIRST_TRIES = 6


def device_role(name: str, model: Path, settings: TrainingSettings) -> Role:
    """A device with data of its own."""
    info = describe(model)
    part = quick_part(model, cut_model(info.layers, settings.cut, settings.labels)[Tier.DEVICE])
    adapters.inject(part, settings)
    batches = Batches(
        sequences(name, 2, longest=settings.sequence_length, vocabulary=VOCABULARY),
        sequences(f"{name} held out", 1, longest=settings.sequence_length, vocabulary=VOCABULARY),
        seed=settings.seed,
        device=name,
        batch_size=settings.batch_size,
        micro_batches=settings.micro_batches,
    )
    work = DeviceWork(part, batches, settings)
    birth = new_birth(name, Tier.DEVICE, model=info.fingerprint, threads=1)
    return DeviceRole(birth=birth, load=lambda _: work)


def edge_role(name: str, model: Path, settings: TrainingSettings) -> Role:
    """An edge; its sessions share its part."""
    info = describe(model)
    part = quick_part(model, cut_model(info.layers, settings.cut, settings.labels)[Tier.EDGE])
    adapters.inject(part, settings)
    birth = new_birth(name, Tier.EDGE, model=info.fingerprint, threads=1)
    return EdgeRole(birth=birth, load=lambda _, adapter, round_: EdgeWork(part, settings, adapter, round_))


ROLES = {Tier.DEVICE: device_role, Tier.EDGE: edge_role}
TURN = threading.Lock()


class PatientLink(MqttLink):
    """A link that tries its first connection again, as a service manager would start its agent again.

    A thousand agents that begin at once on two cores can keep a broker from answering in time.
    """

    def open(self, deliver: Deliver, *, last_will: Packet | None) -> None:
        """Connect."""
        for _ in range(FIRST_TRIES - 1):
            with contextlib.suppress(BrokerUnreachableError):
                return super().open(deliver, last_will=last_will)
        return super().open(deliver, last_will=last_will)


class Neighbour(Agent):
    """An agent that computes in turns with those that share its process.

    A hundred threads that want the interpreter's lock at once keep those waiting that answer the broker.
    """

    def handle(self, message: Message, now: float) -> Sequence[Output]:
        """Give a message to the role."""
        with TURN:
            return super().handle(message, now)

    def tick(self, now: float) -> Sequence[Output]:
        """Let the role do what is due."""
        with TURN:
            return super().tick(now)


def host(
    tier: Tier, names: Sequence[str], model: Path, settings: TrainingSettings, *, port: int, log: Path
) -> None:
    """Run many agents in this process, each as a process of its own would, until a signal ends it."""
    processes.die_with_parent()
    processes.return_freed_memory()
    faulthandler.enable()
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    serve.start_logging("warning")
    torch.set_num_threads(1)
    # Before any of them runs: a part is loaded in a context that all threads of a process are in.
    roles = [ROLES[tier](name, model, settings) for name in names]
    _learn_to_read()
    for role in roles:
        agent = Neighbour(role, Mailbox(Topics(FLEET), role.agent), wall=clock.wall)
        link = PatientLink(address(port), serve.client_id(FLEET, tier, role.agent))
        runner = Runner(agent, link, largest_bytes=CHUNK_BYTES)
        threading.Thread(target=_run, args=(runner,), name=role.agent).start()


def _learn_to_read() -> None:
    # msgspec works out how to read a record when it first does; many threads at once have crashed it.
    for kind in typing.get_args(State):
        with contextlib.suppress(PeerError):
            decode_state(b"{}", kind)


def _run(runner: Runner) -> None:
    try:
        runner.run()
    finally:
        traceback.print_exc()
        os._exit(1)


@contextlib.contextmanager
def hosts(size: Size, port: int) -> Iterator[list[ForkServerProcess]]:
    """Processes that hold the agents."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.load_agents"])
    devices = [f"d{number:04}" for number in range(size.devices)]
    edges = [f"edge-{number:02}" for number in range(size.edges)]
    shares = [(Tier.DEVICE, devices[at : at + PER_PROCESS]) for at in range(0, len(devices), PER_PROCESS)]
    shares += [(Tier.EDGE, edges[at::EDGE_PROCESSES]) for at in range(min(EDGE_PROCESSES, len(edges)))]
    here = {"port": port, "log": size.root / "agents.log"}
    started = [
        context.Process(target=host, args=(tier, names, size.model, size.settings), kwargs=here)
        for tier, names in shares
    ]
    try:
        for process in started:
            process.start()
        yield started
    finally:
        for process in started:
            process.kill()
            process.join()
