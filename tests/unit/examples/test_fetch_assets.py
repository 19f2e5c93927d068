"""examples/fetch_assets.py: cleaning, de-duplicating, splitting, and what counts as fetched. No network."""

from __future__ import annotations

import csv
import random
import re
import subprocess
from pathlib import Path

import pytest

from examples import fetch_assets
from examples.fetch_assets import FetchError, Pin, Row, deduplicate, fingerprint, split

AIRLINES = ("@united", "@JetBlue", "@SouthwestAir", "@USAirways")
COMPLAINTS = (
    "delayed {n} minutes again",
    "lost bag number {n}",
    "thanks for seat {n}C",
    "row {n} was freezing",
)
ROWS = [
    Row(
        f"{airline} {complaint.format(n=n)} {airline[1:]}",
        "positive" if "thanks" in complaint else "negative",
    )
    for n in range(60)
    for airline in AIRLINES
    for complaint in COMPLAINTS
]


def keys(rows: list[Row]) -> set[str]:
    return {fingerprint(row.text) for row in rows}


@pytest.mark.parametrize(
    "text",
    [
        "RT @verge: Google's self-driving car: spotted! http://t.co/ab12",
        "google s SELF DRIVING car, spotted https://t.co/zz9",
        "Google's self_driving car spotted.",
    ],
)
def test_fingerprint_ignores_what_says_nothing(text: str) -> None:
    assert fingerprint(text) == "google s self driving car spotted"


def test_fingerprint_keeps_what_says_something() -> None:
    assert fingerprint("No surprises.") != fingerprint("Surprises.")
    assert fingerprint("clichéd") != fingerprint("cliched")


def test_deduplicate_keeps_the_first_copy_and_drops_conflicts() -> None:
    rows = [
        Row("A pretentious mess...", "negative"),
        Row("Thanks @united", "positive"),
        Row("a pretentious mess", "negative"),
        Row("@JetBlue thanks!", "neutral"),
        Row("Touché!", "positive"),
        Row("@united http://t.co/x", "neutral"),  # no word left
    ]
    assert deduplicate(rows) == [rows[0], rows[4]]


def test_split_is_exact_complete_and_straddles_nothing() -> None:
    rows = deduplicate(ROWS)
    splits = split(rows, validation=50, test=100)
    assert list(splits) == ["train", "validation", "test"]
    assert [len(part) for part in splits.values()] == [len(rows) - 150, 50, 100]
    assert sorted(row for part in splits.values() for row in part) == sorted(rows)
    assert sum(len(keys(part)) for part in splits.values()) == len(rows)


def test_split_does_not_depend_on_the_order_of_rows() -> None:
    rows = deduplicate(ROWS)
    mixed = random.Random(0).sample(rows, len(rows))
    assert split(mixed, validation=50, test=100) == split(rows, validation=50, test=100)


def test_split_is_the_same_for_everybody() -> None:
    drawn = split(deduplicate(ROWS), validation=50, test=100)["test"]
    assert [row.text for row in drawn[:3]] == [
        "@united lost bag number 15 united",
        "@SouthwestAir delayed 32 minutes again SouthwestAir",
        "@SouthwestAir row 57 was freezing SouthwestAir",
    ]


def test_texts_with_one_opening_stay_together() -> None:
    headline = "Reporter who broke #DeflateGate says fans have threatened"
    alike = [
        Row(f"{headline} {end}", "neutral") for end in ("him", "him badly", "the man", "hi", "their hero")
    ]
    for size in range(0, 200, 20):
        splits = split([*alike, *deduplicate(ROWS)], validation=50, test=size)
        assert sorted(len(set(part) & set(alike)) for part in splits.values()) == [0, 0, 5]
        assert len(splits["test"]) == size


def test_split_refuses_what_it_cannot_fill() -> None:
    with pytest.raises(ValueError, match="cannot split 3 rows into 2 test and 2 validation"):
        split([Row(word, "neutral") for word in ("claritin", "coachella", "apple")], validation=2, test=2)


def test_reuters_keeps_its_test_side() -> None:
    train = [Row(f"corn shipment of {n} tonnes reuter", "grain") for n in range(20)]
    test = [Row("corn shipment of 3 tonnes reuter", "grain"), Row("qtr net up reuter", "earn")]
    conflicting = Row("bank rate cut reuter", "interest")
    splits = fetch_assets.split_reuters(
        [*train, conflicting, conflicting._replace(label="money-fx")], test, validation=4
    )
    assert sorted(splits["test"]) == sorted(test)
    assert [len(part) for part in splits.values()] == [15, 4, 2]
    assert not keys(splits["test"]) & keys(splits["train"] + splits["validation"])


