"""Writes docs/config.md and the pages beside it out of the schema in pipeline/config/.

::

    python docs/config_reference.py

One table a section: key, type, default, meaning. Meanings are the schema's attribute docstrings, so the page says
what the code does; tests/unit/test_docs.py fails while the committed page differs.

Not here: checks that look at several keys at once (a teacher's task must exist, not all weights may be 0 …). They
explain themselves when they refuse a config.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, BaseModel, StringConstraints
from pydantic.fields import FieldInfo

from pipeline.config.schema import RunConfig

FOLDER = Path(__file__).parent
PLACEHOLDERS = {
    "tasks": "<task>",
    "teachers": "<teacher>",
    "students": "<student>",
    "tune.space": "<key.path>",
}
WORDS = {
    Any: "any value",
    str: "text",
    bool: "`true`, `false`",
    int: "integer",
    float: "number",
    NoneType: "null",
}
BOUNDS = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}
INTRO = """\
<!-- Made by `python docs/config_reference.py` from pipeline/config/; do not edit. -->
# Config reference

Every key of a run's YAML file. A key that is not here is refused with the nearest name, a value of another type too, and
so is a key that stands twice. `tutelage check --full RUN.yaml` prints the whole config with every default filled in.

- `<task>`, `<teacher>`, `<student>` are names of your choice: letters, digits, `_`, `.` and `-`, at most 64, the first a letter
  or a digit.
- On the command line a key is set by its path: `tutelage train RUN.yaml train.epochs=1 tasks.movies.metric=macro_f1`. An
  override wins over the file.
- `${key.path}` stands for another key's value, `${oc.env:NAME}` for an environment variable, as text.
- Relative paths start at the working directory; `~` is your home folder.
- The keys of a task (`tasks`) are on [a page of their own](config-tasks.md), and so are [those of a search](config-search.md)
  (`tune`) and of rounds (`rounds`).
"""
INTRO_TASKS = """\
<!-- Made by `python docs/config_reference.py` from pipeline/config/; do not edit. -->
# Config reference: tasks

The section `tasks` of a run's YAML file: what the tasks are, and which examples they have. All other keys are in the
[config reference](config.md); [Data and task kinds](data.md) explains how examples are read.
"""
INTRO_SEARCH = """\
<!-- Made by `python docs/config_reference.py` from pipeline/config/; do not edit. -->
# Config reference: searching, rounds

The section `tune` of a run's YAML file, which `tutelage tune` alone reads, and the section `rounds`; all other keys are in the
[config reference](config.md), how a search works in [Searching](search.md), how rounds work in [Rounds](rounds.md).
"""
APART = {
    "tasks": ("config-tasks.md", INTRO_TASKS),
    "tune": ("config-search.md", INTRO_SEARCH),
    "rounds": ("config-search.md", INTRO_SEARCH),
}
"""The sections that have a page of their own: its name and how it begins."""


def render() -> dict[str, str]:
    """The pages' texts by file name."""
    pages = {"config.md": [INTRO]} | {name: [intro] for name, intro in APART.values()}
    for text in sections(RunConfig, ""):
        heading, _, _ = text.partition("\n")
        name, _ = APART.get(heading.strip("# `").partition(".")[0], ("config.md", INTRO))
        pages[name].append(text)
    return {name: "\n\n".join(map(str.rstrip, parts)) + "\n" for name, parts in pages.items()}


def sections(model: type[BaseModel], path: str, optional: bool = False) -> Iterator[str]:
    """A section's heading, text and table, then those of the sections inside it. `optional`: it may be null."""
    heading = f"`{path}`" if path else "Top level"
    absent = " Null, and so without effect, unless given." if optional else ""
    rows = [_row(_join(path, name), field) for name, field in model.model_fields.items()]
    table = ["| key | type or allowed values | default | meaning |", "| --- | --- | --- | --- |", *rows]
    yield "\n\n".join([f"## {heading}", f"{_line(model.__doc__)}{absent}", "\n".join(table)])
    for name, field in model.model_fields.items():
        inner, where = _inner(field.annotation, _join(path, name))
        if inner is not None and where.startswith(_join(path, name)):
            yield from sections(inner, where, NoneType in get_args(field.annotation))


def _row(path: str, field: FieldInfo) -> str:
    inner, where = _inner(field.annotation, path)
    if inner is None:
        shown = _words(field.annotation, field.metadata)
    else:
        shown = f"sections `{where}`" if where.endswith(".<number>") else f"section `{where}`"
        shown += " or null" if NoneType in get_args(field.annotation) else ""
    cells = (f"`{path}`", shown, _default(field), _line(field.description))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _inner(annotation: Any, path: str) -> tuple[type[BaseModel] | None, str]:
    """The section that a field holds, if it holds one, and its path: through `X | None`, `dict[Name, X]` and a list of
    sections, which are described once, under the top-level key of the same name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, path
    if get_origin(annotation) in (Union, UnionType):
        (first, *rest) = get_args(annotation)
        return _inner(first, path) if rest == [NoneType] else (None, path)
    if get_origin(annotation) is dict:
        return _inner(get_args(annotation)[1], f"{path}.{PLACEHOLDERS.get(path, '<name>')}")
    if get_origin(annotation) is tuple:
        return _inner(get_args(annotation)[0], f"{path.rpartition('.')[2]}.<number>")
    return None, path


def _default(field: FieldInfo) -> str:
    """The default in YAML's flow style."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its own defaults"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _words(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """A type in a reader's words, e.g. `integer ≥ 1 or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        constraints = [part for one in arguments[1:] for part in getattr(one, "metadata", [one])]
        return _words(arguments[0], [*metadata, *constraints])
    if origin in (Union, UnionType):
        bounded = [_words(one, metadata if one is not NoneType else ()) for one in arguments]
        return " or ".join(bounded)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin is tuple and Ellipsis not in arguments:
        return f"list of {len(arguments)} {_words(arguments[0])}s"
    if origin is tuple:
        shown = f"list of {_words(arguments[0])}"
        return " ".join([shown, *map(_bound, metadata)])
    if origin is dict:
        return "keys and values" if arguments[1] is Any else f"{_key(arguments[0])} → {_words(arguments[1])}"
    if any(isinstance(one, StringConstraints) for one in metadata):
        return "a name"
    if any(isinstance(one, AfterValidator) for one in metadata):
        return "path" if annotation is str else _words(annotation)
    if isinstance(annotation, type) and issubclass(
        annotation, BaseModel
    ):  # one of several forms that a key may have
        return f"section with {', '.join(f'`{name}`' for name in annotation.model_fields)}"
    return " ".join([WORDS[annotation], ", ".join(map(_bound, metadata))]).rstrip()


def _key(annotation: Any) -> str:
    """What a mapping's keys are: the allowed ones, or `name`."""
    return _words(annotation).replace(",", " /") if get_origin(annotation) is Literal else "name"


def _bound(constraint: Any) -> str:
    if isinstance(constraint, MinLen):
        return "(not empty)"
    sign, attribute = BOUNDS[type(constraint)]
    bound = getattr(constraint, attribute)
    return f"{sign} {bound:,}" if isinstance(bound, int) else f"{sign} {bound:g}"


if __name__ == "__main__":
    for name, text in render().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(FOLDER / name)
