"""A run under way: its folder locked, signals handled, MLflow open; what its stages share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config import view as config_view
from pipeline.config.schema import RunConfig
from pipeline.display.display import Display
from pipeline.display.progress import StageProgress
from pipeline.places import Patience
from pipeline.prepare import (
    Inputs,
    augment_inputs,
    prepare,
)
from pipeline.report.rounds import round_notes
from pipeline.round_before import (
    Folders,
    fingerprints_before,
    folders_before,
)
from pipeline.run_folder import (
    CONFIG,
    TIMINGS,
    refuse_changes,
    write_settings,
)
from pipeline.shared_runs import held
from pipeline.shown import counted
from pipeline.stages import Stages
from pipeline.stop import StopSignals
from pipeline.tracking import record
from pipeline.tracking.tracker import Role, Tracker
from pipeline.training.log import read_metrics
from pipeline.training.own import Before
from teachers.checks import Findings
from teachers.pool import Labelling
from teachers.spec import HiddenTargets, TokenTargets

STAGES = ("fine_tune", "preflight", "label", "train", "evaluate")
LABEL_STAGES = STAGES[:3]


@dataclass
class Run:
    """A run under way: the objects that its stages share."""

    config: RunConfig
    inputs: Inputs
    display: Display
    stop: StopSignals
    tracker: Tracker
    stages: Stages
    keys: dict[str, str] = field(default_factory=dict)
    hidden: dict[str, HiddenTargets] = field(default_factory=dict)
    tokens: dict[str, TokenTargets] = field(default_factory=dict)
    folders_before: Folders = field(default_factory=dict)
    before: dict[str, Before] = field(default_factory=dict)
    labelled: dict[str, Labelling] = field(default_factory=dict)
    findings: list[Findings] = field(default_factory=list)
    group: str | None = None
    order: Sequence[str] = STAGES
    sync: Callable[[], None] = lambda: None

    def begin(
        self,
        stage: str,
        what: str,
        noun: str = "",
        unit: str = "",
        expected: Mapping[str, float] | None = None,
    ) -> None:
        """Begins a stage of `order`: records its time, shows its progress; other arguments: see `StageProgress`."""
        self.stages.begin(stage)
        place = f"stage {self.order.index(stage) + 1} of {len(self.order)}"
        title = f"{place}, {stage.replace('_', '-')}"
        self.display.stage(StageProgress(title, noun, unit, expected or {}), what)


@contextmanager
def running(
    config: RunConfig,
    display: Display,
    tracked: bool = True,
    group: str | None = None,
    role: Role = "parent",
    check: Callable[[Inputs], None] = lambda inputs: None,
) -> Iterator[Run]:
    """Locks the run folder, handles signals and opens MLflow; at the end closes MLflow's run with the run's status.

    check: raises where the inputs do not fit, before anything is written.
    """
    stages = Stages()
    inputs, folders = prepare(config), folders_before(config)
    check(inputs)
    with held(config, display.line) as sync, StopSignals(config.run_dir) as stop:
        if any(task.augment is not None for task in config.tasks.values()):
            refuse_changes(config)  # before hours of a masked language model's work
            inputs = _with_variants(config, inputs, display, stages, stop)
            check(inputs)
        fingerprints = {**inputs.fingerprints(config), **fingerprints_before(folders)}
        derived = inputs.resolved.derived()
        refuse_changes(config, fingerprints, derived)
        if tracked or (config.run_dir / CONFIG).exists():
            write_settings(config, fingerprints, derived)
        for note in [*round_notes(config), *config_view.notes(inputs.resolved), *data_notes(inputs)]:
            display.line(note)
        if tracked and config.tracking.enabled and config.runs_url and config.tracking.uri is None:
            display.line(
                f"MLflow: its database cannot lie behind runs_dir and stays on this machine, in {config.runs_path}; "
                "tracking.uri may name a server"
            )
        data = record.data_sets(config, inputs.data)
        with record.recorded_run(
            config, role, group, display.line, derived, data=data, enabled=tracked
        ) as tracker:
            if tracked:
                stages.keep(config.run_dir / TIMINGS)
            try:
                yield Run(
                    config,
                    inputs,
                    display,
                    stop,
                    tracker,
                    stages,
                    folders_before=folders,
                    group=group,
                    sync=sync,
                )
            finally:
                stages.end()


def _with_variants(
    config: RunConfig, inputs: Inputs, display: Display, stages: Stages, stop: StopSignals
) -> Inputs:
    """The inputs with every task's variants; what a masked language model answered in an earlier run is not asked again."""
    stages.begin("augment")
    tasks = {f"augment {name}": 1.0 for name, task in config.tasks.items() if task.augment is not None}
    display.stage(
        StageProgress("augment", "tasks", "masked words", tasks), f"variants of {counted(len(tasks), 'task')}"
    )

    def progress(task: str, done: int, total: int) -> None:
        display.bar(f"augment {task}", done, total)

    inputs = augment_inputs(config, inputs, progress, stop.check)
    stages.begin("start")
    return inputs


def data_notes(inputs: Inputs) -> list[str]:
    return [note for data in inputs.data.values() for note in data.notes]


def patience_of(run: Run) -> Patience:
    """How to wait for nodes. A private Ray has one, and teachers take turns on it: that is not worth a line."""
    cluster = run.config.cluster
    show = run.display.line if cluster.address is not None else lambda line: None
    return Patience(cluster.nodes_timeout_s, show)


def show_progress(display: Display, what: str, file: Path, *, final: bool = True) -> None:
    points = read_metrics(file)
    if not points:
        return
    scores = [p["metrics"]["macro/score"] for p in points if "macro/score" in p["metrics"]]
    note = f"validation {100 * scores[-1]:.1f}" if scores else ""
    last = points[-1]
    if last["step"] < last["total"] or (
        final and "macro/score" in last["metrics"]
    ):  # the score is logged last
        display.bar(what, last["step"], last["total"], note)
