"""Where things are said: the topic tree below ``<prefix>iotsplit/<fleet>``, and nothing else of MQTT.

docs/PROTOCOL.md shows the same as a table; a test compares the two.
"""

import re
from dataclasses import dataclass

from iotsplit.errors import MalformedMessageError, UsageError
from iotsplit.messages import Frame, Message, Update
from iotsplit.plan import Tier
from iotsplit.states import (
    WORD,
    AdapterChunk,
    AdapterHead,
    AdapterLatest,
    Assignment,
    Birth,
    CheckpointChunk,
    CheckpointHead,
    Command,
    Event,
    Forget,
    Metrics,
    Reply,
    Round,
)

AGENT_ID = re.compile(r"[A-Za-z0-9_-]{1,23}")

# Words after each first word of a topic.
DEPTHS: dict[str, frozenset[int]] = {
    "state": frozenset({1}),
    "round": frozenset({0}),
    "assign": frozenset({1}),
    "lan": frozenset({3}),
    "wan": frozenset({3}),
    "update": frozenset({3}),
    "adapter": frozenset({1, 2}),
    "checkpoint": frozenset({3}),
    "metrics": frozenset({1}),
    "events": frozenset({0}),
    "command": frozenset({0, 1}),
}


@dataclass(frozen=True, slots=True)
class Route:
    """A topic taken apart: its first word and the words after it."""

    first: str
    words: tuple[str, ...]


def check_agent_id(agent: str) -> str:
    """Return the id if it can stand in topics and client ids.

    Raises:
        UsageError: it cannot.
    """
    if AGENT_ID.fullmatch(agent) is None:
        raise UsageError(
            f"agent id {agent!r} cannot be used in topics",
            fix="use 1 to 23 of the characters A-Z a-z 0-9 _ -",
        )
    return agent


def check_filter(pattern: str) -> str:
    """Return a topic filter if it is one.

    Raises:
        UsageError: a wildcard is not a whole word, or not the last.
    """
    words = pattern.split("/")
    wrong = [word for word in words if ("+" in word or "#" in word) and word not in {"+", "#"}]
    if not pattern or wrong or "#" in words[:-1] or "\0" in pattern:
        raise UsageError(
            f"topic filter {pattern!r} is not one",
            fix="+ stands for a whole word, # for all that follow at the end",
        )
    return pattern


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one fleet.

    Args:
        fleet: name of the fleet, one word.
        prefix: what a shared broker wants in front, such as ``plant7/line3/``.
    """

    fleet: str
    prefix: str = ""

    def __post_init__(self) -> None:
        """Refuse names that would not stay below their own root.

        Raises:
            UsageError: a wildcard, an empty word, or a prefix without its slash.
        """
        if AGENT_ID.fullmatch(self.fleet) is None:
            raise UsageError(
                f"fleet {self.fleet!r} is not a name",
                fix="use 1 to 23 of the characters A-Z a-z 0-9 _ -",
            )
        if self.prefix and not re.fullmatch(r"([^/#+$\x00][^/#+\x00]*/)+", self.prefix):
            raise UsageError(
                f"topic prefix {self.prefix!r} is not one",
                fix="write words that each end with a slash, without + and #, such as plant7/line3/",
            )

    @property
    def root(self) -> str:
        """What every topic of the fleet begins with."""
        return f"{self.prefix}iotsplit/{self.fleet}/"

    @property
    def slashes(self) -> int:
        """Of the deepest topics."""
        return self.root.count("/") + max(max(depths) for depths in DEPTHS.values())

    def topic_of(self, message: Message) -> str:
        """Where a message is said."""
        return self.root + _path_of(message)

    def parse(self, topic: str) -> Route:
        """Take a topic of this fleet apart.

        Raises:
            MalformedMessageError: not a topic of this fleet and protocol.
        """
        if not topic.startswith(self.root):
            raise MalformedMessageError(f"topic is not below {self.root}")
        first, *words = topic[len(self.root) :].split("/")
        if len(words) not in DEPTHS.get(first, frozenset()):
            raise MalformedMessageError("topic is unknown")
        if not all(re.fullmatch(WORD, word) for word in words):
            raise MalformedMessageError("topic has a word that is not allowed")
        return Route(first, tuple(words))


def _path_of(message: Message) -> str:
    if isinstance(message, Frame):
        return _path_of_frame(message)
    path = PATHS[type(message)]
    return path.format(message=message)


# Where each state and control message lies.
PATHS: dict[type, str] = {
    Birth: "state/{message.agent}",
    Round: "round",
    Assignment: "assign/{message.device}",
    AdapterLatest: "adapter/latest",
    AdapterHead: "adapter/{message.version}/head",
    AdapterChunk: "adapter/{message.version}/{message.index}",
    CheckpointHead: "{message.path}/head",
    CheckpointChunk: "checkpoint/{message.device}/{message.name}/{message.index}",
    Metrics: "metrics/{message.agent}",
    Event: "events",
    Command: "command",
    Reply: "command/{message.id}",
    Forget: "{message.path}",
}


def _path_of_frame(frame: Frame) -> str:
    if isinstance(frame.content, Update) or (frame.tier, frame.to_tier) == (Tier.DEVICE, Tier.CLOUD):
        return f"update/{frame.device}/{frame.session}/{frame.tier}"
    side = "wan" if Tier.CLOUD in (frame.tier, frame.to_tier) else "lan"
    return f"{side}/{frame.to}/{frame.sender}/{frame.session}"
