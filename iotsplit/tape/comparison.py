"""Holds what an agent says now against what it said on a tape, whichever comes first. Pure."""

from collections.abc import Iterator
from typing import Any

import msgspec

from iotsplit.messages import PackedTensor
from iotsplit.tape.measures import Recent
from iotsplit.tape.numbers import Tensor, tensors_in, tensors_in_file
from iotsplit.tape.statements import Key, Statement

MOST_WAITING = 4096
"""Statements of one side that may wait for the other."""
MOST_DONE = 65_536


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """The first thing that is not the same.

    Args:
        record: number of the record on the tape, from 1; 0 if it is not there.
        what: of what kind the message is.
        field: tensor or field that differs.
        expected: on the tape.
        got: from the replay.
        max_abs: largest difference of two values of a tensor.
        where: index of those values.
    """

    record: int
    topic: str
    what: str
    session: str = ""
    step: int | None = None
    micro_batch: int | None = None
    field: str = ""
    expected: str = ""
    got: str = ""
    max_abs: float | None = None
    where: tuple[int, ...] = ()

    def __str__(self) -> str:
        said = [f"record {self.record}" if self.record else "not on the tape", f"topic {self.topic}", self.what]
        said += [f"session {self.session}"] if self.session else []
        said += [f"step {self.step}"] if self.step is not None else []
        said += [f"micro-batch {self.micro_batch}"] if self.micro_batch is not None else []
        said += [f"{self.field}:"] if self.field else []
        said += [f"expected {self.expected}, got {self.got}"]
        if self.max_abs is not None:
            said += [f"largest difference {self.max_abs:.6g} at {list(self.where)}"]
        return ", ".join(said).replace(":,", ":")


class Comparison:
    """Pairs statements of both sides by their keys.

    Args:
        tolerance: of each tensor, as a share of its largest value; 0 for the same bytes.
    """

    def __init__(self, tolerance: float = 0.0) -> None:
        self.compared = 0
        self.compared_bytes = 0
        self.largest = 0.0
        """Largest difference of any tensor, as a share of its largest value."""
        self.difference: Difference | None = None
        self._tolerance = tolerance
        self._recorded: dict[Key, Statement] = {}
        self._said: dict[Key, Statement] = {}
        self._done: Recent[Key, Statement] = Recent(MOST_DONE)
        self._heard_on: Recent[str, int] = Recent(
            MOST_DONE
        )  # the last statement of a topic that was on the tape

    def expects(self, statement: Statement) -> bool:
        """Whether a statement of the tape has not been said yet."""
        return statement.key not in self._said and statement.key not in self._done

    def recorded(self, statement: Statement) -> None:
        """Take what is on the tape."""
        self._take(statement, self._recorded, self._said)

    def said(self, statement: Statement) -> None:
        """Take what the replay said."""
        self._take(statement, self._said, self._recorded)

    def died(self) -> None:
        """The agent on the tape has died: what it did not come to say is forgotten, what is missing is not."""
        self._settle()
        self._said.clear()
        # What the next one says again is compared again.
        self._done, self._heard_on = Recent(MOST_DONE), Recent(MOST_DONE)

    def finish(self, *, everything: bool = False) -> None:
        """There is no more: what lacks on one side is a difference.

        Args:
            everything: also what was said last on its topic; else the tape may have ended before it.
        """
        self._settle(full=everything)

    def _take(self, new: Statement, own: dict[Key, Statement], other: dict[Key, Statement]) -> None:
        if self.difference is not None:
            return
        match = other.pop(new.key, None)
        if match is None:
            done = self._done.get(new.key)
            if done is not None:
                self.difference = self._compare(done, new) if done.record else self._compare(new, done)
                return
            own[new.key] = new
            if len(own) > MOST_WAITING:
                self._settle(full=True)
            return
        recorded, said = (match, new) if own is self._said else (new, match)
        self.difference = self._compare(recorded, said)
        self.compared += 1
        self.compared_bytes += len(recorded.body)
        self._heard_on.put(said.topic, max(said.count, self._heard_on.get(said.topic) or 0))
        self._done.put(new.key, _light(recorded))

    def _settle(self, *, full: bool = False) -> None:
        """Find what lacks: first of the tape, then of the replay."""
        if self.difference is not None:
            return
        missing = min(self._recorded.values(), key=lambda each: each.record, default=None)
        extra = [
            each for each in self._said.values() if full or each.count < (self._heard_on.get(each.topic) or 0)
        ]
        if missing is not None:
            self.difference = _difference(missing, expected="it", got="nothing")
        elif extra:
            self.difference = _difference(min(extra, key=lambda each: each.count), expected="nothing", got="it")

    # --- one against one

    def _compare(self, recorded: Statement, said: Statement) -> Difference | None:
        if recorded.value != said.value:
            found = _differing_field(recorded, said, self._tolerance)
            if found is not None:
                return found
        if recorded.body == said.body or not recorded.body:
            return None
        yes, no = _contents(recorded), _contents(said)
        for name, expected in yes.items():
            found = self._one(recorded, name, expected, no.get(name))
            if found is not None:
                return found
        if self._tolerance == 0.0 or len(yes) != len(no) or not yes:
            size = (len(recorded.body), len(said.body))
            return _difference(
                recorded, field="bytes", expected=f"{size[0]} bytes", got=f"{size[1]} other bytes"
            )
        return None

    def _one(self, recorded: Statement, name: str, expected: Any, got: Any) -> Difference | None:
        if isinstance(expected, Tensor) and isinstance(got, Tensor):
            return self._tensors(recorded, expected, got)
        return None if expected == got else self._plain(recorded, name, expected, got)

    def _plain(self, recorded: Statement, name: str, expected: Any, got: Any) -> Difference | None:
        if isinstance(expected, float) and isinstance(got, float):
            share = abs(expected - got) / max(abs(expected), 1e-30)
            self.largest = max(self.largest, share)
            if share <= self._tolerance:
                return None
        return _difference(recorded, field=name, expected=str(expected), got=str(got))

    def _tensors(self, recorded: Statement, expected: Tensor, got: Tensor) -> Difference | None:
        import numpy as np  # noqa: PLC0415 - not part of the base

        shown = [f"{each.codec} {each.dtype} {list(each.shape)}" for each in (expected, got)]
        comparable = expected.values is not None and got.values is not None
        if shown[0] != shown[1] or not comparable:
            problems = [each.problem or text for each, text in zip((expected, got), shown, strict=True)]
            return _difference(recorded, field=expected.name, expected=problems[0], got=problems[1])
        before, after = expected.values.astype(np.float64), got.values.astype(np.float64)
        if np.array_equal(before, after, equal_nan=True):
            return None
        apart = np.abs(before - after)
        apart[np.isnan(apart) & ~(np.isnan(before) & np.isnan(after))] = np.inf
        apart = np.nan_to_num(apart, nan=0.0, posinf=np.inf)
        at = np.unravel_index(int(apart.argmax()), apart.shape)
        most = float(apart[at])
        share = most / max(float(np.abs(before[np.isfinite(before)]).max(initial=0.0)), 1e-30)
        self.largest = max(self.largest, share)
        if share <= self._tolerance:
            return None
        return _difference(
            recorded,
            field=expected.name,
            expected=f"{before[at]:.9g}",
            got=f"{after[at]:.9g}",
            max_abs=most,
            where=tuple(int(place) for place in at),
        )


