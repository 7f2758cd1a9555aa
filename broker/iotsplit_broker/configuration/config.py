"""``iotsplit broker config``: what a broker has to be told to carry fleets well and to confine their agents."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from iotsplit.errors import UsageError
from iotsplit.options import CommonOptions, parse
from iotsplit.runtime.address import identity_of
from iotsplit.topics import Topics
from iotsplit_broker.configuration import output
from iotsplit_broker.configuration.access import Rule, Users, plain_topics
from iotsplit_broker.configuration.aws_iot import aws_notes, aws_policies
from iotsplit_broker.configuration.crossings import bridge_rules, crossings
from iotsplit_broker.configuration.emqx import ACL as EMQX_ACL
from iotsplit_broker.configuration.emqx import emqx_acl, emqx_conf
from iotsplit_broker.configuration.hivemq import hivemq_config, hivemq_credentials
from iotsplit_broker.configuration.mosquitto_acl import mosquitto_acl
from iotsplit_broker.settings import AUTOSAVE_S, MAX_MESSAGE_BYTES, BrokerSettings, mosquitto_conf

EXAMPLES = (
    "iotsplit broker config --for mosquitto --edges edge-1,edge-2 --operators anna --output mosquitto",
    "iotsplit broker config --for mosquitto --bridges plant7-out,plant7-in --topic-prefix plant7/",
    "iotsplit broker config --for aws-iot --arn arn:aws:iot:eu-central-1:123456789012 --output aws",
)
ACL, CONF, MORE = "iotsplit.acl", "mosquitto.conf", "conf.d"
ARN = re.compile(r"arn:[a-z-]+:iot:[A-Za-z0-9-]+:[A-Za-z0-9-]+")
ADDRESS = re.compile(r"[A-Za-z0-9.:_-]+")


class Target(StrEnum):
    """Which broker."""

    MOSQUITTO = "mosquitto"
    EMQX = "emqx"
    HIVEMQ = "hivemq"
    AWS_IOT = "aws-iot"


@dataclass(frozen=True, kw_only=True)
class ConfigOptions(CommonOptions):
    """The configuration.

    Writes listener, limits, persistence, TLS and access rules that fleets need. Every user is confined to the
    topics of the device of its name, unless it is named here as something else. The one for Mosquitto is run by
    iotsplit's tests; the others are written from their vendors' documentation.

    Args:
        for_: Broker: mosquitto, emqx, hivemq (CE) or aws-iot.
        fleet: Name of the fleet, the word that its topics begin with.
        topic_prefix: What this broker wants in front of every topic, such as plant7/line3/.
        edges: Users that are edges.
        cloud: User that is the cloud.
        operators: Users that are people who watch the fleet and command the cloud.
        recorders: Users that may hear everything, for iotsplit record.
        bridges: Users that are bridges of other sites to this broker, two for each site: out and in.
        cloud_standby: Edges at this broker that the other sites' bridges serve; as in broker bridge.
        devices: Users that are devices; only HiveMQ wants them written down.
        port: TCP port.
        host: Address to listen on.
        users_file: Mosquitto's users and password hashes; by default users beside its configuration.
        cert_file: Certificate of the broker; with it the port speaks TLS.
        key_file: Private key of that certificate.
        directory: Where Mosquitto keeps retained messages.
        install_dir: Where Mosquitto's configuration will lie; by default --output, else /etc/mosquitto.
        max_message_bytes: Largest message accepted.
        autosave_s: Seconds of retained messages that a power cut may cost (Mosquitto).
        arn: What AWS resources begin with: arn:aws:iot:REGION:ACCOUNT.
        output: Directory to write the files to; by default they are printed.
        force: Overwrite files that are there.
    """

    for_: Target
    fleet: str = "default"
    topic_prefix: str = ""
    edges: tuple[str, ...] = ()
    cloud: str = "cloud"
    operators: tuple[str, ...] = ()
    recorders: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ()
    cloud_standby: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    port: int = 1883
    host: str = "0.0.0.0"  # noqa: S104 - a site's broker is there for the site
    users_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    directory: Path = Path("/var/lib/mosquitto")
    install_dir: Path | None = None
    max_message_bytes: int = MAX_MESSAGE_BYTES
    autosave_s: int = AUTOSAVE_S
    arn: str = "arn:aws:iot:REGION:ACCOUNT"
    output: Path | None = None
    force: bool = False

    @property
    def place(self) -> Path:
        """Where Mosquitto will find its files."""
        return self.install_dir or self.output or Path("/etc/mosquitto")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the options come to, checked."""

    options: ConfigOptions
    settings: BrokerSettings
    topics: Topics
    users: Users
    bridge: tuple[Rule, ...]


