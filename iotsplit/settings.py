"""Settings that a whole fleet shares: the cloud decides them and sends them with every assignment.

Each field is a flag of ``iotsplit run`` and ``iotsplit cloud``, an environment variable
(``IOTSPLIT_LOCAL_STEPS``) and a TOML key (``local_steps``), all of the same name.
"""

from dataclasses import dataclass
from enum import StrEnum

from iotsplit.errors import UsageError
from iotsplit.plan import Labels, is_federated
from iotsplit.quantities import read_size


class Codec(StrEnum):
    """How activations and gradients are encoded on the bus."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"
    INT2 = "int2"


class UpdateCodec(StrEnum):
    """How LoRA updates are encoded on their way to the cloud."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"


class Aggregation(StrEnum):
    """How the adapters of a round become the next version."""

    FEDAVG = "fedavg"
    FLEXLORA = "flexlora"
    MEDIAN = "median"
    ROLORA = "rolora"
    TRIMMED = "trimmed"


class Stragglers(StrEnum):
    """What becomes of a session that brings nothing for longer than the step's time-out."""

    WAIT = "wait"
    DROP = "drop"
    CARRY = "carry"


class Optimizer(StrEnum):
    """The optimizer of every tier."""

    ADAMW = "adamw"
    SGD = "sgd"


