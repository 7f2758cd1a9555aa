"""The data of a case: dealt once, marked as learnt or held out, and the same for every scheme."""

import itertools
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iotsplit.bench.cells import ALL, Case
from iotsplit.datasets import partition
from iotsplit.datasets.records import Pair, Record, Text, write_jsonl
from iotsplit.datasets.seeds import seeded
from iotsplit.errors import UsageError

HELD_OUT_SHARE = 10
CHARACTERS_PER_TOKEN = 3
"""Of logs and code; prose has four. A block of text is about one sequence, so that records can be counted."""
POOLED = "pooled"

Shares = Mapping[str, Sequence[Record]]


@dataclass(frozen=True, kw_only=True)
class Dealt:
    """A case's data.

    Args:
        shares: each device's records, all of them marked.
        answers: to each prompt that is held out, all that the data have, whoever was dealt them.
    """

    shares: Shares
    answers: Mapping[str, Sequence[str]]


def deal(data: str, case: Case, *, columns: tuple[str, ...], sequence_length: int, held_out: int) -> Dealt:
    """Deal data, and hold some of each device's out; what one device holds out no other learns.

    Args:
        data: as `--data` names it.
        case: how they are dealt.
        columns: as `--columns` names them.
        sequence_length: tokens of a sequence.
        held_out: most held-out records of each device.

    Raises:
        UsageError: the data cannot be read, or a device has too little.
    """
    shares = partition.load(
        data, devices=case.devices, partition=case.partition, seed=case.seed, columns=columns
    )
    pieces = {
        device: [piece for record in records for piece in _blocks(record, sequence_length)]
        for device, records in shares.items()
    }
    marked = _marked(pieces, seed=case.seed)
    dealt = {}
    for device, records in marked.items():
        learnt = [record for record in records if record.split == "train"]
        scored = [record for record in records if record.split == "eval"]
        if not learnt or not scored:
            raise UsageError(
                f"{device} has {len(records)} records of {data}, too few to learn from some and score others",
                fix="add data, or use fewer devices or another partition",
            )
        chance = seeded("bench", case.seed, device)
        amount = len(learnt) if case.samples == ALL else min(case.samples, len(learnt))
        dealt[device] = [*chance.sample(learnt, amount), *chance.sample(scored, min(held_out, len(scored)))]
    return Dealt(shares=dealt, answers=_answers(marked))


def write(folder: Path, shares: Shares) -> tuple[Path, Path]:
    """Write a folder with a file for each device, and one with a file that holds all; gives both."""
    apart, together = folder / "devices", folder / POOLED
    for each in (apart, together):
        each.mkdir(parents=True, exist_ok=True)
    for device, records in shares.items():
        write_jsonl(apart / f"{device}.jsonl", records)
    write_jsonl(together / f"{POOLED}.jsonl", [record for records in shares.values() for record in records])
    return apart, together


def asked(shares: Shares, count: int) -> list[Pair]:
    """Held-out prompts, each once, from all devices in turn."""
    first: dict[str, Pair] = {}
    prompts: dict[str, list[str]] = {device: [] for device in shares}
    for device, records in shares.items():
        for record in records:
            if isinstance(record, Pair) and record.split == "eval" and record.prompt not in first:
                first[record.prompt] = record
                prompts[device].append(record.prompt)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*prompts.values()))
    return [first[prompt] for prompt in turns if prompt is not None][:count]


def _blocks(record: Record, sequence_length: int) -> list[Record]:
    if not isinstance(record, Text):
        return [record]
    return partition.cut(record, sequence_length * CHARACTERS_PER_TOKEN)


def _marked(shares: Shares, *, seed: int) -> Shares:
    """Every record as learnt or held out: as marked, and a tenth of who has none held out."""
    held = {_matter(each) for records in shares.values() for each in records if each.split == "eval"}
    for device, records in shares.items():
        if not any(record.split == "eval" for record in records):
            alike = list(dict.fromkeys(map(_matter, records)))
            seeded("held out", seed, device).shuffle(alike)
            lacks = max(1, len(alike) // HELD_OUT_SHARE) - len(held.intersection(alike))
            held.update(itertools.islice((each for each in alike if each not in held), max(0, lacks)))
    return {
        device: [replace(each, split="eval" if _matter(each) in held else "train") for each in records]
        for device, records in shares.items()
    }


def _matter(record: Record) -> Hashable:
    """What records have in common of which one must not be learnt if another is held out."""
    return record.text if isinstance(record, Text) else record.prompt


def _answers(shares: Shares) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for record in itertools.chain.from_iterable(shares.values()):
        if isinstance(record, Pair) and record.split == "eval":
            found[record.prompt][record.completion.strip()] = None
    return {prompt: list(each) for prompt, each in found.items()}