def _light(statement: Statement) -> Statement:
    """What is kept of a statement that was compared, in case it is said again."""
    return Statement(
        key=statement.key,
        topic=statement.topic,
        value=statement.value,
        kind=statement.kind,
        session=statement.session,
        place=statement.place,
        record=statement.record,
    )


def _contents(statement: Statement) -> dict[str, Any]:
    """Fields and tensors of what was said."""
    if statement.content is None:
        return {tensor.name: tensor for tensor in tensors_in_file(statement.body)}
    content = statement.content
    plain = {
        name: value
        for name in content.__struct_fields__
        if not isinstance(value := getattr(content, name), PackedTensor | bytes)
    }
    return plain | {tensor.name: tensor for tensor in tensors_in(content, values=True)}


def _differing_field(recorded: Statement, said: Statement, tolerance: float) -> Difference | None:
    fields = _fields(msgspec.to_builtins(recorded.value), msgspec.to_builtins(said.value))
    for name, expected, got in fields:
        numbers = isinstance(expected, float) and isinstance(got, float)
        if not numbers or abs(expected - got) > tolerance * abs(expected):
            return _difference(recorded, field=name, expected=str(expected), got=str(got))
    return None


def _fields(expected: Any, got: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The fields in which two plain values differ."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in [*expected, *(key for key in got if key not in expected)]:
            inner = f"{name}.{key}" if name else str(key)
            yield from _fields(expected.get(key), got.get(key), inner)
    elif expected != got:
        yield name, expected, got


def _difference(
    statement: Statement,
    *,
    expected: str,
    got: str,
    field: str = "",
    max_abs: float | None = None,
    where: tuple[int, ...] = (),
) -> Difference:
    step, micro_batch = statement.place or (None, None)
    return Difference(
        record=statement.record,
        topic=statement.topic,
        what=statement.kind,
        session=statement.session,
        step=step,
        micro_batch=micro_batch,
        field=field,
        expected=expected,
        got=got,
        max_abs=max_abs,
        where=where,
    )
