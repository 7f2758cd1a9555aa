"""Hidden states and gradients between tiers: codecs, sizes and bounds are the same for the whole fleet."""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple, cast

import torch

from iotsplit.errors import DivergedError, NotFiniteError, TensorRefusedError
from iotsplit.messages import Activation, Identity, PackedTensor
from iotsplit.plan import Tier
from iotsplit.settings import Codec, TrainingSettings
from iotsplit.states import Metrics, TensorKind
from iotsplit.tensors.bounds import largest_hidden
from iotsplit.tensors.compression import SCHEMES, Shape, check_norm, lost, pack, relative_error, unpack

_WORD = 2**64


class CodecError(NamedTuple):
    """What the codec has lost of a tensor that was sent, relative to its norm."""

    identity: Identity
    error: float


def is_checked(identity: Identity, settings: TrainingSettings) -> bool:
    """Whether the codec's error is measured in a micro-batch: the same for all tiers and repetitions."""
    name = f"{settings.seed} {identity.session} {identity.step} {identity.micro_batch}"
    drawn = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return drawn < settings.codec_check * _WORD


def as_metrics(errors: Iterable[CodecError], *, agent: str, role: Tier, round_: int) -> list[Metrics]:
    """Metrics that tell of errors."""
    return [
        Metrics(
            agent=agent,
            role=role,
            round=round_,
            session=identity.session,
            step=identity.step,
            codec_error={cast("TensorKind", identity.kind): error},
        )
        for identity, error in errors
    ]


class Exchange:
    """Packs what a tier has made, and unpacks what it is sent.

    What a peer has sent and is refused may come right when it is asked for again. What this tier has made
    itself will be the same again, so it has an error of its own.

    Args:
        settings: the fleet's.
        width: of the hidden states.
    """

    def __init__(self, settings: TrainingSettings, width: int) -> None:
        self._settings = settings
        self._width = width
        self._errors: list[CodecError] = []

    def shape_of(self, content: Activation) -> Shape:
        """The shape (batch, time, width) of an activation: its sender says how long its sequences are.

        Raises:
            TensorRefusedError: more than was agreed, or more loss tokens than there can be.
        """
        shape = content.hidden.shape
        if content.cached is not None:  # others of its rows come as changes
            shape = (len(content.cached.samples), *shape[1:])
        most = (self._settings.batch_size, self._settings.sequence_length, self._width)
        fits = len(shape) == len(most) and all(0 < n <= m for n, m in zip(shape, most, strict=True))
        if not fits or shape[2] != self._width:
            raise TensorRefusedError(f"hidden states of shape {shape}, at most {most} expected")
        # Sessions are weighed by their tokens: nobody may say of itself that it counts more.
        if content.step_tokens > most[0] * most[1]:
            raise TensorRefusedError(f"{content.step_tokens} loss tokens in a step of {most[0]} x {most[1]}")
        return shape

    def largest_error(self, kind: str) -> float:
        """Bound of what the codec loses of tensors of that kind, relative to their norm."""
        error = SCHEMES[self._codec_of(kind)].largest_error
        return max(error, 1.0) if kind == "activation" and self._settings.cache_bytes else error

    def take_errors(self) -> list[CodecError]:
        """What was measured since the last call."""
        errors, self._errors = self._errors, []
        return errors

    def pack_hidden(self, hidden: torch.Tensor, at: Identity | None = None) -> PackedTensor:
        """Pack hidden states (batch, time, width).

        Args:
            hidden: the values.
            at: the frame that they are for, if the codec's error may be measured there.

        Raises:
            DivergedError: they are not finite, or too large.
        """
        largest = largest_hidden(hidden.numel(), self._settings.norm_bound)
        return self._pack(hidden, self._settings.activation_codec, largest, at)

    def pack_gradient(self, gradient: torch.Tensor, at: Identity | None = None) -> PackedTensor:
        """Pack a gradient (batch, time, width) by hidden states.

        Args:
            gradient: the values.
            at: the frame that they are for, if the codec's error may be measured there.

        Raises:
            DivergedError: it is not finite, or too large.
        """
        return self._pack(gradient, self._settings.gradient_codec, self._settings.norm_bound, at)

    def unpack_hidden(self, packed: PackedTensor, shape: Shape) -> torch.Tensor:
        """Unpack hidden states, as float32 of `shape`.

        Raises:
            PeerError: they are not what was agreed, not finite, or too large.
        """
        largest = largest_hidden(torch.Size(shape).numel(), self._settings.norm_bound)
        return unpack(packed, shape=shape, codec=self._settings.activation_codec, largest_norm=largest)

    def unpack_gradient(self, packed: PackedTensor, shape: Shape) -> torch.Tensor:
        """Unpack a gradient by hidden states, as float32 of `shape`.

        Raises:
            PeerError: it is not what was agreed, not finite, or too large.
        """
        largest = self._settings.norm_bound
        return unpack(packed, shape=shape, codec=self._settings.gradient_codec, largest_norm=largest)

    def check_hidden(self, hidden: torch.Tensor) -> None:
        """Look whether hidden states that were read are acceptable.

        Raises:
            PeerError: they are not finite, or too large.
        """
        check_norm(hidden, largest_hidden(hidden.numel(), self._settings.norm_bound), "tensor received")

    def measure(self, sent: torch.Tensor, read: torch.Tensor, at: Identity) -> None:
        """Note what was lost of a tensor between the ends, if that is measured in its micro-batch."""
        if is_checked(at, self._settings):
            self._errors.append(CodecError(at, lost(sent, read)))

    def _codec_of(self, kind: str) -> Codec:
        settings = self._settings
        return settings.gradient_codec if kind in {"gradient", "tail_gradient"} else settings.activation_codec

    def _pack(self, values: torch.Tensor, codec: Codec, largest: float, at: Identity | None) -> PackedTensor:
        try:
            packed = pack(values, codec, largest_norm=largest)
            if at is not None and is_checked(at, self._settings):
                self._errors.append(CodecError(at, relative_error(packed, values, codec)))
        except NotFiniteError as error:
            raise DivergedError(str(error)) from None
        except TensorRefusedError as error:
            raise DivergedError(error.reason) from None
        return packed
