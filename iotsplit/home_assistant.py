"""How an agent appears in Home Assistant: one retained message of its MQTT device discovery. Pure.

https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload has the format. The message names
topics that the agent speaks on anyway; nothing else is written outside the fleet's root.
"""

import re
from typing import Any

import msgspec

from iotsplit.errors import UsageError
from iotsplit.packet import Packet
from iotsplit.plan import Tier
from iotsplit.states import Birth
from iotsplit.topics import Topics

PREFIX = "homeassistant"
"""Where Home Assistant looks unless it is told otherwise."""

# Templates that give nothing leave a number as it is: most messages of an agent do not hold all of them.
_ONLINE = "{{ 'online' if value_json.online else 'offline' }}"
_STATE = "{{ ('online' if value_json.online else value_json.problem or 'offline')[:255] }}"
_ROUND = "{{ value_json.round }}"
_LOSS = "{{ value_json.loss if value_json.loss is defined else '' }}"
_LOSS_OF = (
    "{{{{ value_json.loss if value_json.loss is defined and value_json.session is defined"
    " and value_json.session.split('-', 2)[2] == '{device}' else '' }}}}"
)
# Those of a session are counted apart, and are in those of the agent too.
_BYTES = (
    "{{{{ value_json.{name}.values() | sum"
    " if value_json.session is not defined and value_json.{name} is defined else '' }}}}"
)

_TRAFFIC = {"device_class": "data_size", "unit_of_measurement": "B", "state_class": "total_increasing"}


def check_prefix(prefix: str) -> str:
    """Return a discovery prefix if it can begin a topic.

    Raises:
        UsageError: it cannot.
    """
    if not re.fullmatch(r"[^/#+$\x00][^/#+\x00]*(/[^/#+\x00]+)*", prefix):
        raise UsageError(
            f"home_assistant {prefix!r} is not a topic prefix",
            fix=f"write the discovery prefix of Home Assistant's MQTT settings, mostly {PREFIX}",
        )
    return prefix


def topic_of(prefix: str, topics: Topics, agent: str) -> str:
    """Where an agent's discovery message lies; clearing it removes the agent from Home Assistant."""
    return f"{prefix}/device/{_node(topics, agent)}/config"


def discovery(prefix: str, topics: Topics, birth: Birth) -> Packet:
    """The message that makes an agent appear.

    Args:
        prefix: Home Assistant's discovery prefix.
        topics: of the agent's fleet.
        birth: the agent's.
    """
    node, root = _node(topics, birth.agent), topics.root
    state, metrics = f"{root}state/{birth.agent}", f"{root}metrics/{birth.agent}"
    is_device = birth.role is Tier.DEVICE
    loss = _LOSS_OF.format(device=birth.agent) if is_device else _LOSS
    components: dict[str, dict[str, Any]] = {
        "state": {
            "name": "State",
            "icon": "mdi:robot-industrial",
            "state_topic": state,
            "value_template": _STATE,
        },
        "round": _number("Round", f"{root}round", _ROUND, state) | {"icon": "mdi:counter"},
        # Whoever computes a session's loss says it: the cloud, or the device that keeps its labels.
        "loss": _number("Loss", f"{root}metrics/+", loss, state) | {"icon": "mdi:chart-line-variant"},
        "sent": _number("Sent", metrics, _BYTES.format(name="sent_bytes"), state) | _TRAFFIC,
        "received": _number("Received", metrics, _BYTES.format(name="received_bytes"), state) | _TRAFFIC,
    }
    for name, component in components.items():
        component |= {"platform": "sensor", "unique_id": f"{node}_{name}"}
    payload = {
        "device": {
            "identifiers": [node],
            "name": f"{birth.agent} ({topics.fleet})",
            "manufacturer": "iotsplit",
            "model": str(birth.role),
            "sw_version": birth.version,
        },
        "origin": {"name": "iotsplit", "sw_version": birth.version},
        "components": components,
        "qos": 0,
    }
    return Packet(
        topic=topic_of(prefix, topics, birth.agent), payload=msgspec.json.encode(payload), retain=True
    )


def _number(name: str, topic: str, template: str, state: str) -> dict[str, Any]:
    availability = [{"topic": state, "value_template": _ONLINE}]
    return {
        "name": name,
        "state_topic": topic,
        "value_template": template,
        "state_class": "measurement",
        "availability": availability,
    }


def _node(topics: Topics, agent: str) -> str:
    """A name that no other agent has, of the characters that are allowed there."""
    spelled = {"/": "_", "_": "__"}
    return re.sub(r"[^A-Za-z0-9-]", lambda found: spelled.get(found[0], "-"), f"{topics.root}{agent}")
