"""Runs behind a URL (`runs_dir: s3://…`): what the driver and the workers of a cluster keep there in place of a shared file system.

::

    <runs_dir>/<run>/             as in a local folder; the driver and the workers each have a copy of the part that they need
    <runs_dir>/<run>/.lease       which launch is using it
    <runs_dir>/_teachers/<hash>/  fine-tuned teachers; the one that makes it has a copy, others read it
    <runs_dir>/_models/<hash>/    the models of the config, by their content
    <runs_dir>/_store/            soft targets, read and written without a copy of the folder (`teachers.store`)

Here are the parts that no Ray is needed for. Where `runs_dir` is a folder, all of this does nothing.
"""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.schema import RunConfig
from pipeline.models import CONFIG, FILES, fingerprint
from pipeline.run_folder import (
    CHECKPOINTS,
    FAILURE,
    GROUP,
    LEDGER,
    RAY,
    REPORT,
    RESULT,
    ROUNDS,
    STUDENTS,
    STUDY,
    TRIAL,
    locked,
    stop_file,
)
from pipeline.run_folder import CONFIG as CONFIG_FILE
from pipeline.synced import Synced, UrlFolder, kept_equal, leased
from pipeline.urls import cache_folder, join


@contextmanager
def held(config: RunConfig, note: Callable[[str], None] = lambda line: None) -> Iterator[Callable[[], None]]:
    """Holds the run's folder for this process; behind a URL, keeps a copy of it, of preflight's predictions, of variants and of baselines. Gives a
    function that makes copy and URL equal now.

    note: gets a line where something is waited for. Raises `LockedError` if another launch has it.
    """
    with locked(config.run_dir):
        if config.runs_url is None:
            yield lambda: None
            return
        stop = stop_file(config.run_dir)
        own_database = config.tracking.uri is None

        def wanted(name: str) -> bool:
            return _of_driver(name) and not (own_database and name == LEDGER)

        with leased(join(config.runs_url, config.name), note):
            shared = (config.run_dir, config.preflight_dir, config.variants_dir, config.baselines_dir)
            folders = [Synced(join(config.runs_url, folder.name), folder, wanted) for folder in shared]
            folders[0].url.delete(stop.name)  # of a launch that was killed while it stopped
            with kept_equal(folders) as now:
                yield now


def _of_driver(name: str) -> bool:
    """Whether the driver has a copy of a file of a run: of all but checkpoints, and Ray's own files."""
    parts = name.split("/")
    return parts[0] != RAY and not any(part.startswith("step-") for part in parts)


def pull_teacher(config: RunConfig, folder: Path) -> None:
    """Makes the driver's copy of a teacher's folder what lies behind the URL, without checkpoints."""
    if config.runs_url is not None:
        Synced(join(config.runs_url, config.teachers_dir.name, folder.name), folder, _of_driver).pull()


def followed(config: RunConfig, folders: Sequence[Path]) -> AbstractContextManager[object]:
    """Keeps the driver's copies of teachers' folders equal to what those that make them send."""
    if config.runs_url is None:
        return nullcontext()
    root = join(config.runs_url, config.teachers_dir.name)
    return kept_equal([Synced(join(root, folder.name), folder, _of_driver) for folder in folders])


def model_source(config: RunConfig, folder: Path) -> str | None:
    """The URL where the nodes of a cluster find a model of this machine; None where runs are in a folder that they see, or there is
    no such model here."""
    if config.runs_url is None or not folder.is_dir():
        return None
    if folder.parent.parent == config.teachers_dir:
        return join(config.runs_url, config.teachers_dir.name, folder.parent.name, folder.name)
    return join(config.runs_url, "_models", fingerprint(folder))


def teacher_sources(config: RunConfig, teachers: Mapping[str, Path]) -> dict[str, str]:
    """Where the nodes of a cluster find the models of teachers, by teacher."""
    return {name: model_source(config, folder) or str(folder) for name, folder in teachers.items()}


