"""Hard limits of size, over packages, benchmarks and tests: what grows past them has to be divided."""

import ast
from pathlib import Path

import pytest

MODULE_LINES = 400
FUNCTION_LINES = 60

ROOT = Path(__file__).parents[1]
FOLDERS = (
    "benchmarks",
    "iotsplit",
    "devices/iotsplit_device",
    "edge/iotsplit_edge",
    "cloud/iotsplit_cloud",
    "broker/iotsplit_broker",
    "tests",
)
MODULES = [path.relative_to(ROOT) for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def long_functions(source: str, limit: int = FUNCTION_LINES) -> list[str]:
    """Names of functions of more than `limit` lines, decorators and docstring included."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if (node.end_lineno or first) - first + 1 > limit:
                found.append(node.name)
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_is_looked_at(folder: str) -> None:
    assert any(path.is_relative_to(folder) for path in MODULES)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_module_and_no_function_is_too_long(path: Path) -> None:
    source = (ROOT / path).read_text("utf-8")
    assert len(source.splitlines()) <= MODULE_LINES
    assert long_functions(source) == []


def test_methods_nested_functions_and_decorators_count() -> None:
    source = (
        "class A:\n    @first\n    @second\n    def long(self):\n        async def inner():\n            pass\n"
    )
    assert long_functions(source, 5) == []
    assert long_functions(source, 4) == ["long"]
    assert long_functions(source, 1) == ["long", "inner"]
