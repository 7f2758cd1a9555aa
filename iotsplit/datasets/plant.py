"""Made-up maintenance notes of a plant: a note as prompt, a ticket as completion.

Each device stands at one machine type and sees four of the eight faults there. On every machine six pairs of
part and fault are held out: four of a fault that the machine has on other parts, and two of a fault that only
other machines have. So the wording of a fault and its action can be learnt by all devices together, not by one
alone.
"""

import random
from dataclasses import dataclass

from iotsplit.datasets.records import Pair, Record, Split
from iotsplit.datasets.seeds import seeded

TRAIN_RECORDS = 128
"""Records that each device gets for training."""

_ALL_AFTER = 2  # machines beside each other share the faults that one of them lacks


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault: how people word it, and what is done about it."""

    action: str
    symptoms: tuple[str, ...]
    low: int
    high: int


FAULTS = {
    "overheat": Fault(
        "stop and cool",
        ("running at {n} C", "too hot, {n} C", "temperature up to {n} C", "hot to the touch, {n} C"),
        91,
        139,
    ),
    "leak": Fault(
        "seal and refill",
        ("losing oil, {n} ml an hour", "dripping, {n} ml lost", "wet, puddle of {n} ml", "oil on it"),
        12,
        95,
    ),
    "jam": Fault(
        "clear and restart",
        ("stuck for {n} min", "blocked, {n} min lost", "does not move since {n} min", "jammed again"),
        2,
        45,
    ),
    "vibration": Fault(
        "balance and tighten",
        ("shaking at {n} Hz", "shakes badly, {n} Hz", "trembling, {n} Hz", "wobbles when it turns"),
        11,
        89,
    ),
    "wear": Fault(
        "replace at next stop",
        ("worn by {n} percent", "surface gone, {n} percent", "looks worn out", "thin, {n} percent left"),
        21,
        69,
    ),
    "noise": Fault(
        "grease the bearing",
        ("squeals, {n} dB", "loud grinding, {n} dB", "screeching at {n} dB", "rattles and squeaks"),
        81,
        112,
    ),
    "drift": Fault(
        "calibrate to zero",
        ("off by {n} mm", "{n} mm out of place", "misaligned by {n} mm", "position wrong by {n} mm"),
        2,
        19,
    ),
    "trip": Fault(
        "check the wiring",
        ("breaker fell {n} times", "no power, fuse blown", "loses power after {n} s", "dead after {n} s"),
        3,
        58,
    ),
}

MACHINES = {
    "press": ("ram", "die", "clutch", "flywheel", "guide"),
    "pump": ("impeller", "seal", "motor", "inlet", "valve"),
    "conveyor": ("belt", "roller", "drive", "tensioner", "sensor"),
    "robot": ("gripper", "wrist", "elbow", "base", "cable"),
    "compressor": ("piston", "filter", "tank", "fan", "regulator"),
    "furnace": ("burner", "door", "blower", "lining", "probe"),
    "lathe": ("spindle", "chuck", "turret", "tailstock", "coolant line"),
    "packer": ("sealer", "film", "knife", "infeed", "scale"),
}

# {who} is the machine and its number, {what} the part, {how} the symptom.
_TEMPLATES = (
    "{who}: {what} {how}",
    "{who}, {shift} shift: {what} {how}",
    "{shift} shift says the {what} of {who} is bad: {how}",
    "{what} on {who}: {how}",
    "note {number}: {who}, {what}, {how}",
)
_SHIFTS = ("early", "late", "night")


def groups(devices: int, seed: int) -> dict[str, list[Record]]:
    """The records of each device, by machine type; ``press-2`` stands at a second press."""
    kinds = list(MACHINES)
    made: dict[str, list[Record]] = {}
    for index in range(devices):
        lap, kind = divmod(index, len(kinds))
        name = kinds[kind] if lap == 0 else f"{kinds[kind]}-{lap + 1}"
        made[name] = _notes(kinds[kind], seeded("plant", seed, name))
    return made


def own_faults(machine: str) -> list[str]:
    """The faults that a machine's device sees in training."""
    return _faults_from(machine, 0, 4)


def held_out(machine: str) -> list[tuple[str, str]]:
    """The six pairs of part and fault that no device of this machine type sees in training."""
    parts = MACHINES[machine]
    return list(zip((*parts, parts[0]), (*own_faults(machine), *_foreign(machine)), strict=True))


def _foreign(machine: str) -> list[str]:
    """Two faults that the machine's neighbour has and the machine has not."""
    index = list(MACHINES).index(machine)
    return _faults_from(machine, 4, 2) if index % 2 == 0 else _faults_from(machine, -2, 2)


def _faults_from(machine: str, offset: int, count: int) -> list[str]:
    first = _ALL_AFTER * list(MACHINES).index(machine) + offset
    names = list(FAULTS)
    return [names[(first + step) % len(names)] for step in range(count)]


def _notes(machine: str, random_: random.Random) -> list[Record]:
    unseen = held_out(machine)
    seen = [
        (part, fault)
        for part in MACHINES[machine]
        for fault in own_faults(machine)
        if (part, fault) not in unseen
    ]
    order = [pair for _ in range(TRAIN_RECORDS // len(seen) + 1) for pair in seen]
    records: list[Record] = [_note(machine, pair, random_, "train") for pair in order]
    random_.shuffle(records)
    return records[:TRAIN_RECORDS] + [_note(machine, pair, random_, "eval") for pair in unseen]


def _note(machine: str, pair: tuple[str, str], random_: random.Random, split: Split) -> Pair:
    part, fault = pair
    kind = FAULTS[fault]
    prompt = random_.choice(_TEMPLATES).format(
        who=f"{machine} {random_.randint(1, 4)}",
        what=part,
        how=random_.choice(kind.symptoms).format(n=random_.randint(kind.low, kind.high)),
        shift=random_.choice(_SHIFTS),
        number=random_.randint(100, 999),
    )
    return Pair(prompt, ticket(machine, part, fault), split)


def ticket(machine: str, part: str, fault: str) -> str:
    """The ticket that a note leads to."""
    return f"asset={machine} part={part} fault={fault} action={FAULTS[fault].action}"
