"""Views of an experiment that MLflow restores from an address: which runs, in which order, with which columns and charts.

MLflow keeps a saved view in a tag of the experiment, as JSON, and lists it under "Views". An address that names
the tag's key opens it. Columns and charts cannot be set by an address in any other way. The names of the keys in that
JSON are those of MLflow's page (``ExperimentPageUIState.tsx``, ``ExperimentPageSearchFacetsState.tsx`` and
``runs-charts.types.ts``, MLflow 3.17); tests/integration/test_ui.py opens every view in a browser.

This module does not import MLflow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode

from pipeline.config.kinds import METRICS
from pipeline.config.schema import RunConfig
from pipeline.config.search import TuneConfig
from pipeline.tracking.names import Part, metrics_of, shown_name

FOLDED = (
    "best",
    "cost",
    "latency_ms",
    "loss",
    "loss/hard",
    "loss/soft",
    "retention",
    "test",
    "time",
    "train",
    "validation",
)
TAG = "mlflow.sharedViewState."  # and the view's key: the tag that holds a view


@dataclass(frozen=True)
class View:
    """One saved view. key: its name in addresses · title: its name on MLflow's page · charts: whether its address opens
    the charts instead of the table · state: what MLflow restores."""

    key: str
    title: str
    charts: bool
    state: Mapping[str, Any]

    def tag(self, created_ms: int) -> str:
        """The value of the experiment's tag."""
        state = json.dumps(self.state)
        return json.dumps(
            {"name": self.title, "createdAt": created_ms, "updatedAt": created_ms, "state": state}
        )


def page(experiment_id: str, key: str | None = None, charts: bool = False) -> str:
    """The part of an address behind the server's: an experiment's runs, in the view `key`.

    Without ``workflowType`` MLflow opens its pages for applications of language models.
    """
    query = {"workflowType": "machine_learning"}
    if charts:
        query["compareRunsMode"] = "CHART"
    if key is not None:
        query["viewStateShareKey"] = key
    return f"#/experiments/{experiment_id}/runs?{urlencode(query)}"


def views_of_run(config: RunConfig, group: str | None) -> tuple[View, ...]:
    """The students and baselines of a run, or of all runs of its group, as a list and as charts."""
    name = group or config.name
    whose = f"tags.{'group' if group else 'run'} = '{name}'"
    metrics = metrics_of(config)
    scores = _scores("test", metrics)
    columns = [
        *(["params.`seed`"] if group else []),
        *(f"metrics.`{one}`" for one in (*scores, "retention/macro", "cost/parameters", "cost/latency_ms")),
        "tags.`student`",
        "tags.`mode`",
    ]
    order = {"orderByKey": "metrics.`test/macro`", "orderByAsc": False}
    listed = {"searchFilter": f"{whose} AND tags.mode IS NOT NULL", **order, **_columns(columns)}
    compared = {
        "searchFilter": f"{whose} AND tags.role != 'parent'",
        **order,
        **_columns(columns),
        **_charts(_student_sections(metrics)),
    }
    return (
        View(f"students-{name}", f"Students of {name}, by test score", False, listed),
        View(f"compared-{name}", f"Students of {name}, compared by task", True, compared),
    )


def views_of_study(config: RunConfig) -> tuple[View, ...]:
    """The trials of a search, as a list and as charts. config: the study's own."""
    assert config.tune is not None, "a study has a search"
    metrics, searched = metrics_of(config), list(config.tune.space)
    aimed = config.tune.metrics[0]
    first = shown_name("best", aimed, metrics)
    columns = [first, *(one for one in _scores("best", metrics) if one != first)]
    state = {
        "searchFilter": f"tags.study = '{config.name}'",
        "orderByKey": f"metrics.`{first}`",
        "orderByAsc": _is_lower_better(config.tune, aimed),
        **_columns(
            [
                "tags.`outcome`",
                *(f"metrics.`{one}`" for one in columns),
                *(f"params.`{path}`" for path in searched),
            ]
        ),
        **_charts(_trial_sections(first, searched, metrics)),
    }
    return (
        View(f"trials-{config.name}", f"Trials of {config.name}, best first", False, state),
        View(f"values-{config.name}", f"Trials of {config.name}, score by value", True, state),
    )