class BaseDtype(StrEnum):
    """What every tier keeps its frozen matrices in; it multiplies in float32."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"


MOST_TRIMMED = 0.5
"""Below it something is left between both ends."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What is trained and how; the same for all agents of a fleet.

    Args:
        rounds: Rounds to train; at the end of each the adapters are averaged.
        local_steps: Optimizer steps of each device in a round.
        batch_size: Sequences of each device in a step.
        micro_batches: Pieces that a batch is cut into, so that the tiers work at the same time.
        sequence_length: Tokens of the longest sequence.
        cut: First layer of the edge and first layer of the cloud. If the second is the number of layers, the
            cloud has only the head; if both are, each device trains the whole model and only LoRA travels.
        labels: Where the loss is computed. With `cloud` the token ids of the training text reach the cloud.
        codec: Encoding of activations and gradients, `fp32`, `bf16`, `int8`, `int4` or `int2`; or one for each,
            such as `int4:int2`. Two bits are enough for gradients, and too few for activations.
        codec_cache: Remember so much of each device's samples, such as `64MB`, at both ends of each hop, and
            send only what has changed since a sample was sent last; `0` remembers nothing.
        codec_check: Share of the micro-batches of which is measured what the codec loses, from 0 to 1.
        update_codec: Encoding of what devices and edges have trained in a round: the values in `fp32`, or their
            change since the adapter version in `bf16` or `int8`.
        aggregation: How adapters are averaged: A and B apart (`fedavg`), their product (`flexlora`), only B and
            only A in turn by round (`rolora`), A and B without extreme values (`trimmed`), or to the geometric
            median of the products (`median`).
        trim: With `trimmed`, share of the devices whose values are left out at each end; at least one of three.
        server_momentum: Share of a version's change that the next one makes again (FedAvgM), 0 to below 1, of
            what devices and edges train.
        clip_updates: Shorten updates that are longer than the median of the round, whatever the aggregation.
        norm_bound: Largest root mean square of hidden states and largest norm of a gradient; a session that
            exceeds it leaves the round.
        base_dtype: What frozen matrices are kept in, fp32, bf16 or int8; computed is in fp32 with any of them.
        rank: Rank of the LoRA adapter.
        alpha: Scale of the LoRA adapter (the update is multiplied by alpha / rank).
        target_modules: Names of the linear layers to adapt, or `all-linear`.
        optimizer: Optimizer on every tier.
        learning_rate: Its learning rate.
        seed: Seed of everything random: initial adapter, batches, rotation.
        evaluate: Evaluate on held-out data after every round, or only at both ends.
        checkpoint_every: Steps between two checkpoints; a lost agent repeats at most twice as many.
    """

    rounds: int = 3
    local_steps: int = 10
    batch_size: int = 4
    micro_batches: int = 2
    sequence_length: int = 128
    cut: tuple[int, int] = (4, 15)
    labels: Labels = Labels.CLOUD
    codec: str = "int8"
    codec_cache: str = "0"
    codec_check: float = 0.01
    update_codec: UpdateCodec = UpdateCodec.BF16
    aggregation: Aggregation = Aggregation.FEDAVG
    trim: float = 0.2
    server_momentum: float = 0.0
    clip_updates: bool = False
    norm_bound: float = 1e5
    base_dtype: BaseDtype = BaseDtype.FP32
    rank: int = 8
    alpha: float = 16.0
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    optimizer: Optimizer = Optimizer.ADAMW
    learning_rate: float = 1e-3
    seed: int = 0
    evaluate: str = "ends"
    checkpoint_every: int = 10

    @property
    def federated(self) -> bool:
        """Whether each device trains the whole model by itself, and only LoRA parameters travel."""
        return is_federated(self.cut)

    @property
    def activation_codec(self) -> Codec:
        """Encoding of activations, those that go down to the head on a device included."""
        return Codec(self.codec.partition(":")[0])

    @property
    def gradient_codec(self) -> Codec:
        """Encoding of gradients."""
        return Codec(self.codec.rpartition(":")[2])

    @property
    def cache_bytes(self) -> int:
        """What is remembered of a device's samples at each end of a hop, at most; 0 if nothing is."""
        return 0 if self.codec_cache == "0" else read_size(self.codec_cache)

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the setting.

        Raises:
            UsageError: a value is out of its range.
        """
        _check_cache(self.codec_cache)
        _check_codec(self.codec, self.codec_check)
        for name in ("rounds", "local_steps", "batch_size", "micro_batches", "rank", "checkpoint_every"):
            at_least(name, getattr(self, name), 1)
        at_least("sequence_length", self.sequence_length, 2)
        at_least("seed", self.seed, 0)
        if self.micro_batches > self.batch_size:
            raise UsageError(
                f"micro_batches {self.micro_batches} is more than batch_size {self.batch_size}",
                fix="use fewer micro-batches or a larger batch",
            )
        self._check_numbers()
        if not self.target_modules:
            raise UsageError("target_modules is empty", fix="name linear layers, or all-linear")
        if self.evaluate not in {"rounds", "ends"}:
            raise UsageError(f"evaluate {self.evaluate!r} is unknown", fix="use rounds or ends")

    def _check_numbers(self) -> None:
        if not 0 < self.learning_rate < float("inf") or not 0 < self.alpha < float("inf"):
            raise UsageError("learning_rate and alpha must be above 0", fix="for example 1e-3 and 16")
        if not 0 <= self.trim < MOST_TRIMMED:
            raise UsageError(f"trim {self.trim} leaves nothing", fix="use 0 or more and less than 0.5")
        if not 0 <= self.server_momentum < 1:
            raise UsageError(
                f"server_momentum {self.server_momentum} never ends",
                fix="use 0 or more and less than 1, such as 0.9",
            )
        if self.server_momentum and self.aggregation in {Aggregation.FLEXLORA, Aggregation.MEDIAN}:
            raise UsageError(
                f"server_momentum has no direction with aggregation {self.aggregation}: "
                "each version's factors are of another basis",
                fix="leave it out, or use aggregation fedavg or trimmed",
            )
        if not 0 < self.norm_bound < float("inf"):
            raise UsageError(f"norm_bound {self.norm_bound} is no bound", fix="use a number such as 1e5")


def _check_cache(size: str) -> None:
    try:
        if size != "0":
            read_size(size)
    except UsageError:
        raise UsageError(f"codec_cache {size!r} is no size", fix="write 64MB, or 0 for none") from None


def _check_codec(codec: str, share: float) -> None:
    if not set(codec.split(":", 1)) <= set(Codec):
        known = ", ".join(Codec)
        raise UsageError(
            f"codec {codec!r} is unknown",
            fix=f"use one of {known}, or one for activations and one for gradients, such as int4:int2",
        )
    if not 0 <= share <= 1:  # so that NaN is refused too
        raise UsageError(f"codec_check {share} is no share", fix="use 0 to 1, such as 0.01")


def at_least(name: str, value: int, least: int) -> None:
    """Refuse a setting that is too small.

    Raises:
        UsageError: it is, and named.
    """
    if value < least:
        raise UsageError(f"{name} {value} is too small", fix=f"use {least} or more")


@dataclass(frozen=True, kw_only=True)
class FleetSettings:
    """Who takes part and when rounds run; only the cloud needs to know.

    Args:
        devices: Devices to wait for before the first round.
        edges: Edges to wait for before the first round.
        devices_per_edge: Devices that an edge serves in a round; default all, dealt evenly.
        schedule: When rounds start: `now`, `every 30m`, or a cron line such as `cron 0 22 * * *`.
        window: Times of day in which rounds may start, such as `22:00-06:00`.
        step_timeout: Seconds after which a session that brings nothing holds up the others too long.
        stragglers: Then the others wait for as long as it takes, or go on without it in this round; with
            `carry` the steps that it has done count in this round or, if it comes too late, in the next.
        wait_timeout: Seconds to wait for the fleet to come together, or else to give up; 0 waits for ever.
        once: End when the rounds are done, instead of serving the adapter versions on.
    """

    devices: int = 1
    edges: int = 1
    devices_per_edge: int | None = None
    schedule: str = "now"
    window: str = ""
    step_timeout: float = 120.0
    stragglers: Stragglers = Stragglers.DROP
    wait_timeout: float = 0.0
    once: bool = False

    @property
    def always_due(self) -> bool:
        """Whether a round follows the other."""
        return self.schedule == "now" and not self.window

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the setting.

        Raises:
            UsageError: a value is out of its range.
        """
        at_least("devices", self.devices, 1)
        at_least("edges", self.edges, 1)
        if self.devices_per_edge is not None:
            at_least("devices_per_edge", self.devices_per_edge, 1)
        if not (self.step_timeout > 0 and self.wait_timeout >= 0):  # so that NaN is refused too
            raise UsageError("a time-out is not above zero", fix="give seconds, such as --step-timeout 120")
