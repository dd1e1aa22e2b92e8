"""Imports point one way: cli -> render -> report, cli -> workflow -> formats and maths."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "clair_cli"
LEAVES = {"errors", "report", "escape", "own_process"}
CLI = {"cli", "cli_group", "cli_options", "cli_options_running", "cli_paths", "exits"}
CLI |= {"terminal", "watch"}
# Layer -> what of ours it may import; a longer name in front of a shorter one wins.
MAY_IMPORT = {
    "__init__": {"errors", "report", "workflow"},
    "__main__": {"cli"},
    "errors": set(),
    "report": set(),
    "escape": set(),
    "own_process": set(),
    "maths": {"maths"},
    "formats": {"formats"} | LEAVES,
    "workflow": {"workflow", "formats", "maths", "__init__"} | LEAVES,
    "sentences": LEAVES,
    "render": {"sentences"} | LEAVES,
    **dict.fromkeys(
        CLI,
        CLI
        | LEAVES
        | {"__init__", "render", "sentences", "workflow"}
        | {"formats.report_json", "formats.limits", "formats.publish", "formats.targets"},
    ),
}
# Maths is pure: no files, console, environment, clock or chance of its own.
IMPURE = {"os", "sys", "json", "pathlib", "io", "logging", "time", "random", "subprocess"}
MAY_IMPORT_TORCH = {"maths", "formats", "workflow"}


def imports(source: str, module: str) -> set[str]:
    """Dotted names of the modules that `source`, being `module`, imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = module.split(".")[: -node.level]
                base = ".".join([*parent, *filter(None, [base])])
            if (PACKAGE.parent / base.replace(".", "/")).is_dir():  # from package import module
                found |= {f"{base}.{alias.name}" for alias in node.names}
            else:
                found.add(base)
    return found


def breaches(source: str, module: str) -> list[str]:
    """The imports of `module` that its layer may not have."""
    layer = module.split(".")[1]
    bad = []
    for name in sorted(imports(source, module)):
        parts = name.split(".")
        if parts[0] == "clair_cli":
            ours = parts[1] if len(parts) > 1 and _exists(parts[1]) else "__init__"
            allowed = MAY_IMPORT[layer]
            if ours not in allowed and ".".join(parts[1:3]) not in allowed:
                bad.append(name)
        elif (layer == "maths" and parts[0] in IMPURE) or (
            parts[0] in ("torch", "numpy", "scipy", "safetensors") and layer not in MAY_IMPORT_TORCH
        ):
            bad.append(name)
    return bad


def _exists(name: str) -> bool:
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_one_way(path: Path) -> None:
    assert breaches(path.read_text(encoding="utf-8"), module_of(path)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("clair_cli.maths.prox", "import json"),
        ("clair_cli.maths.prox", "def f():\n    from os import path"),
        ("clair_cli.maths.prox", "from clair_cli.report import Report"),
        ("clair_cli.maths.prox", "from clair_cli import errors"),
        ("clair_cli.maths.prox", "from ..formats import keys"),
        ("clair_cli.formats.keys", "import clair_cli.maths.prox"),
        ("clair_cli.formats.keys", "from clair_cli import workflow"),
        ("clair_cli.render", "from clair_cli.cli import app"),
        ("clair_cli.render", "import torch"),
        ("clair_cli.workflow.steps", "from clair_cli.render import render"),
        ("clair_cli.cli", "from clair_cli.maths import prox"),
        ("clair_cli.cli", "from clair_cli.formats.cohort import read"),
        ("clair_cli.cli", "def f():\n    import numpy as np"),
        ("clair_cli.report", "from clair_cli import __version__"),
    ],
)
def test_the_checker_sees_a_breach(module: str, source: str) -> None:
    assert len(breaches(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("clair_cli.maths.prox", "import math, torch\nfrom clair_cli.maths.stack import x"),
        ("clair_cli.maths.prox", "from . import stack"),
        ("clair_cli.workflow.steps", "from clair_cli.formats import keys\nimport torch"),
        ("clair_cli.cli", "from clair_cli import __version__, workflow"),
    ],
)
def test_the_checker_lets_the_rest_pass(module: str, source: str) -> None:
    assert breaches(source, module) == []
