"""The layer rules of CONTRIBUTING.md: what each module may bring in, by import and by reading its source.

Imports are tried in fresh processes, one for each group of modules; within a group, a forbidden package is
charged to the first module that brings it in.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipeline", "students", "teachers", "tune")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SCRIPTS = sorted(
    path for folder in ("benchmarks", "examples", "tests") for path in (ROOT / folder).rglob("*.py")
)

LIGHT = (
    "pipeline.config.schema",
    "pipeline.config.explain",
    "pipeline.config.load",
    "pipeline.errors",
    "pipeline.batch",
    "pipeline.tracking.uri",
)
HEAVY = frozenset({"torch", "ray", "mlflow", "transformers"})
CORE = (
    "pipeline.losses",
    "pipeline.training.step",
    "pipeline.tasks",
    *(f"pipeline.tasks.{path.stem}" for path in sorted((ROOT / "pipeline" / "tasks").glob("[!_]*.py"))),
    "students.layer_init",
    "students.student",
    "teachers.aggregation",
    "teachers.teacher",
)
SERVICES = frozenset({"ray", "mlflow"})
GROUPS = {
    name: (modules, banned) for modules, banned in ((LIGHT, HEAVY), (CORE, SERVICES)) for name in modules
}

PROBE = """
import importlib, json, sys
modules, banned, seen, report = json.loads(sys.argv[1]), set(json.loads(sys.argv[2])), set(), {}
for name in modules:
    try:
        importlib.import_module(name)
        now = banned & set(sys.modules)
        report[name] = "brings in " + ", ".join(sorted(now - seen)) if now - seen else ""
        seen |= now
    except Exception as error:
        report[name] = f"cannot be imported: {error!r}"
print(json.dumps(report))
"""


@cache
def probe(modules: tuple[str, ...], banned: frozenset[str]) -> dict[str, str]:
    """Import `modules` in a fresh process; for each, what is wrong, or nothing."""
    command = [sys.executable, "-c", PROBE, json.dumps(modules), json.dumps(sorted(banned))]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    report: dict[str, str] = json.loads(result.stdout.splitlines()[-1])
    return report


def source_of(module: str) -> Path:
    """The file of one of our modules."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a file imports, inside functions too; `from a import b` is `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # `from .x import y`: as seen from the package that the file lies in
                package = path.relative_to(ROOT).parts[: -node.level]
                base = ".".join((*package, base)).rstrip(".")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def importers(package: str, files: list[Path]) -> dict[str, list[int]]:
    """Files that import `package` or a part of it, with the lines."""
    found: dict[str, list[int]] = {}
    for path in files:
        for line, name in imports(path):
            if name.split(".")[0] == package:
                found.setdefault(path.relative_to(ROOT).as_posix(), []).append(line)
    return found


@pytest.mark.parametrize("module", GROUPS)
def test_importing_brings_in_nothing_forbidden(module: str) -> None:
    modules, banned = GROUPS[module]
    assert probe(modules, banned)[module] == ""


@pytest.mark.parametrize("module", GROUPS)
def test_source_imports_nothing_forbidden(module: str) -> None:
    _, banned = GROUPS[module]
    path = source_of(module)
    assert [(line, name) for line, name in imports(path) if name.split(".")[0] in banned] == []


def test_only_tracking_imports_mlflow() -> None:
    tracking = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pipeline" / "tracking").glob("*.py")}
    assert set(importers("mlflow", SOURCES)) <= tracking


def test_only_the_command_line_imports_tune() -> None:
    outside = [path for path in SOURCES if path.relative_to(ROOT).parts[0] != "tune"]
    assert set(importers("tune", outside)) <= {"pipeline/cli.py"}


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_hides_our_tune_behind_rays(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hiding = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and node.module == "ray"
        and any(a.name == "tune" for a in node.names)
    ]
    assert hiding == [], "write `import ray.tune`"


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("import mlflow.tracking", "mlflow.tracking"),
        ("from mlflow import MlflowClient", "mlflow.MlflowClient"),
        ("def late() -> None:\n    import mlflow", "mlflow"),
    ],
)
def test_the_reader_sees_every_form_of_import(tmp_path: Path, statement: str, name: str) -> None:
    file = tmp_path / "module.py"
    file.write_text(statement)
    assert [found for _, found in imports(file)] == [name]


def test_the_probe_sees_what_a_module_brings_in() -> None:
    report = probe(("json", "pipeline.errors", "no_such_module"), frozenset({"pipeline"}))
    assert report["json"] == ""
    assert report["pipeline.errors"] == "brings in pipeline"
    assert report["no_such_module"].startswith("cannot be imported")
