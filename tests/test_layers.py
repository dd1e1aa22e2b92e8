"""The house as a table: what each room may import. No import runs up, and none in a circle."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "clair_cli"

# From the ground up: a room may import itself and only what stands above it in this table, which
# a test below checks; so no circle of rooms can be. The longest name that fits a module counts.
MAY_IMPORT: dict[str, str] = {
    "errors": "",
    "version": "",
    "text": "errors",
    "extras": "errors",
    "report.fields": "",
    "remark": "errors text report.fields",
    "allowed": "errors text",
    # maths: torch, numpy and scipy only
    "maths": "",
    "maths.factors": "",
    "maths.evidence": "maths.factors",
    "maths.judge": "maths.factors maths.evidence",
    "maths.merge": "maths.factors",
    "maths.refine": "maths.factors",
    # what strangers send
    "store": "errors text",
    "formats": "errors text store",
    "formats.safetensors": "errors text store formats",
    "adapters.names": "errors text remark formats",
    "option": "errors text store formats allowed",
    "pipeline_options": "errors text store option",
    "settings": "errors text store formats option pipeline_options allowed",
    "adapters": "errors text remark store formats formats.safetensors adapters.names",
    "cohort": "errors text remark store formats formats.safetensors adapters.names adapters"
    " settings",
    # what comes of it
    "report.results": "report.fields",
    "report.cohort": "report.fields",
    "report.plain": "text report.fields",
    "report.notebook": "errors text",
    "report.model": "remark report.fields report.results report.cohort report.plain"
    " report.notebook",
    "report.changes": "report.results report.model",
    "report": "errors version text remark store formats report.fields report.results report.model"
    " report.plain",
    "words": "text option settings report.results report.cohort report.model report.changes",
    "pictures": "report.results report.model",
    "html": "text report.results report.model words pictures",
    "rendered": "version extras text remark settings report.results report.model report words html",
    "output": "errors text store formats formats.safetensors",
    # where work runs
    "engine": "errors text settings store formats formats.safetensors adapters cohort output"
    " maths.factors maths.evidence maths.merge",
    # from clients to a result
    "workflow": "errors version text remark allowed option settings store formats"
    " formats.safetensors adapters cohort maths.factors maths.evidence maths.judge maths.merge"
    " maths.refine report.results report.cohort report.model report output engine pipeline_options"
    " rendered",
    "api": "errors settings store cohort report.model engine rendered workflow",
    "conversion": "errors remark settings store formats cohort output engine workflow",
    "federated": "errors text settings store formats formats.safetensors adapters cohort"
    " report.model report output workflow",
    "verification": "errors version text settings store formats adapters cohort report.fields"
    " report.model report output engine workflow api",
    "__init__": "errors version remark report.results report.cohort report.model report api"
    " conversion verification",
    # what people see: imports no torch
    "plot": "extras text report.results report.model pictures",
    "cli": "__init__ errors version text option settings store formats report.results report.cohort"
    " report.model report.changes pipeline_options words rendered pictures html plot report output"
    " engine api conversion verification",
    "__main__": "cli",
}

# Maths is pure: no files, console, environment, clock or chance of its own.
IMPURE = {"os", "sys", "json", "pathlib", "io", "logging", "time", "random", "subprocess"}
HEAVY = {"torch", "numpy", "scipy", "safetensors"}
MAY_NOT_IMPORT_TORCH = {"__init__", "__main__", "cli", "errors", "option", "report", "settings"}
MAY_NOT_IMPORT_TORCH |= {"allowed", "text", "remark", "version", "words", "report.model"}
MAY_NOT_IMPORT_TORCH |= {"report.results", "rendered", "pipeline_options", "report.plain"}
MAY_NOT_IMPORT_TORCH |= {"pictures", "html", "plot", "report.changes"}
MAY_NOT_IMPORT_TORCH |= {"extras", "report.notebook", "report.fields", "report.cohort"}
MAY_NOT_IMPORT_TORCH |= {"store"}


@functools.cache
def parsed(source: str) -> tuple[list[ast.stmt], list[ast.AST]]:
    """The statements of a source, once a source; and those nodes, at any depth, that import or are
    an `if`."""
    tree = ast.parse(source)
    kinds = (ast.Import, ast.ImportFrom, ast.If)
    return tree.body, [node for node in ast.walk(tree) if isinstance(node, kinds)]


def imports(source: str, module: str, *, types: bool = True) -> set[str]:
    """Dotted names of the modules that `source`, being `module`, imports, at any depth.

    Args:
        types: whether imports under `if TYPE_CHECKING` count.
    """
    found: set[str] = set()
    _, nodes = parsed(source)
    for_types = {
        id(inner)
        for node in nodes
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in nodes:
        if not types and id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = module.split(".")[: -node.level]
                base = ".".join([*parent, *filter(None, [base])])
            for alias in node.names:
                inside = f"{base}.{alias.name}"
                found.add(inside if _exists(inside) else base)
    return found


def room(module: str) -> str:
    """The row of the table that a module of ours is in."""
    parts = module.split(".")[1:] or ["__init__"]
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in MAY_IMPORT:
            return ".".join(parts[:length])
    raise AssertionError(f"{module} is in no row of the table")


def breaches(source: str, module: str) -> list[str]:
    """The imports of `module` that its room may not have."""
    own = room(module)
    bad = []
    for name in sorted(imports(source, module)):
        first = name.split(".")[0]
        if first == "clair_cli":
            other = room(name) if _exists(name) else "__init__"
            if other != own and other not in MAY_IMPORT[own].split():
                bad.append(name)
        elif (own.startswith("maths") and first in IMPURE) or (
            own in MAY_NOT_IMPORT_TORCH and first in HEAVY
        ):
            bad.append(name)
    return bad


def _exists(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


FILES = sorted(PACKAGE.rglob("*.py"))


def test_no_row_of_the_table_looks_down() -> None:
    above: set[str] = set()
    for name, allowed in MAY_IMPORT.items():
        assert set(allowed.split()) <= above, name
        above.add(name)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_one_way(path: Path) -> None:
    assert breaches(path.read_text(encoding="utf-8"), module_of(path)) == []


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_scipy_is_imported_only_inside_functions(path: Path) -> None:
    """It takes a third of a second: `import clair_cli.maths` and `--help` do without it."""
    body, _ = parsed(path.read_text(encoding="utf-8"))
    at_once = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not any("scipy" in ast.unparse(node) for node in at_once)


def test_no_files_import_each_other_in_a_circle() -> None:
    """Inside a room too, and also by imports inside of functions; those for types only may."""
    graph = {}
    for path in FILES:
        source = path.read_text(encoding="utf-8")
        graph[module_of(path)] = imports(source, module_of(path), types=False)
    while graph:
        free = [name for name, needs in graph.items() if not needs & (graph.keys() - {name})]
        assert free, f"a circle among {sorted(graph)}"
        for name in free:
            del graph[name]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("clair_cli.maths.judge.prox", "import json"),
        ("clair_cli.maths.judge.prox", "def f():\n    from os import path"),
        ("clair_cli.maths.judge.prox", "from clair_cli.report.model import Report"),
        ("clair_cli.maths.judge.prox", "from clair_cli import errors"),
        ("clair_cli.maths.judge.prox", "from ...formats import limits"),
        ("clair_cli.maths.factors.stack", "from clair_cli.maths.judge import prox"),
        ("clair_cli.maths.merge.mean", "from clair_cli.maths.judge import prox"),
        ("clair_cli.formats.limits", "import clair_cli.maths.judge.prox"),
        ("clair_cli.formats.limits", "from clair_cli import workflow"),
        ("clair_cli.adapters.names.peft", "from clair_cli.adapters import layout"),
        ("clair_cli.cohort.load", "from clair_cli.workflow.read import read_cohort"),
        ("clair_cli.output.draft", "from clair_cli.cohort.find import WEIGHTS"),
        ("clair_cli.engine.device", "from clair_cli.workflow import run"),
        ("clair_cli.workflow.run", "from clair_cli import api"),
        ("clair_cli.workflow.run", "from clair_cli import __version__"),
        ("clair_cli.api", "from clair_cli.verification import verify"),
        ("clair_cli.cli.render", "import torch"),
        ("clair_cli.workflow.run", "from clair_cli.cli.render import render"),
        ("clair_cli.cli.app", "from clair_cli.maths.judge import prox"),
        ("clair_cli.cli.app", "from clair_cli.cohort.load import load_client"),
        ("clair_cli.cli.app", "def f():\n    import numpy as np"),
        ("clair_cli.report.model", "from clair_cli import __version__"),
    ],
)
def test_the_checker_sees_a_breach(module: str, source: str) -> None:
    assert len(breaches(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("clair_cli.maths.judge.prox", "import torch\nfrom clair_cli.maths.factors import stack"),
        ("clair_cli.maths.judge.prox", "from . import thresholds"),
        ("clair_cli.workflow.run", "from clair_cli.formats import limits\nimport torch"),
        ("clair_cli.cli.app", "from clair_cli import __version__, api"),
    ],
)
def test_the_checker_lets_the_rest_pass(module: str, source: str) -> None:
    assert breaches(source, module) == []
