"""Synonyms out of a tiny WordNet in the files' own format."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.augment.wordnet import PARTS, read_synonyms, wordnet_fingerprint
from pipeline.errors import ConfigError

LICENCE = "  1 This software and database is being provided to you\n"
INDEX = {
    "noun": """\
film n 2 2 @ ~ 2 2 00000100 00000200
who n 1 1 @ 1 0 00000300
in n 1 1 @ 1 1 00000350
motion_picture n 1 1 @ 1 1 00000100
alone n 1 0 1 1 00000400
""",
    "verb": "film v 1 1 @ 1 1 00000500\n",
    "adj": "good a 1 2 & ! 1 1 00000600\n",
    "adv": "well r 1 0 1 1 00000700\n",
}
DATA = {
    "noun": """\
00000100 10 n 04 film 0 movie 0 motion_picture 0 pic 1 001 @ 00000001 n 0000 | a form of entertainment
00000200 06 n 02 film 1 layer 0 001 @ 00000001 n 0000 | a thin coating
00000300 14 n 02 who 0 organisation 0 000 | of the United Nations
00000350 23 n 02 inch 0 in 0 000 | a unit
00000400 00 n 01 alone 0 000 | nothing else means it
""",
    "verb": "00000500 36 v 04 film 0 shoot 0 take 0 do 0 001 @ 00000001 v 0000 01 + 08 00 | record\n",
    "adj": "00000600 00 s 02 good 0 fine(p) 0 000 | well\n",
    "adv": "00000700 02 r 01 well 0 000 | in a good manner\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in PARTS:
        (tmp_path / f"index.{part}").write_text(LICENCE + INDEX[part])
        (tmp_path / f"data.{part}").write_text(LICENCE + DATA[part])
    return tmp_path


def test_synonyms_are_those_of_the_first_tagged_sense_of_each_part(folder: Path) -> None:
    assert read_synonyms(folder, "x") == {"film": ("movie", "pic", "shoot", "take"), "good": ("fine",)}


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "data.adv").unlink()
    with pytest.raises(ConfigError, match=r"tasks\.t\.path: there is no .*data\.adv"):
        read_synonyms(folder, "tasks.t.path")


def test_a_file_of_something_else_is_refused(folder: Path) -> None:
    (folder / "index.verb").write_text("some other file\n")
    with pytest.raises(ConfigError, match=r"index\.verb .* is no file of WordNet's"):
        read_synonyms(folder, "x")


def test_the_fingerprint_is_of_the_content(folder: Path) -> None:
    before = wordnet_fingerprint(folder, "x")
    assert wordnet_fingerprint(folder, "x") == before
    (folder / "data.adj").write_text(DATA["adj"].replace("fine", "right"))
    assert wordnet_fingerprint(folder, "x") != before