def test_movies_are_utf8_and_neutral_ones_go() -> None:
    raw = "1\t2.75\tIt's a treat – a  delightful,\r\n2\t-0.6\tA clichéd biopic\r\n3\t0.25\tEh.\r\n4\t-0.5\tMeh.".encode()
    assert fetch_assets.read_movies(raw) == [
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
    assert fetch_assets.read_tweets(raw) == [
        Row("We're going to #Coachella2015", "positive"),
        Row('@united 5 times. I won\'t, "ever"', "negative"),
        Row("AT&T in @scarlett_ @Naivana_ car", "neutral"),
    ]


def test_reuters_skips_its_header() -> None:
    raw = b"Category\tText\nd\tstring\nclass\t\n\nearn\tchampion products reuter \nacq\tcompleted sale\n"
    assert fetch_assets.read_reuters(raw) == [
        Row("champion products reuter", "earn"),
        Row("completed sale", "acq"),
    ]


# ---- what counts as fetched, without pip ----


def _folder(root: Path) -> Path:
    folder = root / "movies"
    folder.mkdir()
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(ROWS)
    return folder


def test_present_needs_the_stamp_the_recipe_and_every_file(tmp_path: Path) -> None:
    asset, folder = fetch_assets.ASSETS["movies"], _folder(tmp_path)
    assert fetch_assets.present(asset, folder) is None
    fetch_assets.stamp(asset, folder, "960 train")
    assert fetch_assets.present(asset, folder) == "960 train"
    assert fetch_assets.present(fetch_assets.ASSETS["tweets"], folder) is None
    (folder / "train.csv").write_text("text,label\n", encoding="utf-8")
    assert fetch_assets.present(asset, folder) is None
    (folder / fetch_assets.STAMP).write_text("[]", encoding="utf-8")
    assert fetch_assets.present(asset, folder) is None


def test_what_is_present_is_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch_assets.stamp(fetch_assets.ASSETS["movies"], _folder(tmp_path), "960 train")
    monkeypatch.setattr(fetch_assets, "download", lambda *_: pytest.fail("downloaded"))
    assert fetch_assets.main(["movies", "--to", str(tmp_path)]) == 0
    assert re.fullmatch(r"movies +present +960 train\n", capsys.readouterr().out)
    assert "| movies/ |" in (tmp_path / "NOTICE.md").read_text(encoding="utf-8")


def test_default_is_the_quickstart() -> None:
    assert fetch_assets.chosen([]) == ["minilm-l6", "bert-tiny", "movies", "tweets"]
    assert fetch_assets.chosen(["reuters", "movies"]) == ["movies", "reuters"]
    assert fetch_assets.chosen(["all"]) == list(fetch_assets.ASSETS)


def test_unknown_asset_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch_assets.main(["movie", "--to", str(tmp_path)]) == 2
    cause, remedy = capsys.readouterr().err.splitlines()
    assert cause == "no asset is called 'movie'"
    assert remedy.startswith("did you mean movies?")


def _pip(
    monkeypatch: pytest.MonkeyPatch, returncode: int, stderr: str = "", writes: bytes | None = None
) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if writes is not None:
            into = Path(command[command.index("-d") + 1])
            into.mkdir()
            (into / "demo-1.0.zip").write_bytes(writes)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)


PIN = Pin("demo", "1.0", "2" * 64, "MIT")


@pytest.mark.parametrize(
    ("stderr", "cause", "exit_code"),
    [
        ("WARNING: x\nERROR: No matching distribution found for demo==1.0\n", "No matching distribution", 4),
        ("Killed\n", "exit code 1", 4),
        ("/usr/bin/python3: No module named pip\n", "has no pip", 2),
    ],
)
def test_pip_failure_is_one_line_and_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, cause: str, exit_code: int
) -> None:
    _pip(monkeypatch, 1, stderr)
    with pytest.raises(FetchError, match=cause) as caught:
        fetch_assets.download(PIN, tmp_path, tmp_path / "log")
    assert caught.value.exit_code == exit_code
    assert "\n" not in caught.value.cause + caught.value.remedy
    assert (tmp_path / "log").read_text(encoding="utf-8") == stderr


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pip(monkeypatch, 0, writes=b"not what was pinned")
    with pytest.raises(
        FetchError, match=re.escape("demo-1.0.zip for demo==1.0, not the pinned file")
    ) as caught:
        fetch_assets.download(PIN, tmp_path, tmp_path / "log")
    assert caught.value.exit_code == 4


def test_a_failed_fetch_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _folder(tmp_path)  # no stamp: as if an older recipe had built it
    _pip(monkeypatch, 1, "ERROR: no route to host")
    assert fetch_assets.main(["movies", "--to", str(tmp_path)]) == 4
    assert (folder / "train.csv").exists()
    assert not list(tmp_path.glob(".building-*"))
