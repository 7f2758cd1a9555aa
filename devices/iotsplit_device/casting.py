"""A device for those who drive it themselves: replay, and fleets in memory."""

import torch

from iotsplit.tape.casting import Actor, Props, find_model
from iotsplit_device.command import Corpus, DeviceOptions, Tokenizers, make_loader, read_records
from iotsplit_device.role import DeviceRole
from iotsplit_device.store import DeviceStore


def cast(props: Props) -> Actor:
    """A device from its model, data and disk.

    Raises:
        UsageError: model or data cannot be used.
        MismatchError: the model is another one.
    """
    torch.set_num_threads(props.birth.threads)
    directory, info = find_model(props)
    options = DeviceOptions(id=props.birth.agent, data=props.data, columns=props.columns)
    limit = options.eval_limit if props.eval_limit is None else props.eval_limit
    corpus = Corpus(
        records=read_records(options, props.birth.agent),
        tokenizers=Tokenizers(directory),
        eval_limit=limit,
    )
    store = DeviceStore(props.disk / "checkpoints", model=info.fingerprint)
    saved = [each for each in store.load() if props.resumed_at is None or each.step <= props.resumed_at]
    loader = make_loader(directory, info, corpus, device=props.birth.agent)
    role = DeviceRole(birth=props.birth, load=loader, saved=saved, cached=store.cached())
    return Actor(role=role, sink=store.take, close=store.close)
