"""Settings refuse what cannot work, and name the setting."""

from typing import Any

import pytest

from iotsplit.errors import MalformedMessageError, UsageError
from iotsplit.plan import Labels
from iotsplit.settings import Aggregation, BaseDtype, Codec, FleetSettings, Optimizer, TrainingSettings
from iotsplit.states import decode_state, encode_state


@pytest.mark.parametrize("name", ["rounds", "local_steps", "batch_size", "micro_batches", "rank"])
def test_counts_are_at_least_one(name: str) -> None:
    changes: dict[str, Any] = {name: 0}
    with pytest.raises(UsageError, match=f"{name} 0 is too small"):
        TrainingSettings(**changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sequence_length": 1}, "sequence_length"),
        ({"seed": -1}, "seed"),
        ({"micro_batches": 5, "batch_size": 4}, "micro_batches"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"alpha": -1.0}, "alpha"),
        ({"alpha": float("inf")}, "alpha"),
        ({"target_modules": ()}, "target_modules"),
        ({"trim": 0.5}, "trim"),
        ({"trim": -0.1}, "trim"),
        ({"trim": float("nan")}, "trim"),
        ({"server_momentum": 1.0}, "server_momentum"),
        ({"server_momentum": -0.1}, "server_momentum"),
        (
            {"server_momentum": 0.9, "aggregation": Aggregation.FLEXLORA},
            "with aggregation flexlora",
        ),
        ({"server_momentum": 0.9, "aggregation": Aggregation.MEDIAN}, "with aggregation median"),
        ({"server_momentum": float("nan")}, "server_momentum"),
        ({"norm_bound": 0.0}, "norm_bound"),
        ({"norm_bound": float("inf")}, "norm_bound"),
        ({"norm_bound": float("nan")}, "norm_bound"),
        ({"evaluate": "never"}, "evaluate"),
        ({"codec_check": -0.1}, "codec_check"),
        ({"codec_check": 1.1}, "codec_check"),
        ({"codec_check": float("nan")}, "codec_check"),
        ({"codec": "zip"}, "codec 'zip'"),
        ({"codec": "int4:"}, "codec 'int4:'"),
        ({"codec": "int4:int8:int8"}, "codec"),
    ],
)
def test_training_that_cannot_work_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        TrainingSettings(**changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"devices": 0}, "devices"),
        ({"edges": 0}, "edges"),
        ({"devices_per_edge": 0}, "devices_per_edge"),
        ({"step_timeout": 0.0}, "time-out"),
        ({"wait_timeout": -1.0}, "time-out"),
        ({"step_timeout": float("nan")}, "time-out"),
        ({"wait_timeout": float("nan")}, "time-out"),
    ],
)
def test_a_fleet_that_cannot_work_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        FleetSettings(**changes)


def test_the_smallest_training_is_taken() -> None:
    smallest = TrainingSettings(
        rounds=1, local_steps=1, batch_size=1, micro_batches=1, sequence_length=2, rank=1, evaluate="rounds"
    )
    assert smallest.rounds == 1


def test_settings_travel_unchanged() -> None:
    settings = TrainingSettings(
        cut=(2, 3),
        labels=Labels.DEVICE,
        codec=Codec.BF16,
        aggregation=Aggregation.TRIMMED,
        trim=1 / 3,
        clip_updates=True,
        norm_bound=1 / 3,
        optimizer=Optimizer.SGD,
        learning_rate=1 / 3,
        target_modules=("all-linear",),
    )
    assert decode_state(encode_state(settings), TrainingSettings) == settings


@pytest.mark.parametrize("name", ["fp16", "BF16", ""])
def test_a_base_type_that_nobody_knows_is_refused_from_the_bus(name: str) -> None:
    told = encode_state(TrainingSettings(base_dtype=BaseDtype.BF16))
    assert decode_state(told, TrainingSettings).base_dtype is BaseDtype.BF16
    with pytest.raises(MalformedMessageError, match="base_dtype"):
        decode_state(told.replace(b'base_dtype":"bf16"', f'base_dtype":"{name}"'.encode()), TrainingSettings)


def test_settings_from_before_there_were_base_types_are_of_fp32() -> None:
    told = encode_state(TrainingSettings()).replace(b'"base_dtype":"fp32",', b"")
    assert b"base_dtype" not in told
    assert decode_state(told, TrainingSettings) == TrainingSettings()
