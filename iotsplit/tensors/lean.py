"""Keeps out of agents what transformers and torch load for compilers and clusters: 100 MB that no tier uses.

transformers imports torch's compiler for decorators that do nothing unless something is compiled, and torch's
optimizers import it only to leave it; it brings sympy along. Here it sleeps until it is really used. And where
torch can be one of several processes that compute together, transformers imports tensors that lie on several
machines. Agents compute alone: they say what torch says of itself where it was built without that.
"""

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

_COMPILER = "torch._dynamo"
_INDEXING = f"{_COMPILER}._trace_wrapped_higher_order_op"


def spare_memory() -> None:
    """Arrange all this for the process; what is loaded already stays."""
    if _COMPILER not in sys.modules:
        compiler = _SleepingCompiler(_COMPILER)
        sys.modules[_COMPILER] = compiler
        sys.modules[_INDEXING] = _sleeping_indexing()
        torch._dynamo = compiler  # noqa: SLF001 - where an import puts it
    torch.distributed.is_available = _never


class _SleepingCompiler(types.ModuleType):
    """Stands for `torch._dynamo`: what runs uncompiled finds that it has nothing to do.

    Whoever asks for anything else gets the real module, which then takes this one's place.
    """

    @staticmethod
    def disable(fn: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
        """The function itself: it is not compiled."""
        return fn if fn is not None else _itself

    @staticmethod
    def assume_constant_result(fn: Callable[..., Any]) -> Callable[..., Any]:
        """The function itself: nobody traces its result."""
        return fn

    @staticmethod
    def allow_in_graph(fn: Callable[..., Any]) -> Callable[..., Any]:
        """The function itself: there is no graph for it to be in."""
        return fn

    @staticmethod
    def graph_break(*_: Any, **__: Any) -> None:
        """Nothing: there is no graph."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # what imports and inspect look for
            raise AttributeError(name)
        return getattr(_wake(), name)


def _itself(fn: Callable[..., Any]) -> Callable[..., Any]:
    return fn


def _sleeping_indexing() -> types.ModuleType:
    """Stands for the module of a context that transformers enters only for unusual attention masks."""
    module = types.ModuleType(_INDEXING)

    def indexing() -> Any:
        _wake()
        return importlib.import_module(_INDEXING).TransformGetItemToIndex()

    module.TransformGetItemToIndex = indexing  # type: ignore[attr-defined]
    return module


def _wake() -> types.ModuleType:
    """Load the compiler in the place of what stands for it."""
    if isinstance(sys.modules.get(_COMPILER), _SleepingCompiler):
        del sys.modules[_COMPILER]
        del sys.modules[_INDEXING]
    return importlib.import_module(_COMPILER)


def _never() -> bool:
    return False
