"""Policies for AWS IoT Core, one for each role, and what to know about its limits.

Written from the vendor's documentation (docs.aws.amazon.com/iot: policy variables, policy actions, quotas); not
run here.
"""

import json
from collections.abc import Iterator, Mapping, Sequence

from iotsplit.errors import UsageError
from iotsplit.plan import Tier
from iotsplit.topics import Topics
from iotsplit_broker.configuration.access import ROLES, Rule

THING = "${iot:Connection.Thing.ThingName}"
VERSION = "2012-10-17"
MAX_CLIENT_ID = 23
MAX_POLICY = 2048
"""Characters of a policy document, whitespace not counted (docs.aws.amazon.com/general: IoT Core quotas)."""

Statement = Mapping[str, object]


def aws_policies(topics: Topics, arn: str, *, bridge: Sequence[Rule]) -> dict[str, str]:
    """Policy documents for each tier and for bridges, by file name; all of a role's belong together.

    Args:
        topics: of the fleet.
        arn: what every resource begins with, ``arn:aws:iot:<region>:<account>``.
        bridge: what a bridge may do.

    Raises:
        UsageError: topics are too long for a policy.
    """
    clients = {f"{tier}": (ROLES[tier], f"{tier[0]}-{topics.fleet}-{THING}") for tier in Tier}
    clients["bridge"] = (tuple(bridge), f"{THING}-*")
    files: dict[str, str] = {}
    for role, (rules, client) in clients.items():
        for number, document in enumerate(policies(rules, client, topics, arn), start=1):
            files[f"{role}-policy-{number}.json"] = json.dumps(document, indent=2) + "\n"
    return files


def policies(rules: Sequence[Rule], client: str, topics: Topics, arn: str) -> list[Mapping[str, object]]:
    """What the rules allow to the thing of the certificate, and nothing else; `client` is its client id."""
    rules = [rule.of(THING).below(topics) for rule in rules]
    connect = {
        "Effect": "Allow",
        "Action": ["iot:Connect"],
        "Resource": [f"{arn}:client/{client}"],
        "Condition": {"Bool": {"iot:Connection.Thing.IsAttached": ["true"]}},
    }
    documents: list[list[Statement]] = [[]]
    for statement in (connect, *_statements(rules, arn)):
        if _size([statement]) > MAX_POLICY:
            raise UsageError(
                f"topics below {topics.root} are too long for a policy of AWS IoT",
                fix="use a shorter --topic-prefix",
            )
        if _size([*documents[-1], statement]) > MAX_POLICY:
            documents.append([])
        documents[-1].append(statement)
    return [_document(statements) for statements in documents]


def _document(statements: Sequence[Statement]) -> Mapping[str, object]:
    return {"Version": VERSION, "Statement": statements}


def _size(statements: Sequence[Statement]) -> int:
    return len(json.dumps(_document(statements), separators=(",", ":")))


def _statements(rules: list[Rule], arn: str) -> Iterator[Statement]:
    writes = [f"{arn}:topic/{_topic(rule.path)}" for rule in rules if rule.access.writes]
    keeps = [f"{arn}:topic/{_topic(rule.path)}" for rule in rules if rule.access.writes and rule.retained]
    subscribes = [f"{arn}:topicfilter/{_topic(rule.path)}" for rule in rules if rule.access.reads]
    receives = [f"{arn}:topic/{_topic(rule.path)}" for rule in rules if rule.access.reads]
    for action, resources in (
        ("iot:Publish", writes),
        ("iot:RetainPublish", keeps),
        ("iot:Subscribe", subscribes),
        ("iot:Receive", receives),
    ):
        yield {"Effect": "Allow", "Action": [action], "Resource": resources}


def _topic(path: str) -> str:
    """A filter as a policy's pattern: there + and # are letters, and * is anything.

    A * also takes slashes. That lets nobody further: topics of another depth are refused by every agent.
    """
    return path.replace("+", "*").replace("#", "*")


def aws_notes(topics: Topics) -> str:
    """What to do with the policies, and the limits of the service."""
    room = MAX_CLIENT_ID - len(topics.fleet) - len("d--")
    return f"""\
# AWS IoT Core for the iotsplit fleet {topics.fleet}

From the vendor's documentation; not run by iotsplit's tests.

1. Make a thing for each agent, named as its --id, and attach one certificate to it, exclusively
   (`aws iot attach-thing-principal --thing-principal-type EXCLUSIVE_THING`): only then may the client id,
   which is <first letter of the role>-{topics.fleet}-<id>, differ from the thing's name.
2. Keep ids at {max(room, 0)} characters or less: longer client ids are shortened, and the policy refuses them.
3. `aws iot create-policy --policy-name iotsplit-device-1 --policy-document file://device-policy-1.json`, and
   likewise the others. Attach all of a role to its certificates: the rules of a role are in several, because a
   policy has {MAX_POLICY} characters at most.
4. Agents then connect by themselves: `--broker mqtts://ENDPOINT:8883 --ca-file AmazonRootCA1.pem --cert-file …
   --key-file … --profile aws`. Or they talk to a Mosquitto of yours, and only that one to AWS: `iotsplit broker
   bridge --cert-file … --key-file … --name THING`, with bridge-policy-1.json.

Limits: a message of 128 KB (chunks are 60 KiB); 100 publishes and 512 KB a second for each connection, so a
bridge is no faster than that; 50 subscriptions for each connection and 8 in one SUBSCRIBE; 7 slashes in a
topic, of which ours take 5: a prefix has two words at most; no QoS 2.
"""
