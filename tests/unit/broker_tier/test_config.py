"""Configurations for other people's brokers: well formed, confined, and refused where they cannot work."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from iotsplit.errors import UsageError
from iotsplit_broker.configuration.config import main

WHO = ["--edges=edge-1", "--operators=anna", "--bridges=plant7", "--devices=press", "--fleet=f"]


def files(capsys: pytest.CaptureFixture[str], target: str, *words: str) -> dict[str, str]:
    assert main([f"--for={target}", *WHO, *words, "--json"]) == 0
    found: dict[str, str] = json.loads(capsys.readouterr().out)["files"]
    return found


def test_mosquitto_gets_a_whole_configuration_and_an_access_list(capsys: pytest.CaptureFixture[str]) -> None:
    found = files(capsys, "mosquitto", "--cert-file=/etc/c.pem", "--key-file=/etc/k.pem", "--port=8883")
    assert found.keys() == {"mosquitto.conf", "iotsplit.acl"}
    assert {
        "listener 8883 0.0.0.0",
        "allow_anonymous false",
        "password_file /etc/mosquitto/users",
        "acl_file /etc/mosquitto/iotsplit.acl",
        "use_username_as_clientid true",
        "include_dir /etc/mosquitto/conf.d",
        "certfile /etc/c.pem",
    } <= set(found["mosquitto.conf"].splitlines())


def test_devices_are_confined_by_patterns_and_nobody_else_is_a_device(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sections = files(capsys, "mosquitto", "--topic-prefix=p/")["iotsplit.acl"].split("\nuser ")
    rules = [line for line in sections[0].splitlines() if not line.startswith("#") and line]
    assert {"pattern write p/iotsplit/f/lan/+/%u/#", "pattern read p/iotsplit/f/lan/%u/#"} <= set(rules)
    for rule in rules:
        assert rule.startswith("pattern ")
        assert "%u" in rule or rule == "pattern read p/iotsplit/f/adapter/#"
    assert [section.split("\n")[0] for section in sections[1:]] == ["edge-1", "cloud", "anna", "plant7"]
    assert "topic write p/iotsplit/f/wan/+/edge-1/#" in sections[1]
    assert "topic write p/iotsplit/f/command\n" in sections[3]
    assert "/lan/" not in sections[4]


def test_bridges_of_sites_with_a_standby_here_may_bring_its_lan(capsys: pytest.CaptureFixture[str]) -> None:
    told = files(capsys, "mosquitto", "--cloud-standby=spare")["iotsplit.acl"]
    assert "topic write iotsplit/f/lan/spare/+/+" in told
    assert "topic readwrite iotsplit/f/checkpoint/+/+/+" in told


def test_emqx_denies_what_is_not_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    found = files(capsys, "emqx", "--max-message-bytes=100000")
    conf, acl = found["emqx.conf"], found["iotsplit-acl.conf"]
    assert conf.count("{") == conf.count("}")
    assert 'max_packet_size = "98KB"' in conf
    assert "no_match = deny" in conf
    terms = [line for line in acl.splitlines() if line and not line.startswith("%%")]
    assert terms[-1] == "{deny, all}."
    assert '{allow, all, publish, ["iotsplit/f/lan/+/${username}/#"]}.' in terms
    assert '{allow, {username, "edge-1"}, subscribe, ["iotsplit/f/wan/edge-1/#"]}.' in terms


def test_emqx_with_a_certificate_has_no_plain_port(capsys: pytest.CaptureFixture[str]) -> None:
    conf = files(capsys, "emqx", "--cert-file=/c", "--key-file=/k")["emqx.conf"]
    assert "listeners.tcp.default { enable = false\n}" in conf.replace("{\n", "{ ").replace("{  ", "{ ")
    assert conf.count("{") == conf.count("}")


@pytest.mark.parametrize("words", [[], ["--cert-file=/c", "--key-file=/k"]])
def test_hivemq_is_well_formed_and_gives_each_user_a_role(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    found = files(capsys, "hivemq", *words)
    config = ET.fromstring(found["config.xml"])
    assert config.findtext("mqtt/packets/max-packet-size") == "1048576"
    assert config.find("listeners/tls-tcp-listener" if words else "listeners/tcp-listener") is not None
    access = ET.fromstring(found["credentials.xml"])
    roles = {user.findtext("name"): user.findtext("roles/id") for user in access.iterfind("users/user")}
    expected = {"edge-1": "edge", "cloud": "cloud", "anna": "operator", "plant7": "bridge", "press": "device"}
    assert roles == expected
    known = {role.findtext("id"): role for role in access.iterfind("roles/role")}
    assert set(roles.values()) <= known.keys()
    device = {each.findtext("topic"): each.findtext("activity") for each in known["device"].iter("permission")}
    assert device["iotsplit/f/lan/+/${{username}}/#"] == "PUBLISH"
    assert device["iotsplit/f/assign/${{username}}"] == "SUBSCRIBE"


def test_aws_confines_a_thing_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    arn = "arn:aws:iot:eu-central-1:123456789012"
    found = files(capsys, "aws-iot", f"--arn={arn}")
    assert {name.split("-")[0] for name in found} == {"device", "edge", "cloud", "bridge", "NOTES.md"}
    policies: dict[str, Any] = {name: json.loads(text) for name, text in found.items() if name != "NOTES.md"}
    assert all(len(json.dumps(each, separators=(",", ":"))) <= 2048 for each in policies.values())
    allowed = {
        each["Action"][0]: each["Resource"]
        for name in sorted(policies)
        if name.startswith("device")
        for each in policies[name]["Statement"]
    }
    thing = "${iot:Connection.Thing.ThingName}"
    assert allowed["iot:Connect"] == [f"{arn}:client/d-f-{thing}"]
    assert f"{arn}:topic/iotsplit/f/lan/*/{thing}/*" in allowed["iot:Publish"]
    kept = ("state/" + thing, f"probe/{thing}/*")
    assert allowed["iot:RetainPublish"] == [f"{arn}:topic/iotsplit/f/{path}" for path in kept]
    assert f"{arn}:topicfilter/iotsplit/f/lan/{thing}/*" in allowed["iot:Subscribe"]
    assert not [each for found in allowed.values() for each in found if "+" in each or "#" in each]


def test_topics_too_long_for_a_policy_of_aws_are_refused() -> None:
    with pytest.raises(UsageError, match="too long for a policy of AWS IoT; use a shorter --topic-prefix"):
        main(
            [
                "--for=aws-iot",
                "--arn=arn:aws:iot:eu-central-1:123456789012",
                f"--topic-prefix={'x' * 60}/{'y' * 60}/",
            ]
        )


def test_files_are_written_beside_each_other_and_mosquitto_finds_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = tmp_path / "etc"
    words = ["--for=mosquitto", *WHO, f"--output={place}"]
    main(words)
    assert capsys.readouterr().out.splitlines() == [str(place / "mosquitto.conf"), str(place / "iotsplit.acl")]
    assert f"acl_file {place / 'iotsplit.acl'}" in (place / "mosquitto.conf").read_text()
    assert (place / "conf.d").is_dir()
    (place / "mosquitto.conf").unlink()
    (place / "iotsplit.acl").write_text("mine")
    with pytest.raises(UsageError, match="is there"):
        main(words)
    assert not (place / "mosquitto.conf").exists()
    main([*words, "--force"])
    assert (place / "mosquitto.conf").exists()


def test_several_files_on_stdout_have_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--for=mosquitto"])
    told = capsys.readouterr().out
    assert told.startswith("==> mosquitto.conf <==\nlistener ")
    assert "\n\n==> iotsplit.acl <==\n" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--for=rabbitmq"], "rabbitmq"),
        ([], "needs --for"),
        (["--for=emqx", "--edges=a,a"], "user a is named twice"),
        (["--for=emqx", "--edges=cloud"], "user cloud is named twice"),
        (["--for=emqx", "--operators=a b"], "user 'a b' cannot be named"),
        (["--for=emqx", "--topic-prefix=p"], "topic prefix 'p' is not one"),
        (["--for=emqx", "--topic-prefix=%u/"], "characters that mean something"),
        (["--for=emqx", "--topic-prefix=${x}/"], "characters that mean something"),
        (["--for=mosquitto", "--cert-file=c"], "a certificate needs its key"),
        (["--for=mosquitto", "--port=0"], "port 0 is none"),
        (["--for=mosquitto", "--port=70000"], "port 70000 is out of range"),
        (["--for=mosquitto", "--host=a\nb"], "is no address"),
        (["--for=mosquitto", "--users-file=a\nb"], "cannot stand in a configuration"),
        (["--for=hivemq", "--cert-file=<a>", "--key-file=k"], "cannot stand in a configuration"),
        (["--for=aws-iot", "--arn=arn:aws:s3:::bucket"], "is not the beginning of an ARN"),
    ],
)
def test_what_cannot_work_is_refused(words: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        main(words)
