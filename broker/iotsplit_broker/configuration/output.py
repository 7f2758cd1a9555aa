"""Configurations that a command made: to stdout, or into files that nothing overwrites unasked."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from iotsplit.errors import UsageError
from iotsplit.runtime.files import replace, writing

MODE, SECRET_MODE = 0o644, 0o600


def show(texts: Mapping[str, str], *, as_json: bool) -> None:
    """Print texts; with more than one, each below its name."""
    if as_json:
        sys.stdout.write(json.dumps({"files": dict(texts)}, ensure_ascii=False) + "\n")
    elif len(texts) == 1:
        sys.stdout.writelines(texts.values())
    else:
        sys.stdout.write("\n".join(f"==> {name} <==\n{text}" for name, text in texts.items()))
    sys.stdout.flush()


def write(texts: Mapping[Path, str], *, force: bool, secret: bool, as_json: bool) -> None:
    """Write files, all or, if one is there, none.

    Args:
        texts: their contents.
        force: overwrite what is there.
        secret: for their owner's eyes only.
        as_json: how to tell what was written.

    Raises:
        UsageError: one is there.
        RunFailedError: the disk refuses.
    """
    there = [path for path in texts if path.exists()]
    if there and not force:
        raise UsageError(f"{there[0]} is there", fix="choose another --output, or --force to overwrite it")
    for path, text in texts.items():
        with writing(path, fix="choose another --output"):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(path, text.encode(), mode=SECRET_MODE if secret else MODE)
    names = [str(path) for path in texts]
    sys.stdout.write(
        json.dumps({"written": names}) + "\n" if as_json else "".join(f"{name}\n" for name in names)
    )
    sys.stdout.flush()
