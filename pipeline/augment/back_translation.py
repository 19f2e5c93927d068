"""`augment.back_translation`: whole texts said otherwise by a model that translates them and one that translates back.

Edunov et al. (arXiv:1808.09381) make training sources of a translator so; here it is the two ways that make a paraphrase.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from pipeline.batch import content_keys
from pipeline.config.data import BackTranslationConfig
from pipeline.config.generation import GenerationConfig
from pipeline.config.kinds import SEQUENCE_TO_SEQUENCE, Kind
from pipeline.config.resolved import absolute_model
from pipeline.errors import ConfigError
from pipeline.models import check_length, fingerprint, open_model, open_tokenizer, resolve
from pipeline.predictor import check_head
from pipeline.soft import SoftTargets, Texts
from pipeline.tasks.generation import write_texts
from pipeline.tasks.heads import model_class
from pipeline.tasks.writing import WritingHead
from teachers.store import Store

CHUNK = 64
"""Texts that are translated between two writes to the disk."""
TOKENS = 4096
"""Padded tokens of a forward pass."""


class BackTranslation:
    """What two models make of texts; each text once, ever, whatever the run.

    folder: of the results of all models · where: the section's path, for errors · progress: called with the texts that were
    translated and their number · check: called between two chunks; may raise, which keeps what is done. Raises
    `TeacherError` where a model is not there.
    """

    name = "back_translation"

    def __init__(
        self,
        config: BackTranslationConfig,
        folder: Path,
        where: str,
        progress: Callable[[int, int], None] = lambda done, total: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.variants = config.variants
        self._config, self._progress, self._check = config, progress, check
        self._models = {
            key: resolve(absolute_model(getattr(config, key)), None, f"{where}.{key}")
            for key in ("there", "back")
        }
        settings = config.model_dump(mode="json", exclude={"there", "back"})
        facts = [[fingerprint(model) for model in self._models.values()], WritingHead.version, settings]
        self._key = blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
        self._store = Store(str(folder / "texts"))

    def of(self, texts: Sequence[str]) -> tuple[list[list[str]], int, float]:
        """For each of n texts its `variants` other forms, best first; how many texts were translated for it, and the seconds
        that this took."""
        distinct = list(dict.fromkeys(texts))
        keys = content_keys(self.name, {"text": distinct})
        begun, missing = time.perf_counter(), self._store.missing(self._key, keys)
        if len(missing):
            there, back = (_Translator(self._models[key], self._head(key)) for key in ("there", "back"))
            for start in range(0, len(missing), CHUNK):
                rows = missing[start : start + CHUNK]
                pivots = there.write([distinct[row] for row in rows]).values[:, 0].tolist()
                self._store.append(self._key, SoftTargets(keys[rows], back.write(pivots)))
                self._progress(start + len(rows), len(missing))
                self._check()
        stored = self._store.view(self._key, keys, None).gather(keys)
        forms = dict(zip(distinct, stored.values.tolist(), strict=True))
        return [forms[text] for text in texts], len(missing), time.perf_counter() - begun

    def _head(self, key: str) -> WritingHead:
        count = self.variants if key == "back" else 1
        length, prefix = self._config.max_length, getattr(self._config, f"{key}_prefix")
        beams = GenerationConfig(beams=max(count, self._config.beams), candidates=count)
        return WritingHead("augment", length, length, prefix, beams)


def check_translators(config: BackTranslationConfig, where: str, kind: Kind) -> None:
    """Raises `TeacherError` where a model is not there, or writes no texts, and `ConfigError` for a kind that labels words. Runs
    nothing."""
    if kind.labels_words:
        raise ConfigError(
            f"{where}: the labels of a {kind.name} task are of words, which another text does not have",
            "Take masked, synonyms or dropout, which keep the words that have labels.",
        )
    for key in ("there", "back"):
        folder = resolve(absolute_model(getattr(config, key)), None, f"{where}.{key}")
        check_head(folder, SEQUENCE_TO_SEQUENCE, f"{where}.{key}")
        check_length(folder, config.max_length, f"{where}.{key}")


class _Translator:
    def __init__(self, folder: Path, head: WritingHead) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._head, self._tokenizer = head, open_tokenizer(folder)
        model: Any = open_model(model_class(SEQUENCE_TO_SEQUENCE), folder)
        self._model = model.to(self._device)

    def write(self, texts: Sequence[str]) -> Texts:
        inputs: Mapping[str, Sequence[str]] = {"source": [text or "." for text in texts]}
        return write_texts(
            self._model,
            self._tokenizer,
            self._head.encode(self._tokenizer, inputs),
            self._head.generation,
            target_length=self._head.target_length,
            tokens=TOKENS,
            device=self._device,
        )
