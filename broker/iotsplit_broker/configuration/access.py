"""Who may say and hear what below a fleet's root: the rules that every broker's access list is made from.

docs/PROTOCOL.md names the writer and the readers of each topic. What is read is written as the filters that
agents subscribe to, because some brokers compare these with the rules and not the topics of what they deliver.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from iotsplit.errors import UsageError
from iotsplit.topics import AGENT_ID, Topics

ME = "{me}"
"""Stands for the name of whoever a rule is about: agents are users of their own names."""
PLAIN = re.compile(r"[\w.:@/-]*")


class Access(StrEnum):
    """What a rule allows, in Mosquitto's words."""

    READ = "read"
    WRITE = "write"
    BOTH = "readwrite"

    @property
    def reads(self) -> bool:
        """Whether one may subscribe."""
        return self is not Access.WRITE

    @property
    def writes(self) -> bool:
        """Whether one may publish."""
        return self is not Access.READ


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that is allowed.

    Args:
        access: reading, writing or both.
        path: filter below the fleet's root, until `below` has placed it; `ME` may be one of its words.
        retained: whether what is written there is retained.
    """

    access: Access
    path: str
    retained: bool = False

    def of(self, name: str) -> "Rule":
        """The same about somebody: a name, or what a broker replaces by the user's."""
        return replace(self, path=self.path.replace(ME, name))

    def below(self, topics: Topics) -> "Rule":
        """The same with the fleet's root in front."""
        return replace(self, path=topics.root + self.path)


MEMBER = (
    Rule(Access.BOTH, f"state/{ME}", retained=True),
    Rule(Access.BOTH, f"probe/{ME}"),
    Rule(
        Access.BOTH, f"probe/{ME}/#", retained=True
    ),  # for broker check; to AWS IoT it leaves out the one above
    Rule(Access.WRITE, f"metrics/{ME}"),
)
DEVICE = (
    *MEMBER,
    Rule(Access.READ, f"assign/{ME}"),
    Rule(Access.READ, "adapter/#"),
    Rule(Access.READ, f"lan/{ME}/#"),
    Rule(Access.WRITE, f"lan/+/{ME}/#"),
    Rule(Access.WRITE, f"update/{ME}/+/device"),
)
EDGE = (
    *MEMBER,
    Rule(Access.READ, "assign/+"),
    Rule(Access.READ, "adapter/#"),
    Rule(Access.READ, f"lan/{ME}/#"),
    Rule(Access.WRITE, f"lan/+/{ME}/#"),
    Rule(Access.READ, f"wan/{ME}/#"),
    Rule(Access.WRITE, f"wan/+/{ME}/#"),
    Rule(Access.BOTH, "checkpoint/#", retained=True),
    Rule(Access.WRITE, "update/+/+/edge"),
)
CLOUD = (
    *MEMBER,
    Rule(Access.READ, "state/+"),
    Rule(Access.READ, "metrics/+"),
    Rule(Access.READ, f"wan/{ME}/#"),
    Rule(Access.WRITE, f"wan/+/{ME}/#"),
    Rule(Access.READ, "update/#"),
    Rule(Access.WRITE, "round", retained=True),
    Rule(Access.WRITE, "assign/+", retained=True),
    Rule(Access.WRITE, "adapter/#", retained=True),
    Rule(Access.READ, "adapter/+/head"),
    Rule(Access.WRITE, "events"),
    Rule(Access.READ, "command"),
    Rule(Access.WRITE, "command/+"),
)
OPERATOR = (
    Rule(Access.READ, "state/+"),
    Rule(Access.READ, "metrics/+"),
    Rule(Access.READ, "events"),
    Rule(Access.READ, "round"),
    Rule(Access.READ, "assign/+"),
    Rule(Access.READ, "adapter/#"),
    Rule(Access.WRITE, "command"),
    Rule(Access.READ, "command/+"),
)
RECORDER = (Rule(Access.READ, "#"),)
ROLES = {"device": DEVICE, "edge": EDGE, "cloud": CLOUD, "operator": OPERATOR, "recorder": RECORDER}
"""Rules by role; what a bridge may do follows from what it carries."""


@dataclass(frozen=True, kw_only=True)
class Users:
    """The users of a broker by what they do; whoever is not named is a device.

    Args:
        edges: edges.
        cloud: the cloud.
        operators: people who watch the fleet and command the cloud.
        recorders: people who record everything; a tape holds activations and checkpoints.
        bridges: bridges of other sites that log in here.
        devices: devices, for brokers that want each user written down.
    """

    edges: tuple[str, ...] = ()
    cloud: str = "cloud"
    operators: tuple[str, ...] = ()
    recorders: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse names that mean something else to a broker, and one user in two roles.

        Raises:
            UsageError: a name cannot be used, or is there twice.
        """
        names = [name for _, name in self.named()] + list(self.devices)
        for name in names:
            check_user(name)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(
                f"user {twice[0]} is named twice", fix="give everyone one role and a name of its own"
            )

    def named(self) -> Iterator[tuple[str, str]]:
        """Role and name of each user that is more than a device."""
        for role, names in (
            ("edge", self.edges),
            ("cloud", (self.cloud,)),
            ("operator", self.operators),
            ("recorder", self.recorders),
            ("bridge", self.bridges),
        ):
            for name in names:
                yield role, name


def check_user(name: str) -> str:
    """Return a user's name if it can stand in topics and files.

    Raises:
        UsageError: it cannot.
    """
    if AGENT_ID.fullmatch(name) is None:
        raise UsageError(
            f"user {name!r} cannot be named in access rules",
            fix="use 1 to 23 of the characters A-Z a-z 0-9 _ -, the same as the agent's --id",
        )
    return name


def plain_topics(fleet: str, prefix: str) -> Topics:
    """The fleet's topics, if they mean the same in every broker's configuration.

    Raises:
        UsageError: the prefix has characters that some broker reads as something else, or is no prefix.
    """
    if PLAIN.fullmatch(prefix) is None:
        raise UsageError(
            f"topic prefix {prefix!r} has characters that mean something in broker configurations",
            fix="use letters, digits and . : @ _ - between the slashes",
        )
    return Topics(fleet, prefix)
