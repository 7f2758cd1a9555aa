"""A dataclass as flags: its fields are the options, its ``Args:`` section is their help."""

import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import App, Group, Parameter

from iotsplit.errors import UsageError

SHORT_FLAGS = {"verbose": "-v", "output": "-o"}


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One option: a field that is not itself a dataclass.

    Args:
        bare: what the flag means when nothing follows it; empty if something must.
    """

    name: str
    kind: Any
    default: Any
    help: str
    group: str
    bare: str = ""

    @property
    def flag(self) -> str:
        """As written on the command line."""
        return "--" + self.name.rstrip("_").replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return self.kind is bool

    @property
    def items(self) -> tuple[Any, ...]:
        """Types of a comma list's items; empty if this is no comma list."""
        return typing.get_args(self.kind) if typing.get_origin(self.kind) is tuple else ()


def suggest(word: str, known: Sequence[str]) -> str:
    """` (did you mean X?)` for a typo, or nothing."""
    close = get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def leaves_of(spec: Any, defaults: Any = None) -> Iterator[Leaf]:
    """The options of a dataclass: its own first, then those of nested dataclasses and of its bases.

    Args:
        spec: the dataclass.
        defaults: an instance whose values are the defaults, instead of the dataclass's own.
    """
    kinds = typing.get_type_hints(spec)
    helps = _argument_help(spec)
    own_first = sorted(fields(spec), key=lambda each: spec.__mro__.index(_owner(spec, each.name)))
    for field in own_first:
        if is_dataclass(kinds[field.name]):
            yield from leaves_of(kinds[field.name], nested_default(field))
            continue
        yield Leaf(
            name=field.name,
            kind=kinds[field.name],
            default=default_of(field) if defaults is None else getattr(defaults, field.name),
            help=helps.get(field.name, ""),
            group=_first_line(_owner(spec, field.name)),
            bare=field.metadata.get("bare", ""),
        )


def default_of(field: Field[Any]) -> Any:
    """A field's default, made if it has to be; MISSING if there is none."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def nested_default(field: Field[Any]) -> Any:
    """The instance that a nested dataclass starts from, or None."""
    made = default_of(field)
    return None if made is MISSING else made


def about(spec: type) -> str:
    """What a class's docstring says between its first line and its ``Args:``; may be nothing."""
    return _words(spec).partition("\n\n")[2]


def _first_line(spec: type) -> str:
    return _words(spec).splitlines()[0].rstrip(".")


def _words(spec: type) -> str:
    return (inspect.getdoc(spec) or spec.__name__).partition("\n\nArgs:")[0]


def _owner(spec: type, name: str) -> type:
    """The class in which a field was first written."""
    return [base for base in spec.__mro__ if name in inspect.get_annotations(base)][-1]


def _argument_help(spec: type) -> dict[str, str]:
    """The ``Args:`` entries of a class and its bases."""
    helps: dict[str, str] = {}
    for base in reversed(spec.__mro__):
        _, _, section = inspect.cleandoc(base.__doc__ or "").partition("\nArgs:\n")
        section = re.split(r"\n(?=\S)", section)[0]
        for entry in re.split(r"\n(?= {4}\w+:)", "\n" + section):
            name, colon, text = entry.strip().partition(":")
            if colon:
                helps[name] = " ".join(text.split()).replace("`", "")
    return helps


def _app(leaves: Iterable[Leaf], about: str, name: str, places: Sequence[str]) -> App:
    def command(**_given: Any) -> None:
        """Stand in for the command: only its signature matters."""

    leaves = list(leaves)
    titles = dict.fromkeys(leaf.group for leaf in leaves)
    groups = {title: Group(title, sort_key=place) for place, title in enumerate(titles)}
    flags = [leaf.flag for leaf in leaves if leaf.name not in places]
    parameters = [
        _place(leaf, groups[leaf.group], flags) if leaf.name in places else _parameter(leaf, groups[leaf.group])
        for leaf in leaves
    ]
    parameters.sort(key=lambda each: places.index(each.name) if each.name in places else len(places))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by inspect
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return App(
        name=name,
        help=about,
        help_format="plaintext",
        version_flags=[],
        help_flags=[],
        default_command=command,
    )


def _place(leaf: Leaf, group: Group, flags: Sequence[str]) -> inspect.Parameter:
    """A parameter that is written without a flag; ``-`` may stand for stdin or stdout."""

    def convert(kind: Any, tokens: Sequence[Any]) -> Any:
        word = tokens[0].value
        if word.startswith("-") and word != "-":
            raise ValueError(f"unknown option {word}{suggest(word.partition('=')[0], flags)}")
        return _path(kind, tokens) if leaf.kind is Path else word

    plain = _parameter(leaf, group, name=leaf.name.upper(), allow_leading_hyphen=True, converter=convert)
    return plain.replace(kind=inspect.Parameter.POSITIONAL_ONLY)


