"""Configuration of an EMQX 5: a snippet for ``emqx.conf`` and an ACL file.

Written from the vendor's documentation (docs.emqx.com: configuration, acl.conf, authorization); not run here.
"""

from collections.abc import Sequence

from iotsplit.topics import Topics
from iotsplit_broker.configuration.access import DEVICE, ROLES, Rule, Users
from iotsplit_broker.settings import MAX_QUEUED_MESSAGES, BrokerSettings

ACL = "iotsplit-acl.conf"
INFLIGHT = 100


def emqx_conf(settings: BrokerSettings) -> str:
    """HOCON for ``emqx.conf``.

    Args:
        settings: address, limits and TLS; the directories are EMQX's own.
    """
    largest = -(-settings.max_message_bytes // 1024)
    return f"""\
# For etc/emqx.conf of EMQX 5. From its documentation, not run by iotsplit's tests.
{_listener(settings)}
mqtt {{
  max_packet_size = "{largest}KB"
  max_inflight = {INFLIGHT}
  # EMQX drops the oldest beyond this, and says nothing.
  max_mqueue_len = {MAX_QUEUED_MESSAGES}
  retain_available = true
  wildcard_subscription = true
  # Else any user could throw out another by its client id. So each program logs in as a user of its own.
  use_username_as_clientid = true
}}
retainer {{
  enable = true
  msg_expiry_interval = "0s"
  max_payload_size = "{largest}KB"
  backend {{
    type = built_in_database
    storage_type = disc
    max_retained_messages = 0
  }}
}}
# Users are made in the dashboard, or by the API of this database.
authentication = [
  {{
    mechanism = password_based
    backend = built_in_database
    user_id_type = username
  }}
]
authorization {{
  no_match = deny
  deny_action = ignore
  sources = [
    {{ type = file, enable = true, path = "etc/{ACL}" }}
  ]
}}
"""


def _listener(settings: BrokerSettings) -> str:
    kind = "tcp" if settings.cert_file is None else "ssl"
    lines = [f"listeners.{kind}.default {{", f'  bind = "{settings.host}:{settings.port}"']
    lines += [
        "  # Small acknowledged messages wait for a timer without this.",
        "  tcp_options { nodelay = true }",
    ]
    if settings.cert_file is not None:
        lines.append(f'  ssl_options {{ certfile = "{settings.cert_file}", keyfile = "{settings.key_file}" }}')
        lines += ["}", "listeners.tcp.default { enable = false"]
    return "\n".join([*lines, "}"])


def emqx_acl(topics: Topics, users: Users, *, bridge: Sequence[Rule]) -> str:
    """The ACL file: Erlang terms, the first that fits decides."""
    lines = [
        f"%% For etc/{ACL} of EMQX 5. From its documentation, not run by iotsplit's tests.",
        "%% Every user, so every device: its own topics and nothing else. The user's name is the agent's --id.",
        *(_term("all", rule.of("${username}"), topics) for rule in DEVICE),
    ]
    for role, name in users.named():
        who = f'{{username, "{name}"}}'
        lines += ["", f"%% {role}"]
        more = (rule for rule in {**ROLES, "bridge": bridge}[role] if rule not in DEVICE)
        lines += [_term(who, rule.of(name), topics) for rule in more]
    return "\n".join([*lines, "", "{deny, all}."]) + "\n"


def _term(who: str, rule: Rule, topics: Topics) -> str:
    action = {(True, True): "all", (True, False): "subscribe", (False, True): "publish"}
    return f'{{allow, {who}, {action[rule.access.reads, rule.access.writes]}, ["{rule.below(topics).path}"]}}.'
