"""The data of a case: dealt once, marked as learnt or held out, and the same for every scheme."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
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


def deal(data: str, case: Case, *, columns: tuple[str, ...], sequence_length: int, held_out: int) -> Shares:
    """Each device's records, all of them marked.

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
    dealt = {}
    for device, records in shares.items():
        pieces = [piece for record in records for piece in _blocks(record, sequence_length)]
        learnt, scored = _apart(pieces, seed=case.seed, device=device)
        if not learnt or not scored:
            raise UsageError(
                f"{device} has {len(pieces)} records of {data}, too few to learn from some and score others",
                fix="add data, or use fewer devices or another partition",
            )
        chance = seeded("bench", case.seed, device)
        amount = len(learnt) if case.samples == ALL else min(case.samples, len(learnt))
        dealt[device] = [
            *(replace(each, split="train") for each in chance.sample(learnt, amount)),
            *(replace(each, split="eval") for each in chance.sample(scored, min(held_out, len(scored)))),
        ]
    return dealt


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
    """Held-out prompts, from all devices in turn."""
    pairs = [
        [record for record in records if isinstance(record, Pair) and record.split == "eval"]
        for records in shares.values()
    ]
    longest = max(map(len, pairs), default=0)
    return [each[turn] for turn in range(longest) for each in pairs if turn < len(each)][:count]


def _blocks(record: Record, sequence_length: int) -> list[Record]:
    if not isinstance(record, Text):
        return [record]
    return partition.cut(record, sequence_length * CHARACTERS_PER_TOKEN)


def _apart(records: Sequence[Record], *, seed: int, device: str) -> tuple[list[Record], list[Record]]:
    """What is learnt and what is held out: as marked, else a tenth; what is asked alike stays together."""
    if any(record.split == "eval" for record in records):
        learnt = [record for record in records if record.split != "eval"]
        return learnt, [record for record in records if record.split == "eval"]
    alike: dict[Hashable, list[Record]] = defaultdict(list)
    for record in records:
        alike[record.text if isinstance(record, Text) else record.prompt].append(record)
    groups = list(alike.values())
    seeded("held out", seed, device).shuffle(groups)
    count = max(1, len(groups) // HELD_OUT_SHARE)
    learnt = [each for group in groups[count:] for each in group]
    return learnt, [each for group in groups[:count] for each in group]
