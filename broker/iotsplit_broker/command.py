"""``iotsplit broker``: run a broker, or get one that exists ready for fleets."""

import sys
from collections.abc import Sequence
from importlib import import_module

from iotsplit.errors import UsageError
from iotsplit.flags import suggest

RUN = "run"
USAGE = """\
Examples:
  iotsplit broker
  iotsplit broker run --port 1883 --host 0.0.0.0 --users-file /etc/iotsplit/users
  iotsplit broker check mqtt://broker.plant7
  iotsplit broker config --for mosquitto --edges edge-1 --output mosquitto
  iotsplit broker bridge --local mqtt://127.0.0.1 --remote mqtts://cloud.example --output bridge.conf

Usage: iotsplit broker [run | check | config | bridge] [OPTIONS]

  run       run Mosquitto with the settings that fleets need, else the embedded broker; may be left out
  check     try at a broker what fleets rely on: says what is too small or absent, and the setting to change
  config    write a configuration for Mosquitto, EMQX, HiveMQ or AWS IoT
  bridge    write a Mosquitto bridge between a site and the cloud's broker

iotsplit broker run --help shows the options of a command.
"""
VERBS = {
    RUN: "iotsplit_broker.run",
    "check": "iotsplit_broker.checking.check",
    "config": "iotsplit_broker.configuration.config",
    "bridge": "iotsplit_broker.configuration.bridge",
}
"""The module whose ``main`` gets the words behind each verb; it is imported for no other."""


def main(words: Sequence[str]) -> int:
    """Do what the first word says; without one, run a broker."""
    if {"--help", "-h", "help"}.intersection(words[:1]):
        sys.stdout.write(USAGE)
        return 0
    verb, *rest = words if words and not words[0].startswith("-") else (RUN, *words)
    if verb not in VERBS:
        raise UsageError(
            f"no command broker {verb}{suggest(verb, list(VERBS))}", fix="see iotsplit broker --help"
        )
    code: int = import_module(VERBS[verb]).main(rest)
    return code
