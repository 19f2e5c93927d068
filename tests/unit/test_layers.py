"""The layer rules of CONTRIBUTING.md: what each module may bring in, by import and by reading its source.

Imports are tried in fresh processes, one for each group of modules; within a group, a forbidden package is
charged to the first module that brings it in.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipeline", "students", "teachers", "tune")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SCRIPTS = sorted(
    path for folder in ("benchmarks", "examples", "tests") for path in (ROOT / folder).rglob("*.py")
)

LIGHT = (
    "pipeline.config.kinds",
    "pipeline.config.fields",
    "pipeline.config.data",
    "pipeline.config.schema",
    "pipeline.config.explain",
    "pipeline.config.load",
    "pipeline.config.recipe",
    "pipeline.errors",
    "pipeline.check",
    "pipeline.data.files",
    "pipeline.batch",
    "pipeline.soft",
    "pipeline.tracking.uri",
    "pipeline.report.schema",
    "pipeline.report.group",
    "pipeline.compare.rows",
    "pipeline.compare.columns",
    "pipeline.compare.show",
)
HEAVY = frozenset({"torch", "ray", "mlflow", "transformers"})
CORE = (
    "pipeline.losses",
    "pipeline.events",
    "pipeline.predictor",
    "pipeline.training.step",
    "pipeline.training.live_teacher",
    "pipeline.tasks",
    *(f"pipeline.tasks.{path.stem}" for path in sorted((ROOT / "pipeline" / "tasks").glob("[!_]*.py"))),
    "students.layer_init",
    "students.student",
    "teachers.aggregation",
    "teachers.store_key",
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


def test_teachers_know_no_training_loop() -> None:
    teachers = [path for path in SOURCES if path.relative_to(ROOT).parts[0] == "teachers"]
    training = {
        path: [name for _, name in imports(path) if name.startswith("pipeline.training")] for path in teachers
    }
    assert {path.name: names for path, names in training.items() if names} == {}


# ---------------------------------------------------------------- circles


def module_of(path: Path) -> str:
    """The dotted name of one of our files; that of a package for its __init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """What a module lies in: a sub-package of pipeline/, a file directly in it, or one of the other packages."""
    first, *rest = module.split(".")
    return ".".join((first, *rest[:1])) if first == "pipeline" else first


@cache
def arrows() -> dict[str, frozenset[str]]:
    """By module, the modules of ours that it imports, for type checkers too."""
    known = {module_of(path) for path in SOURCES}
    graph = {}
    for path in SOURCES:
        names = {name for _, name in imports(path)}
        targets = names | {name.rpartition(".")[0] for name in names}  # `from a import b`: b may be no module
        graph[module_of(path)] = frozenset((targets & known) - {module_of(path), *PACKAGES})
    return graph


def by_room(graph: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """The same graph with each module's room in its place."""
    rooms: dict[str, set[str]] = {}
    for module, targets in graph.items():
        rooms.setdefault(room_of(module), set()).update(map(room_of, targets))
    return {room: frozenset(targets - {room}) for room, targets in rooms.items()}


def circle_in(graph: Mapping[str, frozenset[str]]) -> list[str]:
    """The names along one circle, or none where there is no circle."""
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert circle_in(arrows()) == []


def test_no_room_imports_itself_by_way_of_others() -> None:
    assert circle_in(by_room(arrows())) == []


def test_circles_are_seen() -> None:
    straight = {
        "pipeline.tasks.a": frozenset({"pipeline.batch"}),
        "teachers.b": frozenset({"pipeline.tasks.a"}),
    }
    assert circle_in(straight) == circle_in(by_room(straight)) == []
    between_rooms = {**straight, "pipeline.tasks.c": frozenset({"teachers.d"})}
    assert circle_in(between_rooms) == []  # not among files …
    assert set(circle_in(by_room(between_rooms))) == {"pipeline.tasks", "teachers"}  # … but among rooms
    among_files = {**straight, "pipeline.batch": frozenset({"teachers.b"})}
    assert set(circle_in(among_files)) == {"pipeline.batch", "teachers.b", "pipeline.tasks.a"}


def test_imports_for_type_checkers_are_arrows() -> None:
    assert "pipeline.prepare" in arrows()["pipeline.cli"]  # below `if TYPE_CHECKING`
    assert "pipeline.predictor" in arrows()["teachers.actor"]


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


# ---------------------------------------------------------------- kinds

DECLARED = "pipeline/config/kinds.py"
TRANSFORMERS_PIPELINES = (
    "pipeline/tracking/model.py"  # named as transformers names them, with MLflow's signatures
)
KIND_MODULES = {
    f"pipeline.tasks.{name}"
    for name in (
        "text_classification",
        "multi_label",
        "regression",
        "token_classification",
        "question_answering",
        "sequence_to_sequence",
    )
}


def kind_words() -> set[str]:
    """Words that name one kind or a few: kinds, problems, columns read on request, what truncation loses."""
    from pipeline.config.kinds import KINDS

    words: set[str] = {"words"}
    for kind in KINDS:
        words |= {kind.name, kind.problem, *kind.optional_inputs, *kind.optional_labels}
    return words


def named_kinds(tree: ast.AST, words: set[str]) -> list[tuple[int, str]]:
    """(line, word) where code, not prose, has one of `words` as a string."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and id(node) not in prose and node.value in words
    ]


def outside_the_kinds() -> list[Path]:
    tasks = ROOT / "pipeline" / "tasks"
    known = {ROOT / DECLARED, ROOT / TRANSFORMERS_PIPELINES}
    return [path for path in SOURCES if path not in known and tasks not in path.parents]


def test_nothing_else_knows_a_kind_by_name() -> None:
    elsewhere = {
        path.relative_to(ROOT).as_posix(): named
        for path in outside_the_kinds()
        if (named := named_kinds(ast.parse(path.read_text(encoding="utf-8")), kind_words()))
    }
    assert elsewhere == {}


def test_nothing_else_imports_a_kind() -> None:
    elsewhere = [
        (path.relative_to(ROOT).as_posix(), line)
        for path in outside_the_kinds()
        for line, name in imports(path)
        if any(name == module or name.startswith(f"{module}.") for module in KIND_MODULES)
    ]
    assert elsewhere == []


def test_a_kind_named_in_code_is_seen_and_in_prose_is_not() -> None:
    tree = ast.parse('"""regression"""\nif task.lost == "words":\n    kind = "regression"')
    assert named_kinds(tree, {"words", "regression"}) == [(2, "words"), (3, "regression")]
