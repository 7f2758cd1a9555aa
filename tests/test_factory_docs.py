"""What pages say about bridges and access is what the code does."""

import re
from pathlib import Path

import pytest

from iotsplit.topics import Topics
from iotsplit_broker.configuration.access import DEVICE, ME, ROLES
from iotsplit_broker.configuration.crossings import crossings
from iotsplit_broker.configuration.mosquitto_acl import acl_lines

ROOT = Path(__file__).parents[1]


def test_the_page_shows_what_a_bridge_carries() -> None:
    page = (ROOT / "docs" / "factory.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\S+)` \| (out|in) \| (.+) \|$", page, re.MULTILINE)
    assert rows == [(each.path, str(each.way), each.why) for each in crossings()]


@pytest.mark.parametrize("role", ["everyone", "edge", "cloud", "operator"])
def test_the_page_shows_who_may_do_what(role: str) -> None:
    page = (ROOT / "broker" / "README.md").read_text(encoding="utf-8")
    [(says, hears)] = re.findall(rf"^\| {role} \| (.+) \| (.+) \|$", page, re.MULTILINE)
    rules = DEVICE if role == "everyone" else [rule for rule in ROLES[role] if rule not in DEVICE]
    expected = [(rule.access, rule.path.replace(ME, "<me>")) for rule in rules]
    assert set(re.findall(r"`(\S+)`", says)) == {path for access, path in expected if access.writes}
    assert set(re.findall(r"`(\S+)`", hears)) == {path for access, path in expected if access.reads}


def test_the_page_about_brokers_shows_a_devices_rules() -> None:
    page = (ROOT / "docs" / "brokers.md").read_text(encoding="utf-8")
    assert re.findall(r"^pattern .+$", page, re.MULTILINE) == acl_lines(DEVICE, Topics("default"), "")