def send_models(config: RunConfig, folders: Iterable[Path]) -> None:
    """Sends models to where `model_source` says, those that are not there yet."""
    for folder in dict.fromkeys(folders):
        source = model_source(config, folder.absolute())
        if source is None or (target := UrlFolder(source)).exists(CONFIG):
            continue
        files = {file.name: file for pattern in FILES for file in folder.glob(pattern)}
        for name in sorted(files, key=lambda name: (name == CONFIG, name)):  # a folder that has it is whole
            target.send(files[name], name)


def pull_reports(url: str) -> Path:
    """This machine's copy of the reports and configs of all runs behind a URL, and of nothing else."""
    names = {CONFIG_FILE, REPORT, GROUP, STUDY, ROUNDS}
    copy = cache_folder(url) / "reports"  # not the driver's copies: it may be about to send one
    Synced(url, copy, lambda name: name.count("/") == 1 and name.split("/")[1] in names).pull()
    return copy


def url_of(config: RunConfig, folder: Path) -> str | None:
    """The URL of what `folder`, somewhere below the runs of this machine, is a copy of; None where it is no copy."""
    if config.runs_url is None:
        return None
    return join(config.runs_url, *folder.absolute().relative_to(config.runs_path.absolute()).parts)


def fetch_weights(config: RunConfig, training: Path) -> None:
    """Gives the driver's copy of a training its checkpoints, which the driver has no copy of otherwise."""
    if (url := url_of(config, training)) is not None:
        Synced(url, training).pull()


def send_weights(config: RunConfig, training: Path) -> None:
    """Puts the checkpoints of the driver's copy in place of those that the training has behind its URL."""
    if (url := url_of(config, training)) is not None:
        remove_weights_behind(url)
        Synced(url, training).sync()


def remove_weights_behind(url: str | None) -> None:
    """Removes the checkpoints of all trainings behind a URL, and keeps what else they have."""
    if url is None:
        return
    folder = UrlFolder(url)
    for name in {name.rpartition("/")[0] for name in folder.facts()}:
        if posixpath.basename(name).startswith("step-"):
            folder.delete_folder(name)


def of_trial(name: str) -> bool:
    """Whether a trial of a search has a copy of a file of its folder: of all but the search's record of it."""
    return name != TRIAL


def of_worker(rank: int) -> Callable[[str], bool]:
    """Whether a worker has a copy of a file of a run: the first one of what it writes, the others of what says what is done."""

    def wanted(name: str) -> bool:
        folder = name.split("/")[0]
        if name.startswith(FAILURE):
            return True
        if rank:
            return folder == CHECKPOINTS and name.count("/") == 2 and name.endswith(f"/{RESULT}")
        return folder in (CHECKPOINTS, STUDENTS)

    return wanted


@dataclass(frozen=True)
class Behind:
    """URLs of a folder that a process on any node works on, and of its run, whose stop file ends the work."""

    folder: str
    run: str


def behind(config: RunConfig, *names: str) -> Behind | None:
    """URLs of a folder below `runs_dir`, by the names on the way; None where every node sees it."""
    if config.runs_url is None:
        return None
    return Behind(join(config.runs_url, *names), join(config.runs_url, config.name))


def to_stop(urls: Behind | None, stop: Path) -> bool:
    """Whether the stop file is there, on this machine or behind the run's URL."""
    return stop.exists() if urls is None else UrlFolder(urls.run).exists(stop.name)


@contextmanager
def worked_on(
    urls: Behind | None, folder: Path, stop: Path, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[Path, Path]]:
    """Where this process works on `folder`, and the stop file that it watches: as given, or in a copy of its own that is kept equal.

    wanted: of the files of the folder, by name, those that the copy has.
    """
    if urls is None:
        yield folder, stop
        return
    with tempfile.TemporaryDirectory(prefix="tutelage-") as scratch:
        copy, own_stop = Path(scratch) / folder.name, Path(scratch) / stop.name

        def watch() -> None:
            if to_stop(urls, stop):
                own_stop.touch()

        with kept_equal([Synced(urls.folder, copy, wanted)], watch):
            yield copy, own_stop
