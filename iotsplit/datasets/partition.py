"""Who gets what: data dealt to the devices of a run."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from iotsplit.datasets.builtin import Builtin, groups_of
from iotsplit.datasets.names import device_ids
from iotsplit.datasets.records import SUFFIXES, Record, Text, files_of, read
from iotsplit.datasets.seeds import seeded
from iotsplit.errors import UsageError

DEFAULT_DEVICES = 4
_BLOCK_CHARACTERS = 2000  # a few hundred tokens: some windows each, yet enough blocks to shuffle
_LEAST_BLOCK_CHARACTERS = 200
_LEAST_TRAIN = 8  # records that even the poorest device gets, if there are that many
_LEAST_EVAL = 1

Groups = Mapping[str, Sequence[Record]]


def load(
    data: str,
    *,
    devices: int | None = None,
    partition: str | None = None,
    seed: int = 0,
    columns: tuple[str, ...] = (),
) -> dict[str, list[Record]]:
    """The records of each device, from a built-in data set, a folder or a file.

    Args:
        data: name of a built-in data set, or a path.
        devices: how many; by default one for each file of a folder, else four.
        partition: ``files``, ``iid`` or ``dirichlet:A``; by default ``files`` where there are several.
        seed: of everything random.
        columns: names of the columns of text, or of prompt and completion; else they have these names.

    Raises:
        UsageError: the data cannot be read, or not be dealt like that.
    """
    if devices is not None and devices < 1:
        raise UsageError(f"{devices} devices cannot train", fix="use 1 device or more")
    if data in set(Builtin):
        count = devices or DEFAULT_DEVICES
        groups: Groups = groups_of(data, devices=count, seed=seed)
        return deal(groups, partition=partition or "files", devices=count, seed=seed)
    path = Path(data).expanduser()
    if not data or not path.exists():
        raise UsageError(
            f"there is no data at {data!r}",
            fix=f"give a file, a folder or one of {', '.join(Builtin)}",
        )
    groups = _groups_at(path, columns)
    by_files = len(groups) > 1
    count = devices or (len(groups) if by_files else DEFAULT_DEVICES)
    if partition is None:
        partition = "files" if by_files else "iid"
    return deal(groups, partition=partition, devices=count, seed=seed)


def deal(
    groups: Groups | Sequence[Record], *, partition: str, devices: int, seed: int
) -> dict[str, list[Record]]:
    """Deal groups of records (files, machines, topics) to so many devices.

    ``files`` gives whole groups in turn, and names a device after its first group. ``iid`` shuffles all
    records and deals them evenly. ``dirichlet:A`` spreads each group over the devices in random
    proportions: the smaller A, the more the devices differ. The latter two cut long texts by lines first.

    Raises:
        UsageError: the partition is unknown, or there is too little to deal.
    """
    named: Groups = groups if isinstance(groups, Mapping) else {"data": groups}
    if devices < 1:
        raise UsageError(f"{devices} devices cannot train", fix="use 1 device or more")
    if partition == "files":
        return _by_files(named, devices)
    concentration = _concentration(partition)
    classes = _cut_all(named, devices)
    total = sum(map(len, classes))
    if total < devices:
        raise UsageError(
            f"{total} records are too few for {devices} devices", fix="use fewer devices or more data"
        )
    if concentration is None:
        hands = _evenly(classes, devices, seed)
    else:
        hands = _skewed(classes, devices, concentration, seed)
    width = len(str(devices))
    return {f"device-{n:0{width}}": hand for n, hand in enumerate(hands, start=1)}


def check(partition: str) -> None:
    """Refuse a name that says nothing about how to deal.

    Raises:
        UsageError: the partition is unknown.
    """
    if partition != "files":
        _concentration(partition)


def _groups_at(path: Path, columns: tuple[str, ...]) -> dict[str, list[Record]]:
    """A group for a file, and for each file or folder right below a folder."""
    if not path.is_dir():
        return {path.stem: read(path, columns=columns)}
    groups: dict[str, list[Record]] = {}
    for file in files_of(path):
        top = file.relative_to(path).parts[0]
        groups.setdefault(top, []).extend(read(file, columns=columns))
    return {name: groups[name] for name in sorted(groups)}


def _by_files(groups: Groups, devices: int) -> dict[str, list[Record]]:
    if len(groups) < devices:
        raise UsageError(
            f"{len(groups)} files or groups are too few for {devices} devices",
            fix="use fewer devices, or --partition iid to deal out their records",
        )
    names = list(groups)
    stems = [Path(name).stem if name.lower().endswith(SUFFIXES) else name for name in names]
    ids = device_ids(stems[:devices])
    return {
        device: [record for name in names[first::devices] for record in groups[name]]
        for first, device in enumerate(ids)
    }


def _concentration(partition: str) -> float | None:
    """Of a Dirichlet distribution; None to deal evenly."""
    if partition == "iid":
        return None
    kind, _, number = partition.partition(":")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if kind != "dirichlet" or not 0.0 < value < float("inf"):
        raise UsageError(
            f"partition {partition!r} is unknown", fix="use files, iid or dirichlet:A, like dirichlet:0.3"
        )
    return value


def _cut_all(groups: Groups, devices: int) -> list[list[Record]]:
    size = sum(len(r.text) for group in groups.values() for r in group if isinstance(r, Text))
    limit = min(_BLOCK_CHARACTERS, size // (_LEAST_TRAIN * devices))
    limit = max(limit, _LEAST_BLOCK_CHARACTERS)
    return [[piece for r in group for piece in cut(r, limit)] for group in groups.values()]


def cut(record: Record, limit: int) -> list[Record]:
    """Cut a long text into blocks of whole lines; a line over the limit is cut itself."""
    if not isinstance(record, Text) or len(record.text) <= limit:
        return [record]
    blocks = [""]
    for line in record.text.splitlines(keepends=True):
        for start in range(0, len(line), limit):
            piece = line[start : start + limit]
            if len(blocks[-1]) + len(piece) > limit:
                blocks.append("")
            blocks[-1] += piece
    return [Text(block, record.split) for block in blocks if block.strip()]


def _by_split(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Training and held-out records apart, so that each device gets its share of both."""
    train = [record for record in records if record.split != "eval"]
    return train, [record for record in records if record.split == "eval"]


