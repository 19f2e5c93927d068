"""Fixtures that several tests share: tiny models with random weights, tasks on csv files, whole run configs.

`tiny_model`   factory: architecture, labels → a Hugging Face folder (tens of kilobytes, made once a session)
`tiny_fill_mask` factory: architecture → the same of a masked language model
`csv_task`     factory: → a task section whose csv files can be learnt by a tiny model
`tiny_run`     factory: → a whole run config as plain dicts: two tasks, three teachers, two students

No test reaches the Hugging Face hub, and none writes to the user's caches.
"""

from __future__ import annotations

import csv
import os
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pytest

from pipeline.models import quiet

RATES = {"learning_rate": 1e-3, "head_learning_rate": 1e-3}
Architecture = Literal["bert", "distilbert", "mpnet", "modernbert"]

GOOD = ("good", "great", "lovely", "brilliant", "warm", "funny", "moving", "superb")
BAD = ("bad", "awful", "dull", "boring", "cold", "weak", "tedious", "poor")
PLAIN = ("plain", "even", "usual", "average", "neither", "fair", "mixed", "middling")
FILLER = (
    *(
        "the",
        "a",
        "an",
        "this",
        "that",
        "film",
        "story",
        "actor",
        "scene",
        "music",
        "plot",
        "is",
        "was",
        "are",
    ),
    *(
        "very",
        "quite",
        "rather",
        "really",
        "and",
        "but",
        "with",
        "in",
        "of",
        "for",
        "to",
        "by",
        "long",
        "short",
    ),
)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
PIECES = (*LETTERS, *(f"##{letter}" for letter in LETTERS), *"-.,!?'", "##ing", "##ed", "##ly")
WORDS = (*PIECES, *sorted({*GOOD, *BAD, *PLAIN, *FILLER} - set(PIECES)))
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
PAD_SECOND = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *reversed(WORDS))  # as MPNet and RoBERTa have it

_caches = tempfile.TemporaryDirectory(prefix="tutelage-tests-")
os.environ["HF_HUB_OFFLINE"] = (
    "1"  # before anything imports huggingface_hub or datasets; children inherit both
)
os.environ |= {"HF_DATASETS_CACHE": _caches.name, "XDG_CACHE_HOME": f"{_caches.name}/own"}
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # before Ray is imported


def pytest_unconfigure() -> None:
    _caches.cleanup()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Adds why each test was skipped to the file that `SKIPPED` names; `make test` closes with a line about them."""
    if "PYTEST_XDIST_WORKER" in os.environ:  # the process that started the workers has their reports
        return
    file = os.environ.get("SKIPPED")
    reports = terminalreporter.stats.get("skipped", [])
    if file and reports:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        with Path(file).open("a", encoding="utf-8") as stream:
            stream.writelines(f"{report.longrepr[2].removeprefix('Skipped: ')}\n" for report in reports)


# ---------------------------------------------------------------- models


class TinyModel(Protocol):
    """Makes model folders; the same arguments give the same folder, so copy it before changing anything."""

    def __call__(
        self,
        architecture: Architecture = "bert",
        labels: Sequence[str] | None = None,
        *,
        layers: int = 2,
        seed: int = 0,
        positions: int = 64,
    ) -> Path:
        """A folder with config, safetensors weights drawn from `seed` and a lower-case WordPiece tokenizer.

        architecture: `bert` gets token_type_ids, the others do not; `mpnet` has other token ids and, as
        RoBERTa, counts positions from its padding id + 1 · labels: a text classifier with these id2label names; None: a bare encoder · layers: of
        hidden size 32 · positions: longest input in tokens.
        """
        ...


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """See `TinyModel`."""
    root = tmp_path_factory.mktemp("models")

    def make(
        architecture: Architecture = "bert",
        labels: Sequence[str] | None = None,
        *,
        layers: int = 2,
        seed: int = 0,
        positions: int = 64,
    ) -> Path:
        names = "-".join(labels) if labels else "bare"
        folder = root / f"{architecture}-{names}-{layers}-{seed}-{positions}"
        if not folder.exists():
            _save_model(folder, architecture, labels, layers, seed, positions)
        return folder

    return make


class TinyFillMask(Protocol):
    """Makes folders of masked language models; the same arguments give the same folder."""

    def __call__(self, architecture: Architecture = "bert", *, positions: int = 64) -> Path:
        """A folder as `TinyModel` gives it, of a model with a masked-language head."""
        ...


@pytest.fixture(scope="session")
def tiny_fill_mask(tmp_path_factory: pytest.TempPathFactory) -> TinyFillMask:
    """See `TinyFillMask`."""
    root = tmp_path_factory.mktemp("fill-mask")

    def make(architecture: Architecture = "bert", *, positions: int = 64) -> Path:
        from transformers import AutoModelForMaskedLM

        folder = root / f"{architecture}-{positions}"
        if not folder.exists():
            _save_model(folder, architecture, None, 2, 0, positions, AutoModelForMaskedLM)
        return folder

    return make


def _save_model(
    folder: Path,
    architecture: Architecture,
    labels: Sequence[str] | None,
    layers: int,
    seed: int,
    positions: int,
    model_class: Any = None,
) -> None:
    import torch
    from transformers import AutoModel, AutoModelForSequenceClassification

    quiet()
    config = _model_config(architecture, layers, positions)
    model_class = model_class or AutoModel
    if labels:
        model_class = AutoModelForSequenceClassification
        config.update({"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model_class.from_config(config).save_pretrained(folder)
    save_tokenizer(
        folder,
        PAD_SECOND if architecture == "mpnet" else VOCABULARY,
        token_types=architecture == "bert",
        positions=positions,
    )


def _model_config(architecture: Architecture, layers: int, positions: int) -> Any:
    from transformers import BertConfig, DistilBertConfig, ModernBertConfig, MPNetConfig

    common: dict[str, Any] = {"vocab_size": len(VOCABULARY), "pad_token_id": 0}
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    match architecture:
        case "bert":
            return BertConfig(**common, **sizes, max_position_embeddings=positions)
        case "distilbert":
            return DistilBertConfig(
                **common, dim=32, n_layers=layers, n_heads=2, hidden_dim=64, max_position_embeddings=positions
            )
        case "mpnet":  # positions count from the padding id + 1
            return MPNetConfig(
                **{**common, "pad_token_id": 1}, **sizes, max_position_embeddings=positions + 2
            )
        case "modernbert":
            return ModernBertConfig(
                **common,
                **sizes,
                max_position_embeddings=positions,
                local_attention=8,
                bos_token_id=VOCABULARY.index("[CLS]"),
                eos_token_id=VOCABULARY.index("[SEP]"),
                cls_token_id=VOCABULARY.index("[CLS]"),
                sep_token_id=VOCABULARY.index("[SEP]"),
            )


def save_tokenizer(
    folder: Path, vocabulary: Sequence[str] = VOCABULARY, *, token_types: bool = True, positions: int = 64
) -> None:
    """Writes a lower-case WordPiece tokenizer with BERT's template: [CLS] … [SEP]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    names = ["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=names,
        model_max_length=positions,
    ).save_pretrained(folder)


