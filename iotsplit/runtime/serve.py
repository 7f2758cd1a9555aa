"""Runs a role as a process: connects it, follows signals, and ends it cleanly."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import structlog

from iotsplit.agent import Agent, Sink, nowhere
from iotsplit.errors import UsageError
from iotsplit.home_assistant import discovery
from iotsplit.mailbox import Mailbox
from iotsplit.options import AgentOptions
from iotsplit.plan import Tier
from iotsplit.role import Role
from iotsplit.runtime import clock
from iotsplit.runtime.address import address_of, shortened
from iotsplit.runtime.mqtt import MqttLink
from iotsplit.runtime.processes import die_with_parent, return_freed_memory
from iotsplit.runtime.runner import Runner
from iotsplit.topics import Topics

INTERRUPTED = 130
LOG_LEVELS = ("debug", "info", "warning", "error")
MAX_CLIENT_ID = 23  # MQTT 3.1.1 section 3.1.3.1: what every broker must accept

log = structlog.get_logger()


def client_id(fleet: str, what: str, agent: str) -> str:
    """A client id that is readable where it fits into 23 characters, and unique where it does not.

    Args:
        fleet: name of the fleet.
        what: the tier, or what else of the agent connects.
        agent: its id.
    """
    return shortened(f"{what[0]}-{fleet}-{agent}", MAX_CLIENT_ID)


def start_logging(level: str) -> None:
    """Lines for people on a terminal, JSON lines elsewhere; on stderr.

    Raises:
        UsageError: there is no such level.
    """
    if level not in LOG_LEVELS:
        raise UsageError(f"log level {level!r} is unknown", fix=f"use one of {', '.join(LOG_LEVELS)}")
    terminal = sys.stderr.isatty()
    renderer = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # whatever that is by then
    )


def serve(
    role: Role,
    options: AgentOptions,
    *,
    sink: Sink = nowhere,
    started: Callable[[Runner], None] = lambda _: None,
) -> int:
    """Run a role until it has finished or a signal ends it.

    Args:
        role: the agent's role.
        options: its broker and fleet.
        sink: takes what the role keeps on this machine.
        started: called with the runner before it runs.

    Returns:
        0, or 130 if a signal ended it.
    """
    if os.environ.get("IOTSPLIT_PARENT_DEATH"):
        die_with_parent()
    if role.tier is Tier.DEVICE or options.return_memory:
        return_freed_memory()
    runner = runner_of(role, options, sink=sink)
    interrupted = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        del number, frame
        nonlocal interrupted
        interrupted = True
        runner.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    started(runner)
    root = Topics(options.fleet, options.topic_prefix).root
    log.info("started", agent=role.agent, role=role.tier, broker=options.broker, root=root)
    runner.run()
    return INTERRUPTED if interrupted and not role.finished else 0


def runner_of(role: Role, options: AgentOptions, *, sink: Sink = nowhere) -> Runner:
    """What runs a role on the broker of its options, not started yet."""
    topics = Topics(options.fleet, options.topic_prefix)
    agent = Agent(
        role,
        Mailbox(topics, role.agent, chunk_bytes=options.largest_bytes),
        sink=sink,
        complain=lambda origin, reason: log.warning("dropped a message", topic=origin, reason=reason),
        wall=clock.wall,
    )
    link = MqttLink(address_of(options), client_id(options.fleet, role.tier, role.agent))
    beacons = [discovery(options.home_assistant, topics, role.birth)] if options.home_assistant else []
    return Runner(
        agent,
        link,
        largest_bytes=options.largest_bytes,
        most_filters=options.limits.subscriptions,
        beacons=beacons,
    )


def state_directory(options: AgentOptions) -> Path:
    """Where the agent keeps what it must not forget."""
    if options.state_dir is not None:
        return options.state_dir
    from platformdirs import user_state_path  # noqa: PLC0415 - only where none is named

    return user_state_path("iotsplit") / options.fleet / options.id


def cache_directory() -> Path:
    """Where converted models are kept."""
    named = os.environ.get("IOTSPLIT_CACHE_DIR")
    if named:
        return Path(named)
    from platformdirs import user_cache_path  # noqa: PLC0415 - only where none is named

    return user_cache_path("iotsplit")
