"""What becomes of a cell. Pure."""

import msgspec

from iotsplit.bench.cells import Case, Cell
from iotsplit.bench.figures import Figures
from iotsplit.bench.schemes import Scheme


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt, what is held out as its answer, and what the model wrote."""

    prompt: str
    wanted: str
    written: str


class Outcome(msgspec.Struct, kw_only=True):
    """What became of a cell.

    Args:
        state: `done`, `failed`, or `left out` because the machine has too little memory.
        reason: why, if it is not done.
        needed: bytes that each tier was expected to take.
        texts: what the model writes with the adapter.
        bleu: of those texts, if there are references and sacrebleu.
        wall_s: of the whole cell.
    """

    scheme: Scheme
    case: Case
    state: str
    reason: str = ""
    needed: dict[str, int] = {}
    figures: Figures | None = None
    texts: list[Text] = []
    bleu: float | None = None
    wall_s: float = 0.0

    @property
    def cell(self) -> Cell:
        """Whose this is."""
        return Cell(scheme=self.scheme, case=self.case)
