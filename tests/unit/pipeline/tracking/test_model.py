"""Students as MLflow models: opened from a real store, and as versions in its registry."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.config.schema import RunConfig
from pipeline.tracking.model import describe_model
from tests.tiny_speech import RATE, tone, whisper
from tests.unit.pipeline.tracked import Launch, Stored, close

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

pytestmark = pytest.mark.filterwarnings(r"default:::(mlflow|alembic|sqlalchemy)\b")


def test_a_model_loads_as_pipeline_and_pyfunc(launch: Launch, settings: RunConfig, tmp_path: Path) -> None:
    import mlflow.pyfunc
    import mlflow.transformers
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    folder = save_tiny_model(tmp_path / "half")
    for _ in range(2):
        tracker = launch()
        tracker.run("", settings.name, "parent", {}, {})
        tracker.run("half", "half", "student", {}, {})
        tracker.model("half", "half/movies", folder, "text-classification")
        stored = close(tracker, settings)
    (model,) = stored.client.search_logged_models(
        [str(stored.outcome.experiment_id)]
    )  # the second is the first
    assert (model.name, model.status.value) == ("half-movies", "READY")
    assert model.source_run_id == stored.outcome.run_ids["half"]
    outputs = stored.run("half").outputs
    assert outputs is not None
    assert [output.model_id for output in outputs.model_outputs] == [model.model_id]

    plain = pipeline(
        "text-classification",
        model=AutoModelForSequenceClassification.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )
    expected = plain("good film")
    location = Path(model.artifact_location.removeprefix("file://"))
    assert mlflow.transformers.load_model(str(location))("good film") == expected
    frame = mlflow.pyfunc.load_model(str(location)).predict(["good film"])
    assert frame.to_dict("records") == [pytest.approx(expected[0])]
    assert str(tmp_path) not in (location / "MLmodel").read_text()


def test_a_model_of_speech_loads_with_its_feature_extractor(tmp_path: Path) -> None:
    import mlflow.transformers
    from transformers import pipeline

    folder, target = whisper(tmp_path / "half"), tmp_path / "described"
    describe_model(target, folder, "half/speech", "automatic-speech-recognition", "0" * 32, "m-" + "0" * 32)
    shutil.copytree(folder, target / "model")
    sound = {"raw": tone("la ti"), "sampling_rate": RATE}
    plain = pipeline("automatic-speech-recognition", str(folder))
    few = {"generate_kwargs": {"max_new_tokens": 20}}
    assert mlflow.transformers.load_model(str(target))(dict(sound), **few) == plain(dict(sound), **few)


def save_tiny_model(folder: Path) -> Path:
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)
    shape = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        id2label={0: "negative", 1: "positive"},
        label2id={"negative": 0, "positive": 1},
    )
    BertForSequenceClassification(shape).save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- the registry


def test_a_registered_model_is_a_version_once(launch: Launch, settings: RunConfig, tmp_path: Path) -> None:
    import mlflow.transformers

    folder, name = save_tiny_model(tmp_path / "half"), f"{settings.name}/movies"

    def register() -> Stored:
        tracker = launch()
        tracker.run("", settings.name, "study", {}, {})
        tracker.model("", "half", folder, "text-classification")
        tracker.finish("", "FINISHED")
        tracker.register("", "half", name)
        return close(tracker, settings)

    def versions(stored: Stored) -> dict[str, ModelVersion]:
        found = stored.client.search_model_versions(f"name = '{settings.name}-movies'")
        return {str(version.version): version for version in found}

    register()
    stored = register()
    assert set(versions(stored)) == {"1"}
    version = versions(stored)["1"]
    (model,) = stored.client.search_logged_models([str(stored.outcome.experiment_id)])
    assert (version.source, version.run_id) == (model.artifact_location, stored.outcome.run_ids[""])
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": version.name, "version": "1"}]
    where = stored.client.get_model_version_download_uri(version.name, "1")
    assert mlflow.transformers.load_model(where)("good film")

    ledger = settings.run_dir / "mlflow.json"  # the answer to the registration got lost
    kept = json.loads(ledger.read_text())
    del kept["runs"][""]["models"]["half"][f"version of {version.name}"]
    ledger.write_text(json.dumps(kept))
    assert set(versions(register())) == {"1"}

    (folder / "note.txt").write_text("another model")
    assert set(versions(register())) == {"1", "2"}


def test_a_version_that_someone_deleted_stays_deleted(
    launch: Launch, settings: RunConfig, tmp_path: Path
) -> None:
    folder = save_tiny_model(tmp_path / "half")
    for launches in range(2):
        tracker = launch()
        tracker.run("", settings.name, "study", {}, {})
        tracker.model("", "half", folder, "text-classification")
        tracker.register("", "half", settings.name)
        stored = close(tracker, settings)
        found = stored.client.search_model_versions(f"name = '{settings.name}'")
        assert [str(version.version) for version in found] == ["1"] * (launches == 0)
        if found:
            stored.client.delete_model_version(settings.name, "1")


def test_a_model_never_logged_cannot_be_registered(
    launch: Launch, settings: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = launch()
    tracker.run("", settings.name, "study", {}, {})
    tracker.register("", "nothing", settings.name)
    tracker.register("nobody", "nothing", settings.name)
    assert tracker.close(timeout_s=60).operations_lost == 2
    assert "its model 'nothing' was not logged" in caplog.text
    assert "its run 'nobody' was not begun" in caplog.text
