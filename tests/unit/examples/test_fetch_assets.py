"""examples/fetch_assets.py: what counts as fetched, what is asked for, and how it fails. No network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples import fetch_assets
from examples.fetch_assets import FetchError, Pin


def _folder(root: Path) -> Path:
    folder = root / "movies"
    folder.mkdir()
    (folder / "train.csv").write_text("text,label\nfreezing,negative\n", encoding="utf-8")
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


def test_a_config_names_the_assets_that_it_reads() -> None:
    configs = Path(fetch_assets.__file__).parent
    quickstart = [str(configs / "quickstart.yaml")]
    assert fetch_assets.chosen(quickstart) == fetch_assets.chosen([])
    assert fetch_assets.chosen([*quickstart, "reuters"]) == [*fetch_assets.chosen([]), "reuters"]
    assert fetch_assets.chosen([str(configs / "language.yaml")]) == ["smollm2", "names"]
    with pytest.raises(fetch_assets.FetchError, match=r"nowhere\.yaml: No such file"):
        fetch_assets.chosen(["nowhere.yaml"])


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


def test_several_packages_make_one_asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(folder: Path, weights: Path, words: Path) -> str:
        (folder / "both").write_bytes(weights.read_bytes() + words.read_bytes())
        return "two halves"

    def download(pin: Pin, folder: Path, log: Path) -> Path:
        folder.mkdir()
        (folder / "archive").write_text(pin.package, encoding="utf-8")
        return folder / "archive"

    asset = fetch_assets.Asset((PIN, Pin("words", "2.0", "3" * 64, "BSD")), "a model in two parts", build)
    monkeypatch.setitem(fetch_assets.ASSETS, "halves", asset)
    monkeypatch.setattr(fetch_assets, "download", download)
    assert "two halves; demo==1.0, words==2.0" in fetch_assets.fetch("halves", tmp_path)
    assert (tmp_path / "halves" / "both").read_text(encoding="utf-8") == "demowords"
    assert fetch_assets.fetch("halves", tmp_path).endswith("present  two halves")
    assert "| demo==1.0, words==2.0 | MIT; BSD |" in fetch_assets.notice()


def test_it_runs_as_a_script_from_anywhere(tmp_path: Path) -> None:
    script = str(Path(fetch_assets.__file__))
    ran = subprocess.run([sys.executable, script, "nothing"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.startswith("no asset is called 'nothing'")
