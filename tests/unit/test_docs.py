"""What the documents say exists: config keys, files, links, commands, configs, names of the examples.

Not covered: prose, and links to other sites.
"""

from __future__ import annotations

import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import typer.main
import yaml
from omegaconf import OmegaConf

from docs import config_reference, report_schema
from pipeline import errors
from pipeline.cli import app
from pipeline.config.load import load_config, parse_config
from pipeline.config.schema import Strategy
from pipeline.config.search import TuneConfig

ROOT = Path(__file__).resolve().parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*DOCS, *(ROOT / name for name in ("CONTRIBUTING.md", "benchmarks/README.md", "examples/README.md"))]
LONGEST = 250
"""Lines of a page in docs/."""
PACKAGES = sorted(
    init.parent.relative_to(ROOT).as_posix()
    for name in ("pipeline", "students", "teachers", "tune")
    for init in (ROOT / name).rglob("__init__.py")
)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS = vars(typer.main.get_command(app))["commands"]


def text_of(page: str) -> str:
    """A page, by its path from the project's root."""
    return (ROOT / page).read_text(encoding="utf-8")


DOCUMENTED = "\n".join(page.read_text(encoding="utf-8") for page in DOCS)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return [block for name, block in FENCE.findall(text) if name == language]


def section(page: str, title: str) -> str:
    """A page from a heading to the next."""
    return text_of(page).split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


# ---------------------------------------------------------------- pages


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_page_is_too_long(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_the_index_names_every_page() -> None:
    apart = {name for name, _ in config_reference.APART.values()}
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md", *apart}
    assert pages <= set(links(ROOT / "docs" / "README.md"))
    assert apart <= set(links(ROOT / "docs" / "config.md"))


# ---------------------------------------------------------------- the config reference


@pytest.mark.parametrize("name", config_reference.render())
def test_the_config_reference_is_what_the_schema_gives(name: str) -> None:
    assert text_of(f"docs/{name}") == config_reference.render()[name], "run: python docs/config_reference.py"


def test_the_report_schema_is_what_the_classes_give() -> None:
    committed = report_schema.PAGE.read_text(encoding="utf-8")
    assert committed == report_schema.render(), "run: python docs/report_schema.py"


def test_every_key_has_a_meaning() -> None:
    lines = [line for text in config_reference.render().values() for line in text.splitlines()]
    rows = [line.split(" | ") for line in lines if line.startswith("| `")]
    assert len(rows) > 60
    assert [row[0] for row in rows if len(row) != 4 or row[3].strip(" |") == ""] == []


# ---------------------------------------------------------------- file tree


def tree_of(block: str) -> Iterator[str]:
    """The paths in an indented file tree: two blanks a level, a folder ends in a slash."""
    parents: list[str] = []
    for line in block.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        parents = [*parents[:depth], name.rstrip("/")]
        yield "/".join(parents)


def in_tree() -> list[str]:
    """The paths in CONTRIBUTING's file tree."""
    (block,) = [text for _, text in FENCE.findall(section("CONTRIBUTING.md", "File tree"))]
    return list(tree_of(block))


def test_the_tree_is_read_by_indentation() -> None:
    assert list(tree_of("a/   first\n  b.py\n  c/\n    d.py  x\ne\n")) == [
        "a",
        "a/b.py",
        "a/c",
        "a/c/d.py",
        "e",
    ]


def test_the_file_tree_names_only_what_exists() -> None:
    assert [path for path in in_tree() if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_the_file_tree_names_every_module(package: str) -> None:
    modules = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / package).glob("*.py"))]
    wanted = {package, *(module for module in modules if not module.endswith("__init__.py"))}
    assert wanted - set(in_tree()) == set()


# ---------------------------------------------------------------- links


def links(page: Path) -> list[str]:
    """Targets of a page's relative links and pictures, those in code and comments aside."""
    prose = FENCE.sub("", COMMENT.sub("", page.read_text(encoding="utf-8")))
    targets = re.findall(r"\]\(([^()\s]+)\)", re.sub(r"`[^`\n]*`", "", prose))
    return [target for target in targets if "://" not in target]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_resolve(page: Path) -> None:
    broken = []
    for link in links(page):
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    assert broken == []


