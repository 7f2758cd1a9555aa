"""What our broker is told, and the Mosquitto configuration that follows from it."""

from dataclasses import dataclass
from pathlib import Path

from iotsplit.errors import UsageError

LOOPBACK = "127.0.0.1"
MAX_MESSAGE_BYTES = 1024 * 1024
LARGEST_MQTT_BYTES = 268_435_455  # of the standard
AUTOSAVE_S = 10
LARGEST_AUTOSAVE_S = 86_400
MAX_QUEUED_MESSAGES = 100_000
MAX_QUEUED_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class BrokerSettings:
    """A broker of our own.

    Args:
        directory: holds its retained messages and its log; created if missing.
        host: address to listen on.
        port: TCP port; 0 for a free one.
        users_file: users and password hashes, made by mosquitto_passwd; without it everybody may connect.
        cert_file: certificate of the broker; with it the port speaks TLS.
        key_file: private key of that certificate.
        client_ca_file: authority whose certificate every client has to show (Mosquitto); needs a certificate.
        max_message_bytes: largest payload accepted.
        autosave_s: seconds between two savings of all retained messages.
        acl_file: who may say and hear what (Mosquitto); without it every user may everything.
        include_dir: directory with further settings (Mosquitto), such as a bridge.
    """

    directory: Path
    host: str = LOOPBACK
    port: int = 0
    users_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None
    max_message_bytes: int = MAX_MESSAGE_BYTES
    autosave_s: int = AUTOSAVE_S
    acl_file: Path | None = None
    include_dir: Path | None = None

    def __post_init__(self) -> None:
        """Refuse values that no broker takes, naming the setting.

        Raises:
            UsageError: a value is out of its range.
        """
        _within("port", self.port, 0, 65535)
        _within("max_message_bytes", self.max_message_bytes, 1, LARGEST_MQTT_BYTES)
        _within("autosave_s", self.autosave_s, 1, LARGEST_AUTOSAVE_S)

    @property
    def scheme(self) -> str:
        """How clients address it."""
        return "mqtt" if self.cert_file is None else "mqtts"


def _within(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UsageError(f"{name} {value} is out of range", fix=f"use {least} to {most}")


def mosquitto_conf(settings: BrokerSettings, *, user: str | None = None) -> str:
    """The configuration file.

    Args:
        settings: with a port that is not 0.
        user: user that Mosquitto changes to when root starts it; None leaves its own default.
    """
    lines = [
        f"listener {settings.port} {settings.host}",
        f"allow_anonymous {_word(settings.users_file is None)}",
        *_named("password_file", settings.users_file),
        *_access(settings.acl_file),
        *_named("certfile", settings.cert_file),
        *_named("keyfile", settings.key_file),
        *_named("cafile", settings.client_ca_file),
        *([] if settings.client_ca_file is None else ["require_certificate true"]),
        f"message_size_limit {settings.max_message_bytes}",
        "# Small acknowledged messages take 88 ms a round trip without this.",
        "set_tcp_nodelay true",
        "max_inflight_messages 100",
        "# Not 0: some versions then drop everything that does not go out at once.",
        f"max_queued_messages {MAX_QUEUED_MESSAGES}",
        f"max_queued_bytes {MAX_QUEUED_BYTES}",
        "persistence true",
        f"persistence_location {settings.directory.resolve()}/",
        "# What a power cut may cost; 30 minutes by default. Saving on each change would be the safest,",
        "# but every acknowledged message is a change and all is written anew: 10 MiB/s instead of 160.",
        "autosave_on_changes false",
        f"autosave_interval {settings.autosave_s}",
        "persistent_client_expiration 14d",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "connection_messages false",
        *([] if user is None else [f"user {user}"]),
        *_named("include_dir", settings.include_dir),
    ]
    return "\n".join(lines) + "\n"


def rumqttd_conf(settings: BrokerSettings) -> str:
    """The configuration of the embedded broker.

    Its segments hold what subscribers have not yet read: once they are full the oldest is dropped without a
    word, so they are large.
    """
    return f"""\
id = 0

[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = {100 * 1024 * 1024}
max_segment_count = 10

[v4.1]
name = "iotsplit"
listen = "{settings.host}:{settings.port}"
next_connection_delay_ms = 1

[v4.1.connections]
connection_timeout_ms = 60000
max_payload_size = {max(settings.max_message_bytes, MAX_MESSAGE_BYTES)}
max_inflight_count = 100
dynamic_filters = true
"""


def _access(acl_file: Path | None) -> list[str]:
    if acl_file is None:
        return []
    return [
        f"acl_file {acl_file.resolve()}",
        "# Else any user could throw out another by its client id. So each program is a user of its own.",
        "use_username_as_clientid true",
    ]


def _named(key: str, path: Path | None) -> list[str]:
    return [] if path is None else [f"{key} {path.resolve()}"]


def _word(value: bool) -> str:
    return "true" if value else "false"
