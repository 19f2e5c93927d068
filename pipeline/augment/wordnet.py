"""Synonyms out of WordNet's own files (wndb(5WN)): ``index.<part>`` and ``data.<part>`` for noun, verb, adj and adv.

A word has the other words of its most frequent sense in each part of speech, where WordNet's tagged texts have a sense of
it at all ("who" is a noun there, of an organisation). Words of one or two letters have none: WordNet knows them as units
and symbols ("in": inch, "a": angstrom). Nor have inflected forms: their synonyms are base forms.

Read here because nltk's reader wants a file (lexnames) that Debian's package lacks, and `wn` wants a database of its own.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.tasks.variants import LETTERS

SHORTEST = 3
"""Letters of a word that has synonyms, or is one."""
PARTS = ("noun", "verb", "adj", "adv")


def wordnet_files(folder: Path, where: str) -> list[Path]:
    """WordNet's files in a folder. Raises `ConfigError` where one is missing."""
    files = [folder / f"{kind}.{part}" for part in PARTS for kind in ("index", "data")]
    for file in files:
        if not file.is_file():
            raise ConfigError(
                f"{where}: there is no {file}",
                "Give the folder with WordNet's index.noun, data.noun …: Debian's package wordnet-base has it in /usr/share/wordnet.",
            )
    return files


def wordnet_fingerprint(folder: Path, where: str) -> str:
    """Hash of WordNet's files, in hexadecimal. Raises `ConfigError` where one is missing."""
    digest = blake2b(digest_size=16)
    for file in wordnet_files(folder, where):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def read_synonyms(folder: Path, where: str) -> dict[str, tuple[str, ...]]:
    """Synonyms by word in lower case, in WordNet's order; words without any are left out.

    Raises `ConfigError` where a file is missing, or is none of WordNet's.
    """
    synonyms: dict[str, dict[str, None]] = {}
    files = wordnet_files(folder, where)
    for index, data in zip(files[::2], files[1::2], strict=True):
        try:
            sets = _sets(data)
            for word, offset in _first_senses(index):
                others = (one for one in sets[offset] if one.casefold() != word)
                synonyms.setdefault(word, {}).update(dict.fromkeys(others))
        except (ValueError, IndexError, KeyError):
            raise ConfigError(
                f"{where}: {index} or {data} is no file of WordNet's",
                "Give the folder that WordNet comes with.",
            ) from None
    return {word: tuple(others) for word, others in synonyms.items() if others}


def _lines(file: Path) -> list[list[str]]:
    """The fields of each line; lines of the licence begin with a blank."""
    text = file.read_text(encoding="utf-8", errors="replace")
    return [line.split() for line in text.splitlines() if line and not line.startswith(" ")]


def _first_senses(file: Path) -> list[tuple[str, str]]:
    """(word, offset of its first sense) for each single word whose first sense is tagged.

    A line: lemma pos synset_cnt p_cnt [ptr_symbol …] sense_cnt tagsense_cnt synset_offset …
    """
    senses = []
    for fields in _lines(file):
        tagged, first = fields[5 + int(fields[3]) : 7 + int(fields[3])]
        if int(tagged) and _is_word(fields[0]):
            senses.append((fields[0], first))
    return senses


def _sets(file: Path) -> dict[str, list[str]]:
    """The single words of each set of synonyms, by its offset.

    A line: offset lex_filenum ss_type w_cnt (hexadecimal) word lex_id [word lex_id …] …; an adjective may end in "(p)".
    """
    return {
        fields[0]: [
            word
            for word in (one.partition("(")[0] for one in fields[4 : 4 + 2 * int(fields[3], 16) : 2])
            if _is_word(word)
        ]
        for fields in _lines(file)
    }


def _is_word(text: str) -> bool:
    return len(text) >= SHORTEST and LETTERS.fullmatch(text) is not None
