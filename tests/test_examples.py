"""The examples beside each tier are what the tier takes, and its README tells how it ends."""

import configparser
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from iotsplit import errors
from iotsplit.errors import MismatchError, RefusedError, UsageError, UserError
from iotsplit.options import parse
from iotsplit.runtime.serve import INTERRUPTED
from iotsplit_broker.run import BrokerCommand
from iotsplit_cloud.command import CloudOptions
from iotsplit_device.command import DeviceOptions
from iotsplit_edge.command import EdgeOptions

ROOT = Path(__file__).parents[1]
FOLDERS = {"device": "devices", "edge": "edge", "cloud": "cloud", "broker": "broker"}
AGENTS = ("device", "edge", "cloud")
OPTIONS: dict[str, type[Any]] = {
    "device": DeviceOptions,
    "edge": EdgeOptions,
    "cloud": CloudOptions,
    "broker": BrokerCommand,
}
WRITTEN = {"cloud": ("output",), "broker": ("directory",)}
every_tier = pytest.mark.parametrize("tier", FOLDERS)


def example(tier: str) -> Path:
    return ROOT / FOLDERS[tier] / f"{tier}.toml"


def read(tier: str, path: Path) -> Any:
    return parse(OPTIONS[tier], ["--config", str(path)], name=f"iotsplit {tier}", environment={})


def unit(tier: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, delimiters="=")
    parser.read_string((ROOT / FOLDERS[tier] / f"{tier}.service").read_text("utf-8"))
    return parser["Service"]


@every_tier
def test_the_command_takes_every_key_of_its_example(tier: str) -> None:
    read(tier, example(tier))


@every_tier
def test_the_command_takes_the_keys_that_are_commented_out_too(tier: str, tmp_path: Path) -> None:
    text, count = re.subn(r"^# (?=\w+ = )", "", example(tier).read_text("utf-8"), flags=re.MULTILINE)
    path = tmp_path / "all.toml"
    path.write_text(text, "utf-8")
    read(tier, path)
    assert count > 0


@every_tier
def test_a_key_that_the_command_does_not_know_would_be_noticed(tier: str, tmp_path: Path) -> None:
    path = tmp_path / "typo.toml"
    path.write_text(example(tier).read_text("utf-8") + "\nunheard_of = 1\n", "utf-8")
    with pytest.raises(UsageError, match="unheard_of"):
        read(tier, path)


@every_tier
def test_the_service_starts_its_tier_with_the_example(tier: str) -> None:
    program, *words = shlex.split(unit(tier)["ExecStart"])
    assert Path(program).name == "iotsplit"
    assert words == [tier, "--config", f"/etc/iotsplit/{tier}.toml"]
    assert unit(tier)["User"] not in {"", "root"}


@pytest.mark.parametrize("tier", AGENTS)
def test_the_service_starts_again_only_what_that_can_mend(tier: str) -> None:
    assert unit(tier)["SuccessExitStatus"] == str(INTERRUPTED)
    never = {error.exit_code for error in (UsageError, RefusedError, MismatchError)}
    assert {int(code) for code in unit(tier)["RestartPreventExitStatus"].split()} == never


@pytest.mark.parametrize("tier", WRITTEN)
def test_the_example_writes_only_where_the_service_may(tier: str) -> None:
    home = Path("/var/lib") / unit(tier)["StateDirectory"]
    for key in WRITTEN[tier]:
        assert getattr(read(tier, example(tier)), key).is_relative_to(home)


@pytest.mark.parametrize("folder", [".", *FOLDERS.values()])
def test_links_of_the_readme_lead_somewhere(folder: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / folder / "README.md").read_text("utf-8"))
    assert links
    assert [link for link in links if not (ROOT / folder / link).exists()] == []


def test_the_readme_tells_every_exit_code() -> None:
    (line,) = re.findall(
        r"^Exit codes: (.*?)\n\n", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    told = {int(code) for code in re.findall(r"(?:^|· )(\d+) ", line.replace("\n", " "))}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, UserError)]
    assert told == {0, INTERRUPTED, *(kind.exit_code for kind in kinds)}
