"""Hidden states and gradients between tiers: codecs, sizes and bounds are the same for the whole fleet."""

import torch

from iotsplit.errors import DivergedError, NotFiniteError, TensorRefusedError
from iotsplit.messages import Activation, PackedTensor
from iotsplit.settings import Codec, TrainingSettings
from iotsplit.tensors.bounds import largest_hidden
from iotsplit.tensors.compression import Shape, pack, unpack


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

    def shape_of(self, content: Activation) -> Shape:
        """The shape (batch, time, width) of an activation: its sender says how long its sequences are.

        Raises:
            TensorRefusedError: more than was agreed, or more loss tokens than there can be.
        """
        shape = content.hidden.shape
        most = (self._settings.batch_size, self._settings.sequence_length, self._width)
        fits = len(shape) == len(most) and all(0 < n <= m for n, m in zip(shape, most, strict=True))
        if not fits or shape[2] != self._width:
            raise TensorRefusedError(f"hidden states of shape {shape}, at most {most} expected")
        # Sessions are weighed by their tokens: nobody may say of itself that it counts more.
        if content.step_tokens > most[0] * most[1]:
            raise TensorRefusedError(f"{content.step_tokens} loss tokens in a step of {most[0]} x {most[1]}")
        return shape

    def pack_hidden(self, hidden: torch.Tensor) -> PackedTensor:
        """Pack hidden states (batch, time, width).

        Raises:
            DivergedError: they are not finite, or too large.
        """
        largest = largest_hidden(hidden.numel(), self._settings.norm_bound)
        return self._pack(hidden, self._settings.activation_codec, largest)

    def pack_gradient(self, gradient: torch.Tensor) -> PackedTensor:
        """Pack a gradient (batch, time, width) by hidden states.

        Raises:
            DivergedError: it is not finite, or too large.
        """
        return self._pack(gradient, self._settings.gradient_codec, self._settings.norm_bound)

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

    def _pack(self, values: torch.Tensor, codec: Codec, largest: float) -> PackedTensor:
        try:
            return pack(values, codec, largest_norm=largest)
        except NotFiniteError as error:
            raise DivergedError(str(error)) from None
        except TensorRefusedError as error:
            raise DivergedError(error.reason) from None
