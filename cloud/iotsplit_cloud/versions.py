"""Adapter versions: averaged at the end of a round, published in sections, a few kept. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import safetensors.torch
import torch

from iotsplit.errors import TensorRefusedError
from iotsplit.messages import Message, Update
from iotsplit.plan import Tier
from iotsplit.retained import cut_version, digest
from iotsplit.role import Local
from iotsplit.settings import TrainingSettings, UpdateCodec
from iotsplit.states import AdapterHead, AdapterLatest, Assignment, Forget
from iotsplit.tensors import adapters
from iotsplit.tensors.aggregation import next_version, trained_in, with_momentum
from iotsplit.tensors.bounds import check_update
from iotsplit.tensors.updates import LARGEST_GROWTH, decode

KEPT_VERSIONS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Version(Local):
    """One adapter version: the safetensors of each tier's section.

    Args:
        parent: the version that it was made from; -1 of the first.
    """

    version: int
    round: int
    sections: Mapping[str, bytes]
    parent: int = -1

    def section(self, tier: Tier) -> dict[str, torch.Tensor]:
        """One tier's tensors."""
        return safetensors.torch.load(self.sections[tier])

    def tensors(self) -> dict[str, torch.Tensor]:
        """All sections together."""
        merged: dict[str, torch.Tensor] = {}
        for tier in Tier:
            merged |= self.section(tier)
        return merged


Shapes = Mapping[str, tuple[int, ...]]


def average(
    updates: Mapping[str, Mapping[Tier, Update]],
    *,
    start: Version,
    shapes: Mapping[Tier, Shapes],
    settings: TrainingSettings,
) -> dict[str, bytes]:
    """Average the devices' and the edges' sections, weighted by the loss tokens that each trained on.

    Args:
        updates: by device, then tier.
        start: the version that they began with.
        shapes: of each tier's LoRA parameters.
        settings: the fleet's, with the rule.

    Raises:
        PeerError: an update is not what was agreed.
    """
    sections = {}
    for tier in (Tier.DEVICE, Tier.EDGE):
        if not shapes[tier]:
            sections[str(tier)] = start.sections[tier]  # this tier trains nothing
            continue
        brought = [updates[device][tier] for device in sorted(updates)]
        tensors = [adapters.from_bytes(update.tensors, shapes[tier]) for update in brought]
        total = sum(update.tokens for update in brought)
        weights = [update.tokens / total for update in brought]
        merged = next_version(tensors, weights, start=start.section(tier), settings=settings)
        sections[str(tier)] = adapters.to_bytes(merged)
    return sections


class Library:
    """The versions that can be had from the bus.

    Args:
        model: fingerprint of the model.
        peft: the ``adapter_config.json`` of every version.
        chunk_bytes: largest retained message.
        shapes: of each tier's LoRA parameters.
        settings: the fleet's.
        held: versions from before a restart.
    """

    def __init__(
        self,
        *,
        model: str,
        peft: dict[str, Any],
        chunk_bytes: int,
        shapes: Mapping[Tier, Shapes],
        settings: TrainingSettings,
        held: list[Version],
    ) -> None:
        self._model, self._peft, self._chunk_bytes, self._shapes = model, peft, chunk_bytes, shapes
        self._settings = settings
        self._versions = {version.version: version for version in held}
        self.current = held[-1]
        self.newest = max(self._versions)
        self.head: AdapterHead | None = None  # of the current version, once it was published

    @property
    def digest(self) -> str:
        """What assignments name the current version by."""
        return digest(self.head) if self.head is not None else ""

    def publish(self) -> list[Message]:
        """Say the current version on the bus: chunks first, then the head, then that it is the latest."""
        chunks, head = cut_version(
            self.current.sections,
            version=self.current.version,
            round_=self.current.round,
            model=self._model,
            peft=self._peft,
            chunk_bytes=self._chunk_bytes,
        )
        self.head = head
        return [*chunks, head, AdapterLatest(version=self.current.version)]

    def check(self, tier: Tier, update: Update, assignment: Assignment) -> Update:
        """Look whether an update can be averaged, and can come from the version that its session began with.

        Returns:
            The update with all parameters, as float32.

        Raises:
            PeerError: it is not what was agreed, or further away than training goes.
        """
        base = self._versions.get(assignment.version)
        if base is None:
            raise TensorRefusedError(f"an update of version {assignment.version}, which is not kept any more")
        codec = self._settings.update_codec
        section = base.section(tier)
        start = {name: section[name] for name in trained_in(assignment.round, section, self._settings)}
        tensors = decode(update.tensors, start, codec)
        check_update(start, tensors, self._settings, growth=LARGEST_GROWTH[codec])
        if codec is UpdateCodec.FP32 and len(start) == len(section):
            return update
        return msgspec.structs.replace(update, tensors=adapters.to_bytes(section | tensors))

    def rebased(self, tier: Tier, update: Update, *, since: int) -> Update:
        """What an update of an earlier version would be today: its change, made to the current version.

        Args:
            tier: of the update.
            update: one that was checked.
            since: the version that it began with; the last few are kept.
        """
        if since == self.current.version:
            return update
        before = self._versions[since].section(tier)
        after = adapters.from_bytes(update.tensors, self._shapes[tier])
        today = {name: held + (after[name] - before[name]) for name, held in self.current.section(tier).items()}
        return msgspec.structs.replace(update, tensors=adapters.to_bytes(today))

    def add(
        self,
        updates: Mapping[str, Mapping[Tier, Update]],
        *,
        cloud: bytes,
        round_: int,
    ) -> Version:
        """Make the next version from a round's updates and the cloud's own section."""
        averaged = average(updates, start=self.current, shapes=self._shapes, settings=self._settings)
        sections = self._onwards(averaged) | {str(Tier.CLOUD): cloud}
        self.newest += 1
        parent = self.current.version  # not always the one before: there may have been a rollback
        self.current = Version(version=self.newest, round=round_, sections=sections, parent=parent)
        self._versions[self.newest] = self.current
        return self.current

    def _onwards(self, averaged: dict[str, bytes]) -> dict[str, bytes]:
        """Averaged sections with the fleet's momentum, which is in the current version and the one before."""
        before, momentum = self._versions.get(self.current.parent), self._settings.server_momentum
        if before is None or not momentum:
            return averaged
        return {
            tier: adapters.to_bytes(
                with_momentum(
                    safetensors.torch.load(section),
                    start=self.current.section(Tier(tier)),
                    before=before.section(Tier(tier)),
                    momentum=momentum,
                )
            )
            for tier, section in averaged.items()
        }

    def forget(self) -> list[Message]:
        """Clear what is too old from the bus."""
        said: list[Message] = []
        for old in sorted(self._versions)[:-KEPT_VERSIONS]:
            if old == self.current.version:
                continue
            gone = self._versions.pop(old)
            pieces = sum(-(-len(body) // self._chunk_bytes) or 1 for body in gone.sections.values())
            said += [Forget(path=f"adapter/{old}/head")]
            said += [Forget(path=f"adapter/{old}/{index}") for index in range(pieces)]
        return said

    def roll_back(self, version: int) -> str:
        """Make an older version current; return why not, or nothing."""
        if version not in self._versions:
            have = ", ".join(map(str, sorted(self._versions)))
            return f"version {version} is not kept, there are {have}"
        self.current = self._versions[version]
        return ""