def _evenly(classes: list[list[Record]], devices: int, seed: int) -> list[list[Record]]:
    random_ = seeded("iid", seed)
    hands: list[list[Record]] = [[] for _ in range(devices)]
    for records in _by_split(list(itertools.chain.from_iterable(classes))):
        random_.shuffle(records)
        for hand, dealt in zip(hands, (records[n::devices] for n in range(devices)), strict=True):
            hand.extend(dealt)
    return hands


def _skewed(classes: list[list[Record]], devices: int, concentration: float, seed: int) -> list[list[Record]]:
    random_ = seeded("dirichlet", seed)
    train: list[list[Record]] = [[] for _ in range(devices)]
    evaluation: list[list[Record]] = [[] for _ in range(devices)]
    for records in classes:
        weights = [random_.gammavariate(concentration, 1.0) for _ in range(devices)]
        if not sum(weights):  # tiny concentrations underflow: all goes to one device
            weights[random_.randrange(devices)] = 1.0
        for part, hands in zip(_by_split(records), (train, evaluation), strict=True):
            random_.shuffle(part)
            _share(part, weights, hands)
    _level(train, _LEAST_TRAIN)
    _level(evaluation, _LEAST_EVAL)
    return [mine + held for mine, held in zip(train, evaluation, strict=True)]


def _share(records: list[Record], weights: list[float], hands: list[list[Record]]) -> None:
    """Cut the records where the running sum of the weights says."""
    whole = sum(weights)
    ends = [round(len(records) * s / whole) for s in itertools.accumulate(weights)]
    for hand, first, end in zip(hands, [0, *ends], ends, strict=False):
        hand.extend(records[first:end])


def _level(hands: list[list[Record]], least: int) -> None:
    """Let the richest give until everybody has a few."""
    least = min(least, sum(map(len, hands)) // len(hands))
    for hand in hands:
        while len(hand) < least:
            hand.append(max(hands, key=len).pop())
