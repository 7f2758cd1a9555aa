"""Options of every command: a dataclass becomes flags, environment variables and TOML keys of the same names.

A flag beats the environment, the environment beats the file given by ``--config``, and that beats the default.
"""

import os
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from iotsplit.errors import UsageError
from iotsplit.flags import Leaf, Reader, about, leaves_of, nested_default, suggest
from iotsplit.home_assistant import PREFIX, check_prefix
from iotsplit.limits import BrokerLimits, limits_of
from iotsplit.settings import at_least
from iotsplit.topics import Topics

ENVIRONMENT_PREFIX = "IOTSPLIT_"
# Not options, but read from the environment all the same.
SECRETS_AND_PLACES = frozenset({"IOTSPLIT_PASSWORD", "IOTSPLIT_CACHE_DIR"})
HELP_FLAGS = frozenset({"--help", "-h"})

SpecT = TypeVar("SpecT")


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Options of every command.

    Args:
        config: TOML file with the same keys as these flags, underscores for dashes.
        json: Print the result as JSON, and errors as an object on stderr.
        verbose: Say more, and show where an unexpected error came from.
    """

    config: Path | None = None
    json: bool = False
    verbose: bool = False


@dataclass(frozen=True, kw_only=True)
class BrokerOptions:
    """The broker and the fleet's topics.

    Args:
        broker: Address of the broker: mqtt://HOST:PORT or mqtts://HOST:PORT.
        fleet: Name of the fleet, the word that its topics begin with.
        topic_prefix: What the broker wants in front of every topic, such as plant7/line3/.
        user: User name at the broker; the password comes from a file or from IOTSPLIT_PASSWORD.
        password_file: File with the password, alone on its first line.
        ca_file: Certificate authority that signed the broker's certificate.
        cert_file: Certificate to show to a broker that wants one, as AWS IoT does.
        key_file: Private key of that certificate.
        profile: Keep to the limits of a shared broker: aws, azure, emqx-serverless or small.
        max_rate: Send at most so much, such as 10/s for messages, 500KB/s, or both; beats the profile's rates.
    """

    broker: str = "mqtt://127.0.0.1:1883"
    fleet: str = "default"
    topic_prefix: str = ""
    user: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    profile: str = ""
    max_rate: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse limits that cannot be kept.

        Raises:
            UsageError: profile or rate are none, or topics would be deeper than the broker takes them.
        """
        most = self.limits.slashes
        if most is None:
            return
        topics = Topics(self.fleet, self.topic_prefix)
        over = topics.slashes - most
        if over > 0:
            raise UsageError(
                f"topics below {topics.root} have up to {topics.slashes} slashes; {self.profile} allows {most}",
                fix=f"use a --topic-prefix of at most {self.topic_prefix.count('/') - over} words",
            )

    @property
    def limits(self) -> BrokerLimits:
        """What the broker allows this client.

        Raises:
            UsageError: profile or rate are none.
        """
        return limits_of(self.profile, self.max_rate)

    def password(self, environment: Mapping[str, str] = os.environ) -> str | None:
        """The password from its file, else from IOTSPLIT_PASSWORD.

        Raises:
            UsageError: the file cannot be read.
        """
        if self.password_file is None:
            return environment.get("IOTSPLIT_PASSWORD")
        first, _, _ = _read(self.password_file, "password file").partition("\n")
        return first.strip()