def main(words: Sequence[str]) -> int:
    """Write a broker's configuration."""
    options = parse(ConfigOptions, words, name="iotsplit broker config", examples=EXAMPLES)
    texts = texts_of(options)
    if options.output is None:
        output.show(texts, as_json=options.json)
        return 0
    paths = {options.output / name: text for name, text in texts.items()}
    output.write(paths, force=options.force, secret=False, as_json=options.json)
    if options.for_ is Target.MOSQUITTO and options.place == options.output:
        (options.output / MORE).mkdir(exist_ok=True)
    return 0


def texts_of(options: ConfigOptions) -> dict[str, str]:
    """The files, by name.

    Raises:
        UsageError: an option does not fit.
    """
    return TARGETS[options.for_](plan_of(options))


def plan_of(options: ConfigOptions) -> Plan:
    """The options, checked.

    Raises:
        UsageError: one does not fit.
    """
    identity_of(options.cert_file, options.key_file)  # refuses one without the other
    if options.port == 0:
        raise UsageError("port 0 is none", fix="name the port that agents will be given")
    if ADDRESS.fullmatch(options.host) is None:
        raise UsageError(
            f"host {options.host!r} is no address", fix="name an address of this machine, or 0.0.0.0"
        )
    if ARN.fullmatch(options.arn) is None:
        raise UsageError(
            f"{options.arn!r} is not the beginning of an ARN", fix="write arn:aws:iot:REGION:ACCOUNT"
        )
    for path in (options.users_file, options.cert_file, options.key_file, options.directory, options.place):
        if path is not None and re.search(r"[\x00-\x1f\"<>&]", str(path)):
            raise UsageError(f"path {str(path)!r} cannot stand in a configuration", fix="choose a plain one")
    settings = BrokerSettings(
        directory=options.directory,
        host=options.host,
        port=options.port,
        users_file=options.users_file or options.place / "users",
        cert_file=options.cert_file,
        key_file=options.key_file,
        max_message_bytes=options.max_message_bytes,
        autosave_s=options.autosave_s,
        acl_file=options.place / ACL,
        include_dir=options.place / MORE,
    )
    users = Users(
        edges=options.edges,
        cloud=options.cloud,
        operators=options.operators,
        recorders=options.recorders,
        bridges=options.bridges,
        devices=options.devices,
    )
    carried = crossings(cloud=options.cloud, standby=options.cloud_standby)
    topics = plain_topics(options.fleet, options.topic_prefix)
    return Plan(options=options, settings=settings, topics=topics, users=users, bridge=bridge_rules(carried))


def _for_mosquitto(plan: Plan) -> dict[str, str]:
    conf = mosquitto_conf(plan.settings)
    return {CONF: conf, ACL: mosquitto_acl(plan.topics, plan.users, bridge=plan.bridge)}


def _for_emqx(plan: Plan) -> dict[str, str]:
    return {
        "emqx.conf": emqx_conf(plan.settings),
        EMQX_ACL: emqx_acl(plan.topics, plan.users, bridge=plan.bridge),
    }


def _for_hivemq(plan: Plan) -> dict[str, str]:
    credentials = hivemq_credentials(plan.topics, plan.users, bridge=plan.bridge)
    return {"config.xml": hivemq_config(plan.settings), "credentials.xml": credentials}


def _for_aws_iot(plan: Plan) -> dict[str, str]:
    return {
        **aws_policies(plan.topics, plan.options.arn, bridge=plan.bridge),
        "NOTES.md": aws_notes(plan.topics),
    }


TARGETS: dict[Target, Callable[[Plan], dict[str, str]]] = {
    Target.MOSQUITTO: _for_mosquitto,
    Target.EMQX: _for_emqx,
    Target.HIVEMQ: _for_hivemq,
    Target.AWS_IOT: _for_aws_iot,
}
