"""Writes before and after an adapter, as a process: a request as JSON on stdin, the texts on stdout."""

import json
import sys
from pathlib import Path

import msgspec

from iotsplit.runtime.serve import cache_directory


class Request(msgspec.Struct, kw_only=True):
    """What to write.

    Args:
        model: as ``--model`` names it.
        adapter: directory of the adapter.
        prompts: texts to be continued.
        max_new_tokens: of each continuation.
    """

    model: str
    adapter: str
    prompts: list[str]
    max_new_tokens: int


def main() -> None:
    """Answer the request on stdin."""
    from iotsplit.tensors.completion import complete  # noqa: PLC0415 - needs torch
    from iotsplit.tensors.models import resolve  # noqa: PLC0415 - needs torch

    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    model = resolve(request.model, cache_directory())
    before, after = (
        complete(model, adapter, request.prompts, request.max_new_tokens)
        for adapter in (None, Path(request.adapter))
    )
    texts = [
        {"prompt": prompt, "before": first.strip(), "after": second.strip()}
        for prompt, first, second in zip(request.prompts, before, after, strict=True)
    ]
    sys.stdout.write(json.dumps(texts) + "\n")


if __name__ == "__main__":
    main()
