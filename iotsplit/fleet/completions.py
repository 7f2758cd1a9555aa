"""Writes before and after an adapter, as a process: a request as JSON on stdin, the texts on stdout."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec

from iotsplit.errors import RunFailedError
from iotsplit.runtime.serve import cache_directory


class Request(msgspec.Struct, kw_only=True):
    """What to write.

    Args:
        model: as ``--model`` names it.
        adapter: directory of the adapter.
        prompts: texts to be continued.
        max_new_tokens: of each continuation.
        before: whether the model's own continuations are wanted too.
    """

    model: str
    adapter: str
    prompts: list[str]
    max_new_tokens: int
    before: bool = True


def write(request: Request, *, patience_s: float) -> list[dict[str, str]]:
    """Let a process of its own write: the whole model's memory is given back, and none of it is in a fleet.

    Args:
        request: what to write.
        patience_s: for how long to wait.

    Returns:
        for each prompt `prompt`, `after`, and `before` where that is wanted.

    Raises:
        RunFailedError: the model cannot be loaded with the adapter, or it takes too long.
    """
    words = [sys.executable, "-m", "iotsplit.fleet.completions"]
    try:
        done = subprocess.run(
            words, input=msgspec.json.encode(request), capture_output=True, timeout=patience_s, check=True
        )
    except subprocess.TimeoutExpired:
        reason = f"it has taken longer than {patience_s:.0f} s"
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        reason = said[-1] if said else "it said nothing"
    else:
        return msgspec.json.decode(done.stdout, type=list[dict[str, str]])
    raise RunFailedError(
        f"nothing can be written with {request.adapter}: {reason}", fix="look at the run's log"
    )


def main() -> None:
    """Answer the request on stdin."""
    from iotsplit.tensors.completion import complete  # noqa: PLC0415 - needs torch
    from iotsplit.tensors.models import resolve  # noqa: PLC0415 - needs torch

    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    model = resolve(request.model, cache_directory())
    texts = [{"prompt": prompt} for prompt in request.prompts]
    wanted: dict[str, Path | None] = {"before": None} if request.before else {}
    wanted["after"] = Path(request.adapter)
    for when, adapter in wanted.items():
        written = complete(model, adapter, request.prompts, request.max_new_tokens)
        for text, each in zip(texts, written, strict=True):
            text[when] = each.strip()
    sys.stdout.write(json.dumps(texts) + "\n")


if __name__ == "__main__":
    main()
