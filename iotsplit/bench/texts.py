"""What a model writes with a cell's adapter to held-out prompts, and how near that is to what was asked for."""

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iotsplit.bench.outcomes import Text
from iotsplit.datasets.records import Pair
from iotsplit.errors import RunFailedError

PATIENCE_S = 3600.0


def write(model: str, adapter: Path, pairs: Sequence[Pair], max_new_tokens: int) -> list[Text]:
    """Let the model answer prompts.

    Args:
        model: as `--model` names it.
        adapter: directory of the adapter.
        pairs: prompts with their answers.
        max_new_tokens: of each text.

    Raises:
        RunFailedError: the model cannot be loaded with the adapter.
    """
    if not pairs:
        return []
    # A line break stands between prompt and completion, as in training.
    request = {
        "model": model,
        "adapter": str(adapter),
        "prompts": [pair.prompt + "\n" for pair in pairs],
        "max_new_tokens": max_new_tokens,
        "before": False,
    }
    # A process of its own: the whole model's memory is given back, and none of it was ever in a fleet.
    done = subprocess.run(
        [sys.executable, "-m", "iotsplit.fleet.completions"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RunFailedError(f"nothing can be written with {adapter}: {last}", fix="look at the run's log")
    found: list[dict[str, str]] = json.loads(done.stdout)
    return [
        Text(prompt=pair.prompt, wanted=pair.completion.strip(), written=each["after"])
        for pair, each in zip(pairs, found, strict=True)
    ]


def bleu(texts: Sequence[Text], pairs: Sequence[Pair]) -> float | None:
    """BLEU of texts against all answers that their prompts have, by sacrebleu; None without it.

    Args:
        texts: what was written.
        pairs: held-out prompts with answers; a prompt may have several.
    """
    if importlib.util.find_spec("sacrebleu") is None:
        return None
    sacrebleu: Any = importlib.import_module("sacrebleu")
    answers = {
        text.prompt: [pair.completion.strip() for pair in pairs if pair.prompt == text.prompt] for text in texts
    }
    once = {text.prompt: text.written for text in texts}
    if not once:
        return None
    most = max(len(answers[prompt]) for prompt in once)
    references = [[(answers[prompt] + [None] * most)[place] for prompt in once] for place in range(most)]
    return float(sacrebleu.corpus_bleu(list(once.values()), references).score)