@dataclass(frozen=True, kw_only=True)
class AgentOptions(BrokerOptions, CommonOptions):
    """This agent.

    Args:
        id: Name of this agent in topics; unique in the fleet. By default the role's name.
        model: Packaged name, directory, .gguf file or hub id of the model, or a part made by iotsplit split.
        chunk_bytes: Largest MQTT payload to send, below the broker's limit; by default 61440, or what the
            profile and --max-rate allow.
        threads: CPU threads for tensors; part of what makes two runs equal to the bit.
        gradient_checkpointing: Compute layers again for the backward pass: same bits, less memory, slower.
        return_memory: Give freed memory back at once, as devices always do: same bits, less memory, slower.
        state_dir: Directory for what this agent must not forget.
        log_level: debug, info, warning or error.
        home_assistant: Appear in Home Assistant on this broker; its discovery prefix may follow.
    """

    id: str = ""
    model: str = "smollm2"
    chunk_bytes: int | None = None
    threads: int = 1
    gradient_checkpointing: bool = False
    return_memory: bool = False
    state_dir: Path | None = None
    log_level: str = "info"
    home_assistant: str = field(default="", metadata={"bare": PREFIX})

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the setting.

        Raises:
            UsageError: a value is out of its range.
        """
        super().__post_init__()
        at_least("threads", self.threads, 1)
        self.limits.chunk_bytes(self.chunk_bytes)
        if self.home_assistant:
            check_prefix(self.home_assistant)

    @property
    def largest_bytes(self) -> int:
        """Largest MQTT payload to send."""
        return self.limits.chunk_bytes(self.chunk_bytes)


class _Spec(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


def parse(
    spec: type[SpecT],
    words: Sequence[str],
    *,
    name: str,
    examples: Sequence[str] = (),
    places: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> SpecT:
    """Read a command's options; a field of ``spec`` that is a dataclass is flattened into it.

    Args:
        spec: frozen keyword-only dataclass; its ``Args:`` section is the help.
        words: the command line behind the command.
        name: the command as the user writes it, such as ``iotsplit run``.
        examples: command lines shown at the top of ``--help``.
        places: fields that are written without a flag, in this order.
        environment: instead of the process's.

    Raises:
        UsageError: an unknown option or a value that does not fit.
        SystemExit: help was asked for and has been printed.
    """
    leaves = {leaf.name: leaf for leaf in leaves_of(spec)}
    reader = Reader(leaves.values(), about=about(spec), name=name, places=places)
    if HELP_FLAGS.intersection(words):
        reader.print_help(examples)
        raise SystemExit(0)
    given = reader.read(words, where="")
    surroundings = os.environ if environment is None else environment
    _add_environment(given, leaves, reader, surroundings)
    if given.get("config") is not None:
        _add_file(given, leaves, reader, given["config"])
    _refuse_missing(given, leaves.values(), name, places)
    return _build(spec, given)


def unset_options(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to a child's environment so that its options come from its command line alone."""
    return {
        key: "" for key in environment if key.startswith(ENVIRONMENT_PREFIX) and key not in SECRETS_AND_PLACES
    }


def _add_environment(
    given: dict[str, Any], leaves: Mapping[str, Leaf], reader: Reader, environment: Mapping[str, str]
) -> None:
    for leaf in leaves.values():
        key = ENVIRONMENT_PREFIX + leaf.name.upper()
        if leaf.name not in given and environment.get(key):  # empty is unset, as elsewhere
            given[leaf.name] = reader.convert(leaf, environment[key], where=f" (from {key})")


def _add_file(given: dict[str, Any], leaves: Mapping[str, Leaf], reader: Reader, path: Path) -> None:
    try:
        table = tomllib.loads(_read(path, "configuration"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not TOML: {error}", fix="mend that line") from None
    known = sorted(leaves.keys() - {"config"})
    for key, value in table.items():
        if key not in known:
            raise UsageError(
                f"{path}: key {key!r} is unknown{suggest(key, known)}",
                fix="use the names of the flags, with underscores",
            )
        if key not in given:
            text = _toml_text(leaves[key], value, path)
            given[key] = reader.convert(leaves[key], text, where=f" (in {path})")


def _toml_text(leaf: Leaf, value: object, path: Path) -> str:
    if isinstance(value, list) and leaf.items:
        return ",".join(str(item) for item in value)
    if isinstance(value, bool) is leaf.is_switch and isinstance(value, str | int | float):
        return str(value)
    raise UsageError(f"{path}: {leaf.name} cannot be {value!r}", fix=f"it means: {leaf.help}")


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"{what} {path} cannot be read: {reason}", fix="check the path") from None


def _refuse_missing(given: Mapping[str, Any], leaves: Iterable[Leaf], name: str, places: Sequence[str]) -> None:
    missing = [
        leaf.name.upper() if leaf.name in places else leaf.flag
        for leaf in leaves
        if leaf.default is MISSING and given.get(leaf.name) is None
    ]
    if missing:
        raise UsageError(f"{name} needs {', '.join(missing)}", fix=f"see {name} --help")


def _build(spec: type[SpecT], given: Mapping[str, Any], start: Any = None) -> SpecT:
    kinds = typing.get_type_hints(spec)
    values: dict[str, Any] = {}
    for each in fields(typing.cast("type[_Spec]", spec)):
        if is_dataclass(kinds[each.name]):
            values[each.name] = _build(kinds[each.name], given, start=nested_default(each))
        elif each.name in given:
            values[each.name] = given[each.name]
    return spec(**values) if start is None else replace(start, **values)