# ---------------------------------------------------------------- data


def texts_of(label: int, count: int, seed: int = 0) -> list[str]:
    """`count` different texts of 3 to 14 words: filler, and two words that give label 0, 1 or 2 away."""
    telling = (BAD, GOOD, PLAIN)[label]
    rng = np.random.default_rng((seed, label))
    texts: dict[str, None] = {}
    while len(texts) < count:
        words = [*rng.choice(telling, 2), *rng.choice(FILLER, int(rng.integers(1, 13)))]
        texts[" ".join(rng.permutation(words))] = None
    return list(texts)


def write_csv(file: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Rows with the same keys as a csv file with a header."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


class CsvTask(Protocol):
    """Makes task sections."""

    def __call__(
        self,
        labels: Sequence[str] = ("bad", "good"),
        *,
        train: int = 48,
        validation: int = 16,
        test: int = 16,
        seed: int = 0,
        **data: Any,
    ) -> dict[str, Any]:
        """A `text-classification` section, as plain dicts, on csv files just written under the test's tmp_path.

        labels: two or three, sorted as the label space will be · train, validation, test: examples a split,
        as equal a number of each label as it goes, no text twice; 0: the split has no file · data: more keys
        of the `data` section, for instance max_length=16.
        """
        ...


@pytest.fixture
def csv_task(tmp_path: Path) -> CsvTask:
    """See `CsvTask`."""
    made: list[Path] = []

    def make(
        labels: Sequence[str] = ("bad", "good"),
        *,
        train: int = 48,
        validation: int = 16,
        test: int = 16,
        seed: int = 0,
        **data: Any,
    ) -> dict[str, Any]:
        folder = tmp_path / f"data-{len(made)}"
        made.append(folder)
        total = train + validation + test
        columns = [texts_of(i, -(-total // len(labels)), seed) for i in range(len(labels))]
        mixed = [
            (text, label)
            for texts in zip(*columns, strict=True)
            for text, label in zip(texts, labels, strict=True)
        ]
        rows = [{"text": text, "label": label} for text, label in mixed]
        files: dict[str, str] = {}
        for split, count in (("train", train), ("validation", validation), ("test", test)):
            if count:
                files[split] = str(write_csv(folder / f"{split}.csv", rows[:count]))
                rows = rows[count:]
        section = {"path": "csv", "data_files": files, "max_length": 32, **data}
        return {"kind": "text-classification", "data": section}

    return make


# ---------------------------------------------------------------- configs


class TinyRun(Protocol):
    """Makes whole configs."""

    def __call__(self, **sections: Any) -> dict[str, Any]:
        """A valid run as plain dicts, for `pipeline.config.load.parse_config`; `sections` replace whole sections.

        Tasks `mood` (bad, good) and `tone` (bad, good, plain); teachers `mood-bert`, `mood-distilbert` and
        `tone-bert`, each to be fine-tuned for one epoch; students `cut` (one layer of mood-bert) and `bare`
        (a bert of one layer). No MLflow. Runs go to the test's tmp_path.
        """
        ...


@pytest.fixture
def tiny_run(tmp_path: Path, tiny_model: TinyModel, csv_task: CsvTask) -> TinyRun:
    """See `TinyRun`."""

    def make(**sections: Any) -> dict[str, Any]:
        tuned = {"epochs": 1, "batch_size": 16, **RATES, "early_stopping": None}
        bert, distilbert = str(tiny_model("bert")), str(tiny_model("distilbert"))
        run: dict[str, Any] = {
            "name": "tiny",
            "runs_dir": str(tmp_path / "runs"),
            "tasks": {"mood": csv_task(), "tone": csv_task(("bad", "good", "plain"), seed=1)},
            "teachers": {
                "mood-bert": {"task": "mood", "model": bert, "fine_tune": {**tuned}},
                "mood-distilbert": {"task": "mood", "model": distilbert, "fine_tune": {**tuned}},
                "tone-bert": {"task": "tone", "model": bert, "fine_tune": {**tuned}},
            },
            "students": {
                "cut": {"init_from": "mood-bert", "layers": 1},
                "bare": {"model": str(tiny_model("bert", layers=1, seed=1))},
            },
            "loss": {"hard": 0.3, "soft": 0.7, "temperature": 2.0},
            "train": {**tuned},
            "tracking": {"enabled": False},
        }
        return {**run, **sections}

    return make