def _is_lower_better(tune: TuneConfig, metric: str) -> bool:
    """Whether the search minimises `metric`, its first."""
    if tune.mode is not None:
        return (tune.mode if isinstance(tune.mode, str) else tune.mode[0]) == "min"
    declared = METRICS.get(metric.rpartition("/")[2])
    return declared is not None and declared.better == "lower"


def _scores(part: Part, metrics: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The mean over the tasks, where there are several, then each task's score."""
    return [*([f"{part}/macro"] if len(metrics) > 1 else []), *(f"{part}/{task}" for task in metrics)]


def _columns(columns: Sequence[str]) -> dict[str, Any]:
    """The table's columns, from left to right, each as wide as its title. Charts show all runs listed, not MLflow's first
    ten."""
    widths = {column: max(90, 35 + 8 * len(column.partition("`")[2])) for column in columns}
    return {
        "selectedColumns": list(columns),
        "columnOrder": list(columns),
        "columnWidths": widths,
        "runsHiddenMode": "SHOW_ALL",
    }


# ---------------------------------------------------------------- charts


@dataclass(frozen=True)
class _Section:
    """A section of charts. name: the question that it answers · cards: see `_card` · closed: shown folded."""

    name: str
    cards: tuple[Mapping[str, Any], ...] = ()
    closed: bool = False


def _charts(sections: Sequence[_Section]) -> dict[str, Any]:
    """MLflow adds its own charts of every metric that has none here, behind these."""
    cards = [
        {
            "uuid": f"{place}-{number}",
            "metricSectionId": section.name,
            "deleted": False,
            "isGenerated": False,
            "runsCountToCompare": 100,
            **card,
        }
        for place, section in enumerate(sections)
        for number, card in enumerate(section.cards)
    ]
    listed = [
        {
            "uuid": section.name,
            "name": section.name,
            "display": not section.closed,
            "isReordered": True,
            "deleted": False,
            "isGenerated": False,
            "columns": 2,
        }
        for section in sections
    ]
    return {"compareRunCharts": cards, "compareRunSections": listed, "isAccordionReordered": True}


def _student_sections(metrics: Mapping[str, tuple[str, ...]]) -> list[_Section]:
    """What to look at where students are compared: the tasks, the cost, how they learned; the rest folded."""
    scores = _scores("test", metrics)
    parallel = [_parallel([], scores)] if len(scores) > 1 else []
    return [
        _Section(_titled("Test", metrics), (*parallel, *map(_bar, scores))),
        _Section("Test score by cost", (_scatter("cost/latency_ms", scores[0]), _bar("cost/parameters"))),
        _Section(_titled("Validation", metrics), tuple(map(_line, _scores("validation", metrics)))),
        *(_Section(name, closed=True) for name in FOLDED),
    ]


def _titled(split: str, metrics: Mapping[str, tuple[str, ...]]) -> str:
    """The title of a section of scores by task, with the tasks' metrics."""
    own = {task: names[0] for task, names in metrics.items()}
    if len(set(own.values())) == 1:
        return f"{split} {next(iter(own.values()))} by task"
    return f"{split} score by task ({', '.join(f'{task}: {metric}' for task, metric in own.items())})"


def _trial_sections(
    first: str, searched: Sequence[str], metrics: Mapping[str, tuple[str, ...]]
) -> list[_Section]:
    """What to look at where trials are compared: which value gave which score."""
    by_task = [f"best/{task}" for task in metrics if f"best/{task}" != first]
    scatter = [_scatter(path, first, "PARAM") for path in searched]
    return [
        _Section("Score by value", (_parallel(searched, [*by_task, first]), *scatter)),
        _Section(_titled("Validation", metrics), tuple(map(_line, _scores("validation", metrics)))),
        *(_Section(name, closed=True) for name in FOLDED),
    ]


def _parallel(params: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """Parallel coordinates, a line a run; MLflow leaves out runs that lack one of the values."""
    own = {"selectedParams": list(params), "selectedMetrics": list(metrics), "showAllRuns": False}
    return {"type": "PARALLEL", **own}


def _bar(metric: str) -> dict[str, Any]:
    return {"type": "BAR", "metricKey": metric}


def _scatter(x: str, y: str, x_type: Literal["METRIC", "PARAM"] = "METRIC") -> dict[str, Any]:
    return {"type": "SCATTER", "xaxis": {"key": x, "type": x_type}, "yaxis": {"key": y, "type": "METRIC"}}


def _line(metric: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
