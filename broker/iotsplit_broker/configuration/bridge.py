"""``iotsplit broker bridge``: a Mosquitto bridge between a site and the cloud's broker."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iotsplit.errors import UsageError, UserError
from iotsplit.options import BrokerOptions, CommonOptions, parse
from iotsplit.runtime.address import BrokerAddress, identity_of, shortened
from iotsplit_broker.configuration import output
from iotsplit_broker.configuration.access import check_user, plain_topics
from iotsplit_broker.configuration.bridge_section import MAX_NAME, Bridge, Protocol, bridge_section
from iotsplit_broker.configuration.crossings import Crossing, crossings, price_of_standby
from iotsplit_broker.configuration.version import speaks_v5

EXAMPLES = (
    "iotsplit broker bridge --local mqtt://127.0.0.1 --remote mqtt://10.0.0.5 --prefix plant7/",
    "iotsplit broker bridge --config bridge.toml --output /etc/mosquitto/conf.d/iotsplit.conf",
)


@dataclass(frozen=True, kw_only=True)
class BridgeOptions(CommonOptions):
    """The bridge.

    Writes a section for the mosquitto.conf of the site with devices and edges. It carries what the cloud needs
    and what it says; never lan nor checkpoints, unless --cloud-standby names an edge on the far side.

    Args:
        local: Address of the Mosquitto that the section is for: mqtt://HOST:PORT.
        remote: Address of the cloud's broker: mqtt://HOST:PORT or mqtts://HOST:PORT.
        fleet: Name of the fleet, the word that its topics begin with.
        prefix: What the far broker wants in front of every topic, such as plant7/.
        local_prefix: What the local broker wants in front of every topic.
        name: Client id of this site at the far broker, less -out or -in; by default iotsplit- and the fleet.
            Sites of one fleet need one each.
        cloud: The cloud's --id.
        edges: Edges of this site; without, what the cloud says to the edges of every site comes in.
        cloud_standby: Edges on the far side that stand in when all edges here are lost, as --id names them;
            costs privacy and bytes.
        protocol: MQTT version: v5, v311 (3.1.1), or auto to ask both brokers.
        user: User name at the far broker, or two: for out and in, where users are client ids (broker config).
        password_file: File with the password, alone on its first line; else it is in IOTSPLIT_PASSWORD.
        ca_file: Certificate authority that signed the far broker's certificate; Mosquitto reads it there.
        cert_file: Certificate of the bridge, where the far broker wants one (AWS IoT).
        key_file: Private key of that certificate.
        output: File to write; by default it is printed. With a password it has to be a file.
        force: Overwrite the file.
    """

    local: str
    remote: str
    fleet: str = "default"
    prefix: str = ""
    local_prefix: str = ""
    name: str = ""
    cloud: str = "cloud"
    edges: tuple[str, ...] = ()
    cloud_standby: tuple[str, ...] = ()
    protocol: Protocol = Protocol.AUTO
    user: tuple[str, ...] = ()
    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    output: Path | None = None
    force: bool = False


def main(words: Sequence[str]) -> int:
    """Write a bridge section."""
    options = parse(BridgeOptions, words, name="iotsplit broker bridge", examples=EXAMPLES)
    bridge, carried = bridge_of(options)
    price = price_of_standby(options.cloud_standby)
    text = bridge_section(bridge, carried, notes=[*notes_of(options), *price])
    for line in price:
        sys.stderr.write(f"iotsplit: {line}\n")
    is_secret = bridge.password is not None
    if options.output is not None:
        output.write({options.output: text}, force=options.force, secret=is_secret, as_json=options.json)
    elif is_secret:
        raise UsageError(
            "the section holds a password", fix="name a file with --output; it is made readable for you only"
        )
    else:
        output.show({"bridge.conf": text}, as_json=options.json)
    return 0


def bridge_of(options: BridgeOptions) -> tuple[Bridge, tuple[Crossing, ...]]:
    """The bridge that the options mean, and what it carries.

    Raises:
        UserError: an option does not fit, or the version has to be asked for and nobody answers.
    """
    local = BrokerAddress.parse(options.local)
    identity = identity_of(options.cert_file, options.key_file)
    remote = BrokerAddress.parse(options.remote, ca_file=options.ca_file, identity=identity)
    users = _users(options.user or ((remote.user,) if remote.user else ()))
    password = BrokerOptions(password_file=options.password_file).password()
    if users is None and options.password_file is None:
        password = None  # IOTSPLIT_PASSWORD may be for somebody else
    if (local.host, local.port) == (remote.host, remote.port):
        raise UsageError(
            f"{local} is both ends of the bridge", fix="name two brokers with --local and --remote"
        )
    here, there = plain_topics(options.fleet, options.local_prefix), plain_topics(options.fleet, options.prefix)
    for name in (options.cloud, *options.edges, *options.cloud_standby):
        check_user(name)
    both = set(options.edges) & set(options.cloud_standby)
    if both:
        raise UsageError(f"edge {min(both)} is on both sides", fix="name it in --edges or in --cloud-standby")
    bridge = Bridge(
        name=options.name or shortened(f"iotsplit-{options.fleet}", MAX_NAME),
        remote=remote,
        here=here,
        there=there,
        protocol=_version(options.protocol, local, remote),
        users=users,
        password=password,
    )
    return bridge, crossings(cloud=options.cloud, edges=options.edges, standby=options.cloud_standby)


def _users(given: tuple[str, ...]) -> tuple[str, str] | None:
    if len(given) > len(("out", "in")):
        raise UsageError(f"{len(given)} users are given", fix="name one, or one for out and one for in")
    return (given[0], given[-1]) if given else None


def notes_of(options: BridgeOptions) -> list[str]:
    """What people see at the top."""
    return [
        f"Carries the fleet {options.fleet} between {options.local} (here) and {options.remote}.",
        "Made by iotsplit broker bridge: for mosquitto.conf, or a file in its include_dir.",
    ]


def _version(wanted: Protocol, local: BrokerAddress, remote: BrokerAddress) -> Protocol:
    if wanted is not Protocol.AUTO:
        return wanted
    from iotsplit.runtime.connection import explain  # noqa: PLC0415 - brings paho, which help needs not

    try:
        both = all(speaks_v5(address, explain) for address in (local, remote))
    except UserError as error:
        raise type(error)(
            error.message, fix="start it, or say --protocol v5 or v311 for the two brokers"
        ) from None
    return Protocol.V5 if both else Protocol.V311
