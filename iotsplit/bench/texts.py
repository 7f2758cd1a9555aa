"""What a model writes with a cell's adapter to held-out prompts, and how near that is to what was asked for."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iotsplit.bench.outcomes import Text
from iotsplit.datasets.records import Pair
from iotsplit.fleet import completions
from iotsplit.fleet.completions import Request

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
    request = Request(
        model=model,
        adapter=str(adapter),
        prompts=[pair.lead for pair in pairs],
        max_new_tokens=max_new_tokens,
        before=False,
    )
    found = completions.write(request, patience_s=PATIENCE_S)
    return [
        Text(prompt=pair.prompt, wanted=pair.completion.strip(), written=each["after"])
        for pair, each in zip(pairs, found, strict=True)
    ]


def bleu(texts: Sequence[Text], answers: Mapping[str, Sequence[str]]) -> float | None:
    """BLEU of texts against all answers that their prompts have, by sacrebleu; None without it.

    Args:
        texts: what was written.
        answers: to each of their prompts.
    """
    if not texts or importlib.util.find_spec("sacrebleu") is None:
        return None
    sacrebleu: Any = importlib.import_module("sacrebleu")
    most = max(len(answers[text.prompt]) for text in texts)
    references = [[([*answers[text.prompt]] + [None] * most)[place] for text in texts] for place in range(most)]
    return float(sacrebleu.corpus_bleu([text.written for text in texts], references).score)