def _parameter(leaf: Leaf, group: Group, **changes: Any) -> inspect.Parameter:
    names = [leaf.flag] + ([SHORT_FLAGS[leaf.name]] if leaf.name in SHORT_FLAGS else [])
    required = leaf.default is MISSING
    about: dict[str, Any] = {
        "name": names,
        "help": leaf.help + (" [required]" if required else ""),
        "group": group,
        "negative": "",
        "required": False,
        "show_default": _shown_default(leaf),
        "converter": _converter(leaf),
        "n_tokens": 1 if leaf.items else None,
        "metavar": "LIST" if leaf.items else None,
    }
    note = Parameter(**(about | changes))
    return inspect.Parameter(
        leaf.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None if required else leaf.default,
        annotation=Annotated[leaf.kind, note],
    )


def _shown_default(leaf: Leaf) -> bool | Callable[[Any], str]:
    if leaf.is_switch or leaf.default in (None, MISSING, "", ()):
        return False
    if leaf.items:
        return lambda value: ",".join(str(item) for item in value)
    return True


def _converter(leaf: Leaf) -> Callable[[Any, Sequence[Any]], Any] | None:
    if leaf.items:
        return _comma_list(leaf)
    kinds = (leaf.kind, *typing.get_args(leaf.kind))
    if Path in kinds:
        return _path
    return _whole if int in kinds else None


def _whole(_kind: Any, tokens: Sequence[Any]) -> int:
    # cyclopts would take 0.5 for 0.
    number: int = _item(int, tokens[0].value)
    return number


def _path(_kind: Any, tokens: Sequence[Any]) -> Path:
    # Path("") is the current directory, and a script's unset variable must not mean that.
    if not tokens[0].value:
        raise ValueError("it is empty")
    return Path(tokens[0].value)


def _comma_list(leaf: Leaf) -> Callable[[Any, Sequence[Any]], tuple[Any, ...]]:
    def convert(_kind: Any, tokens: Sequence[Any]) -> tuple[Any, ...]:
        words = [word.strip() for token in tokens for word in token.value.split(",") if word.strip()]
        kinds = leaf.items
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(words)
        if len(words) != len(kinds):
            raise ValueError(f"wants {len(kinds)} values with commas between them")
        return tuple(_item(kind, word) for kind, word in zip(kinds, words, strict=True))

    return convert


def _item(kind: Any, word: str) -> Any:
    try:
        return kind(word)
    except ValueError:
        raise ValueError(f"{word!r} is not a whole number") from None


class Reader:
    """Reads words with one command's parser; its errors become ours.

    Args:
        leaves: the command's options.
        about: what the command does.
        name: the command as the user writes it, such as ``iotsplit run``.
        places: names of options that are written without a flag, in this order.
    """

    def __init__(self, leaves: Iterable[Leaf], *, about: str, name: str, places: Sequence[str] = ()) -> None:
        leaves = list(leaves)
        self._app = _app(leaves, about, name, places)
        self._name = name
        self._bare = {leaf.flag: leaf.bare for leaf in leaves if leaf.bare}

    def print_help(self, examples: Sequence[str]) -> None:
        """Print examples, usage and options, in this order."""
        if examples:
            sys.stdout.write("\n  ".join(["Examples:", *examples]) + "\n\n")
            sys.stdout.flush()
        self._app.help_print([])

    def read(self, words: Sequence[str], *, where: str) -> dict[str, Any]:
        """Values of the options in ``words``; ``where`` says where they stood, for errors."""
        try:
            _, bound, _ = self._app.parse_args(self._completed(words), print_error=False, exit_on_error=False)
        except cyclopts.UnusedCliTokensError as error:
            extra = " ".join(error.unused_tokens or ())
            raise UsageError(f"unexpected {extra!r}{where}", fix=f"see {self._name} --help") from None
        except cyclopts.CycloptsError as error:
            told = " ".join(str(error).split()).rstrip(".")
            raise UsageError(f"{told}{where}", fix=f"see {self._name} --help") from None
        return dict(bound.arguments)

    def _completed(self, words: Sequence[str]) -> list[str]:
        """The words, with a value for each flag that may stand alone and does."""
        following = [*words[1:], "-"]
        return [
            f"{word}={self._bare[word]}" if word in self._bare and after.startswith("-") else word
            for word, after in zip(words, following, strict=False)
        ]

    def convert(self, leaf: Leaf, text: str, *, where: str) -> Any:
        """One option's value from text that did not stand on the command line."""
        if leaf.is_switch:
            return _switch(leaf, text, where)
        return self.read([f"{leaf.flag}={text}"], where=where)[leaf.name]


def _switch(leaf: Leaf, text: str, where: str) -> bool:
    meaning = {"1": True, "true": True, "yes": True, "on": True}
    meaning |= {"0": False, "false": False, "no": False, "off": False, "": False}
    if text.lower() not in meaning:
        raise UsageError(f"{leaf.name} {text!r}{where} is neither yes nor no", fix="write true or false")
    return meaning[text.lower()]
