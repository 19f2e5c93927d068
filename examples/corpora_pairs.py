"""The demo's data sets with a text for a text. Packages' formats → JSON lines with source and target.

`read_…` takes files' contents, `build_…(folder, archive)` a package, and returns a summary with the row counts.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from examples.asset_splits import draw, one_line, split_groups, write_json_lines


class Pair(NamedTuple):
    """A text and its translation."""

    source: str
    target: str


COMPONENT = re.compile(r"homeassistant/components/([^/]+)/translations/([^/]+)\.json")
FEWEST_WORDS, MOST_WORDS = 4, 40
MARKUP = re.compile(r"[{}<>\[\]`*]|https?:|www\.|\\n|%")
"""Placeholders, markup, addresses: of the interface, not of the language."""
NAMES = re.compile(r"\b[A-Z][\w.-]*|\d+|[^\w\s]", re.UNICODE)


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """The strings of nested mappings, each with the keys that lead to it."""
    for key, value in tree.items():
        where = f"{path}/{key}"
        if isinstance(value, Mapping):
            yield from leaves(value, where)
        elif isinstance(value, str):
            yield where, value


def read_interface(files: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[Pair]:
    """The pairs of English and another language, joined on their keys; of 4 to 40 words, without markup, not the same."""
    pairs = []
    for english, other in files:
        translated = dict(leaves(other))
        for path, text in leaves(english):
            pair = Pair(one_line(text), one_line(translated.get(path, "")))
            words = [len(side.split()) for side in pair]
            fits = all(FEWEST_WORDS <= count <= MOST_WORDS for count in words)
            if fits and pair.source != pair.target and not any(map(MARKUP.search, pair)):
                pairs.append(pair)
    return pairs


def masked(text: str) -> str:
    """A source without names, numbers and punctuation: sentences of two products often differ in nothing else."""
    return " ".join(NAMES.sub(" ", text).lower().split())


def split_interface(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    """Each source once, with its most frequent translation; sources that are the same when `masked` stay together."""
    translations: dict[str, dict[str, int]] = {}
    for pair in pairs:
        counts = translations.setdefault(pair.source, {})
        counts[pair.target] = counts.get(pair.target, 0) + 1
    once = [
        Pair(source, max(counts, key=lambda one: (counts[one], one)))
        for source, counts in translations.items()
    ]
    return split_groups(
        once,
        key=lambda pair: pair.source,
        split=lambda pair: draw(masked(pair.source), validation=0.08, test=0.12),
    )


def build_interface(language: str) -> Callable[[Path, Path], str]:
    """A builder of the interface's sentences in English and another language."""

    def build(folder: Path, archive: Path) -> str:
        with zipfile.ZipFile(archive) as wheel:
            names = {
                match.groups(): match[0] for match in map(COMPONENT.fullmatch, wheel.namelist()) if match
            }
            components = sorted({component for component, _ in names})
            files = [
                tuple(json.loads(wheel.read(names[component, code])) for code in ("en", language))
                for component in components
                if {(component, "en"), (component, language)} <= names.keys()
            ]
        return write_json_lines(split_interface(read_interface(files)), folder)

    return build
