"""The access list of a Mosquitto."""

from collections.abc import Sequence

from iotsplit.topics import Topics
from iotsplit_broker.configuration.access import DEVICE, ROLES, Rule, Users


def mosquitto_acl(topics: Topics, users: Users, *, bridge: Sequence[Rule]) -> str:
    """The file for ``acl_file``.

    Its patterns hold for every user, so they give what a device needs and no more; whoever needs more has a
    section. A user that is not named is a device.

    Args:
        topics: of the fleet.
        users: who is more than a device.
        bridge: what a bridge's user may do.
    """
    lines = [
        "# Every user, so every device: its own topics and nothing else. The user's name is the agent's --id.",
        "# Mosquitto warns that adapter/# has no %u: it is for all.",
        *acl_lines(DEVICE, topics, "%u"),
    ]
    for role, name in users.named():
        more = [rule for rule in {**ROLES, "bridge": bridge}[role] if rule not in DEVICE]
        lines += ["", f"# {role}", *acl_lines(more, topics, name)]
    return "\n".join(lines) + "\n"


def acl_lines(rules: Sequence[Rule], topics: Topics, name: str) -> list[str]:
    """Lines that allow it: to every user what a device needs, to `name` alone what is more.

    Args:
        rules: what to allow, below the fleet's root.
        topics: of the fleet.
        name: the user's.
    """
    patterns = [f"pattern {_line(rule.of('%u'), topics)}" for rule in rules if rule in DEVICE]
    more = [f"topic {_line(rule.of(name), topics)}" for rule in rules if rule not in DEVICE]
    return [*patterns, f"user {name}", *more] if more else patterns


def _line(rule: Rule, topics: Topics) -> str:
    return f"{rule.access} {rule.below(topics).path}"
