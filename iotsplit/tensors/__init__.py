"""The tensor side of all tiers: the only part of the core that imports torch, transformers and peft."""

from iotsplit.tensors.lean import spare_memory

spare_memory()  # before any of its modules imports transformers
