"""What a tap takes for a text: which topics, which field, in which form, and what of it is held out. Pure."""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from iotsplit.datasets.records import Text
from iotsplit.errors import UsageError
from iotsplit.topics import Topics, check_filter

SHORTEST = 16
"""Characters; less teaches nothing, and may be a single token."""

_HELD_OUT_BELOW = 26
"""Of the 256 values of a digest's first byte: a tenth."""
_KEPT_CONTROLS = frozenset("\n\t")
_SHARED_WORDS = 2  # $share and the name of the group


class Reason(StrEnum):
    """Why a message is not a text."""

    TOO_LARGE = "it is too large"
    NOT_UTF8 = "it is not UTF-8"
    NOT_JSON = "it is not JSON"
    NO_FIELD = "it has no such field"
    NOT_A_STRING = "the field is not a string"
    TOO_SHORT = "its text is too short"


class NotATextError(Exception):
    """A message that cannot be learnt from."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def check_filters(filters: Iterable[str], topics: Topics) -> None:
    """Refuse filters that would have a device learn from its own fleet's traffic, or from everything.

    Args:
        filters: topic filters as the broker takes them.
        topics: of the device's fleet.

    Raises:
        UsageError: one is not a filter, or matches topics of a fleet below the same prefix.
    """
    own = [*topics.prefix.split("/")[:-1], "iotsplit", "+"]  # whatever the fleet is called
    for pattern in filters:
        words = check_filter(pattern).split("/")
        if words[0] == "$share":
            words = words[_SHARED_WORDS:]
        if _meets(words, own):
            raise UsageError(
                f"tap {pattern!r} matches topics below {topics.prefix}iotsplit/, where fleets speak",
                fix="name the first words of the topics that are to be learnt from, such as factory/+/log",
            )


def _meets(words: Sequence[str], own: Sequence[str]) -> bool:
    """Whether a filter matches anything that is deeper than our own words."""
    for place, word in enumerate(words):
        if word == "#" or place >= len(own):
            return True
        if "+" not in (word, own[place]) and word != own[place]:
            return False
    return False  # it ends where our topics have not begun


def text_of(payload: bytes, field: str, *, longest: int) -> str:
    """The text of a message in its normal form.

    Args:
        payload: as it came.
        field: of a JSON object, with dots for objects within; empty if the payload itself is the text.
        longest: most bytes of the payload.

    Raises:
        NotATextError: there is none to learn from.
    """
    if len(payload) > longest:
        raise NotATextError(Reason.TOO_LARGE)
    text = normal(_field(payload, field) if field else _utf8(payload))
    if len(text) < SHORTEST:
        raise NotATextError(Reason.TOO_SHORT)
    return text


def normal(text: str) -> str:
    """The form in which texts are compared and learnt: NFC, plain line ends, nothing invisible around it."""
    plain = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    kept = (each for each in plain if each in _KEPT_CONTROLS or unicodedata.category(each) != "Cc")
    return "\n".join(line.rstrip() for line in "".join(kept).split("\n")).strip()


def digest(text: str) -> bytes:
    """SHA-256 by which a text is known."""
    return hashlib.sha256(text.encode()).digest()


def deal(texts: Sequence[str], *, eval_limit: int) -> list[Text]:
    """What is learnt of different texts, and what is held out.

    A text's own digest decides, so that what is held out once is never learnt later, however many come.
    A tenth is held out, at least one and never all; those with the lowest digests are scored. Where none is of
    that tenth, the lowest stands in for it, and is learnt once there is one.

    Args:
        texts: in the order in which they came.
        eval_limit: most texts that are scored.
    """
    ranked = sorted(texts, key=digest)
    low = sum(digest(text)[0] < _HELD_OUT_BELOW for text in ranked)
    count = max(0, min(max(1, low), len(ranked) - 1))
    scored, unseen = set(ranked[: min(count, eval_limit)]), set(ranked[:count])
    return [
        Text(text, "eval" if text in scored else "train")
        for text in texts
        if text in scored or text not in unseen
    ]


def _utf8(payload: bytes) -> str:
    try:
        return payload.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise NotATextError(Reason.NOT_UTF8) from None


def _field(payload: bytes, field: str) -> str:
    try:
        found: Any = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise NotATextError(Reason.NOT_JSON) from None
    for word in field.split("."):
        if not isinstance(found, dict) or word not in found:
            raise NotATextError(Reason.NO_FIELD)
        found = found[word]
    if not isinstance(found, str):
        raise NotATextError(Reason.NOT_A_STRING)
    return found
