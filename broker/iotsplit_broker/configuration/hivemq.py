"""Configuration of a HiveMQ CE: ``config.xml``, and ``credentials.xml`` of its File RBAC extension.

Written from the vendor's documentation (docs.hivemq.com: configuration; hivemq/hivemq-file-rbac-extension); not
run here.
"""

from collections.abc import Iterator, Sequence

from iotsplit.topics import Topics
from iotsplit_broker.configuration.access import ROLES, Access, Rule, Users
from iotsplit_broker.settings import MAX_QUEUED_MESSAGES, BrokerSettings

HEAD = """\
<?xml version="1.0" encoding="UTF-8"?>
<!-- {} From its documentation, not run by iotsplit's tests. -->
"""
INFLIGHT = 100


def hivemq_config(settings: BrokerSettings) -> str:
    """``conf/config.xml``.

    Args:
        settings: address and limits; with a certificate, a TLS listener with a Java keystore.
    """
    return (
        HEAD.format("For conf/config.xml of HiveMQ CE.")
        + f"""\
<hivemq>
    <listeners>
{_listener(settings)}    </listeners>
    <mqtt>
        <queued-messages>
            <max-queue-size>{MAX_QUEUED_MESSAGES}</max-queue-size>
            <strategy>discard</strategy>
        </queued-messages>
        <retained-messages>
            <enabled>true</enabled>
        </retained-messages>
        <packets>
            <max-packet-size>{settings.max_message_bytes}</max-packet-size>
        </packets>
        <receive-maximum>
            <server-receive-maximum>{INFLIGHT}</server-receive-maximum>
        </receive-maximum>
    </mqtt>
    <persistence>
        <mode>file</mode>
    </persistence>
</hivemq>
"""
    )


def _listener(settings: BrokerSettings) -> str:
    kind = "tcp-listener" if settings.cert_file is None else "tls-tcp-listener"
    lines = [
        f"<{kind}>",
        f"    <port>{settings.port}</port>",
        f"    <bind-address>{settings.host}</bind-address>",
    ]
    if settings.cert_file is not None:
        lines += [
            f"    <!-- A Java keystore, made of {settings.cert_file} and {settings.key_file}. -->",
            "    <tls>",
            "        <keystore>",
            "            <path>conf/iotsplit.jks</path>",
            "            <password>${IOTSPLIT_KEYSTORE_PASSWORD}</password>",
            "            <private-key-password>${IOTSPLIT_KEYSTORE_PASSWORD}</private-key-password>",
            "        </keystore>",
            "    </tls>",
        ]
    return "".join(f"        {line}\n" for line in [*lines, f"</{kind}>"])


def hivemq_credentials(topics: Topics, users: Users, *, bridge: Sequence[Rule]) -> str:
    """``credentials.xml`` of the File RBAC extension; every user is written down, with its password's hash."""
    lines = [
        "<!-- Put in the hash of each password: java -jar hivemq-file-rbac-extension-….jar -p PASSWORD -->",
        "<!-- HiveMQ does not tie client ids to users: a stolen credential can throw out others. -->",
        "<file-rbac>",
        "    <users>",
    ]
    everyone = [*users.named(), *(("device", name) for name in users.devices)]
    for role, name in everyone:
        lines += [
            "        <user>",
            f"            <name>{name}</name>",
            f"            <password>HASH-OF-{name}</password>",
            f"            <roles><id>{role}</id></roles>",
            "        </user>",
        ]
    lines += ["    </users>", "    <roles>"]
    for role, rules in {**ROLES, "bridge": tuple(bridge)}.items():
        lines += ["        <role>", f"            <id>{role}</id>", "            <permissions>"]
        for rule in rules:
            lines += _permissions(rule.of("${{username}}").below(topics))
        lines += ["            </permissions>", "        </role>"]
    lines += ["    </roles>", "</file-rbac>"]
    return HEAD.format("For credentials.xml of HiveMQ's File RBAC extension.") + "\n".join(lines) + "\n"


def _permissions(rule: Rule) -> Iterator[str]:
    activity = {Access.READ: "SUBSCRIBE", Access.WRITE: "PUBLISH", Access.BOTH: "ALL"}[rule.access]
    retain = "<retain>NOT_RETAINED</retain>" if rule.access.writes and not rule.retained else ""
    inside = f"<topic>{rule.path}</topic><activity>{activity}</activity>{retain}"
    yield f"                <permission>{inside}</permission>"