def test_readme_has_links() -> None:  # else the test above would show nothing
    assert {"docs/README.md", "docs/design.md", "LICENSE"} <= set(links(ROOT / "README.md"))


# ---------------------------------------------------------------- names in the code

NAME = re.compile(r"`((?:pipeline|students|teachers|tune)(?:\.\w+)+)")
CONFIG_KEYS = {f"tune.{key}" for key in TuneConfig.model_fields}


def resolves(name: str) -> bool:
    """Whether a dotted name is a module of ours, or a name in one."""
    try:
        return pkgutil.resolve_name(name) is not None
    except (ImportError, AttributeError):
        return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_of_the_code_exist(page: Path) -> None:
    names = set(NAME.findall(page.read_text(encoding="utf-8"))) - CONFIG_KEYS
    assert [name for name in sorted(names) if not resolves(name)] == []


# ---------------------------------------------------------------- commands


def command_lines() -> list[str]:
    """Every `tutelage …` in the pages' code, from there to the end of the line or span."""
    code = [line for _, text in FENCE.findall(DOCUMENTED) for line in text.splitlines()]
    code += re.findall(r"`([^`\n]+)`", FENCE.sub("", DOCUMENTED))
    found = (re.search(r"(?<![\w./])tutelage (?=[-a-z])[^#]*", line) for line in code)
    return sorted({match[0].strip() for match in found if match})


@pytest.mark.parametrize("line", command_lines())
def test_the_command_line_takes_what_the_pages_type(line: str) -> None:
    words = [word for word in shlex.split(line)[1:] if word not in ("--debug", "-h")]
    assert not words or words[0] in COMMANDS
    if len(words) > 1:  # parses, calls nothing; raises a usage error
        COMMANDS[words[0]].make_context(words[0], words[1:])


def test_the_pages_show_every_command() -> None:
    shown = {
        word
        for line in section("docs/files.md", "Commands").splitlines()
        for word in re.findall(r"^tutelage (\w+)", line)
    }
    assert shown == set(COMMANDS)


def test_exit_codes_are_those_of_the_errors() -> None:
    documented = {
        int(code)
        for code in re.findall(r"^\| (\d+) \|", section("docs/files.md", "Exit codes"), re.MULTILINE)
    }
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    raised = {kind.exit_code for kind in kinds if issubclass(kind, errors.TutelageError)}
    assert documented == raised | {0}


def test_every_strategy_is_explained() -> None:
    table = section("docs/students.md", "Aggregation and losses")
    assert [name for name in get_args(Strategy) if f"| `{name}` |" not in table] == []


# ---------------------------------------------------------------- configs


def test_the_pages_configs_are_valid() -> None:
    """README's first is whole, the others are laid over it."""
    whole, *parts = (OmegaConf.create(text) for text in blocks(DOCUMENTED, "yaml"))
    assert parts
    for part in (whole, *parts):
        parse_config(OmegaConf.to_container(OmegaConf.merge(whole, part), resolve=True))


def test_the_readmes_overrides_are_valid(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(blocks(text_of("README.md"), "yaml")[0], encoding="utf-8")
    (line,) = [line for line in command_lines() if "loss.temperature=" in line]
    config = load_config(file, shlex.split(line)[3:])
    assert (config.loss.temperature, config.tasks["intent"].data.limit) == (4.0, {"train": 2000})


def test_the_pages_name_the_quickstarts_students_and_tasks() -> None:
    config = load_config(ROOT / "examples" / "quickstart.yaml")
    paths = re.findall(r"runs/quickstart/students/([\w-]+)(?:/([\w-]+))?", DOCUMENTED)
    assert paths
    assert {student for student, _ in paths} <= set(config.students)
    assert {task for _, task in paths if task} <= set(config.tasks)
    assert set(re.findall(r"--task ([\w-]+)", DOCUMENTED)) <= set(config.tasks)


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.name)
def test_every_example_is_valid(file: Path) -> None:
    load_config(file)


def test_the_cluster_file_is_what_its_page_says() -> None:
    nodes = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))["available_node_types"]
    used = set(re.findall(r"resources(?:_per_worker)?: \{(\w+): 1\}", text_of("docs/cluster.md")))
    assert used == set(nodes) - {"head"}
