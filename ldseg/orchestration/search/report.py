"""A study as one page that needs no network: the front, what mattered, how trials learnt, pictures, failures, cost."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import plotly.graph_objects as go
import plotly.io
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ldseg.files import write_atomically
from ldseg.orchestration.search.pareto import FRONT, Point, points
from ldseg.orchestration.search.search import Trial, study_front
from ldseg.orchestration.search.spaces import Space
from ldseg.orchestration.search.study import STANDS_FOR, Study
from ldseg.orchestration.training.run import HISTORY

FEWEST = 4  # finished trials from which the importance of a choice may be guessed
REPORT = "report.html"
COLOURS = ("#2a78b8", "#e08a2e", "#3a9a5b", "#c2497a", "#7a6bc0", "#b0702f", "#2b9aa5", "#8a8f2a")
PAGE = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)


def write_report(study: Study, space: Space, stored: optuna.Study, trials: Sequence[Trial], runs: Path) -> Path:
    """Write report.html into the study's folder, whole or not at all.

    Args:
        trials: of `ldseg.orchestration.search.search.read_trials`.
        runs: the home, where histories and the evaluations' pictures are looked for.

    Returns:
        The file.
    """
    best = study_front(list(trials))
    seconds = {t.number: sum(row.get("seconds", 0.0) for row in _history(runs, t)) for t in trials}
    hours = sum(seconds.values()) / 3600
    page = PAGE.get_template("report.html.j2").render(
        study=study,
        space=space,
        trials=trials,
        failed=sum(bool(trial.reason) for trial in trials),
        stopped=sum(trial.stopped for trial in trials),
        plotly=Markup(plotly.offline.get_plotlyjs()),
        front_figure=_front_figure(trials, best),
        front_table=_front_table(best),
        trials_table=_trials_table(trials, space),
        curves=_curves(trials, space, runs),
        importance=list(_importance(stored, space)),
        pictures=list(_pictures(trials, runs)),
        failures=[[str(trial.number), trial.reason] for trial in trials if trial.reason],
        hours=hours if math.isfinite(hours) else 0.0,
        cost=_cost(seconds),
    )
    path = study.folder / REPORT
    write_atomically(path, page.encode())
    return path


def _figure(figure: go.Figure, height: int = 420) -> Markup:
    figure.update_layout(template="plotly_white", height=height, margin={"l": 60, "r": 20, "t": 20, "b": 50})
    return Markup(plotly.io.to_html(figure, include_plotlyjs=False, full_html=False))


def _front_figure(trials: Sequence[Trial], best: Sequence[Point]) -> Markup | str:
    others = [p for t in trials if not t.reason for p in points(t.number, t.metrics) if p not in best]
    figure = go.Figure()
    for name, group, size in (("all", others, 7), ("front", best, 13)):
        hover = [f"trial {p.trial}, {p.steps} steps<br>{p.values[2]:.3f} s a sample" for p in group]
        figure.add_scatter(
            x=[p.values[0] for p in group],
            y=[p.values[1] for p in group],
            mode="markers+text" if name == "front" else "markers",
            text=[f"{p.trial}/{p.steps}" for p in group] if name == "front" else None,
            textposition="top center",
            hovertext=hover,
            hoverinfo="text+x+y",
            name=name,
            marker={
                "size": size,
                "color": [p.values[2] for p in group],
                "coloraxis": "coloraxis",
                "line": {"width": 1, "color": "white"},
            },
        )
    figure.update_layout(
        xaxis_title="Dice of the mean",
        yaxis_title="energy score of the samples",
        coloraxis={
            "colorscale": "Viridis",
            "colorbar": {"title": "s a sample"},
            "cmin": min((p.values[2] for p in [*others, *best]), default=0.0),
            "cmax": max((p.values[2] for p in [*others, *best]), default=1.0),
        },
        legend={"orientation": "h", "y": 1.08},
    )
    return _figure(figure) if others or best else ""


def _front_table(best: Sequence[Point]) -> tuple[list[str], list[list[str]]]:
    header = ["trial", "steps", *[name.removeprefix("val_") for name, _ in FRONT]]
    return header, [[str(p.trial), str(p.steps), *[f"{v:.4f}" for v in p.values]] for p in best]


def _trials_table(trials: Sequence[Trial], space: Space) -> tuple[list[str], list[list[str]]]:
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    header = ["trial", space.metric, "steps", "epochs", *[key.rpartition(".")[2] for key in keys], "state"]
    rows = []
    for trial in trials:
        state = "failed" if trial.reason else "stopped early" if trial.stopped else "done"
        values = [_short(trial.values[key]) if key in trial.values else "" for key in keys]
        epochs = f"{trial.metrics.get('epoch', 0):.0f}"
        rows.append(
            [str(trial.number), _short(trial.score(space.metric)), str(trial.steps or ""), epochs, *values, state]
        )
    return header, rows


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _history(runs: Path, trial: Trial) -> Iterator[dict[str, float]]:
    path = runs / "train" / trial.name / HISTORY
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:  # the last line of a run that was killed
            return


def _curves(trials: Sequence[Trial], space: Space, runs: Path) -> Markup | str:
    figure = go.Figure()
    for i, trial in enumerate(sorted(trials, key=lambda t: t.number)):
        seen = {row["epoch"]: row[space.metric] for row in _history(runs, trial) if space.metric in row}
        if seen:
            figure.add_scatter(
                x=list(seen),
                y=list(seen.values()),
                name=f"trial {trial.number}",
                mode="lines+markers",
                line={"color": COLOURS[i % len(COLOURS)], "dash": "dot" if trial.stopped or trial.reason else "solid"},
            )
    figure.update_layout(xaxis_title="epoch", yaxis_title=space.metric)
    return _figure(figure) if figure.data else ""


def _importance(stored: optuna.Study, space: Space) -> Iterator[tuple[str, str, Markup | str]]:
    """Optuna's own plots, where there is enough for them: title, text and figure."""
    complete = [
        t for t in stored.get_trials(states=(optuna.trial.TrialState.COMPLETE,)) if STANDS_FOR not in t.user_attrs
    ]
    if len(complete) < FEWEST:
        yield "What mattered", f"Not told from {len(complete)} finished trials: it takes at least {FEWEST}.", ""
        return
    kept = optuna.create_study(directions=stored.directions)
    kept.add_trials(complete)
    several = {"target": lambda t: t.values[0], "target_name": FRONT[0][0]} if len(stored.directions) > 1 else {}
    named = several or {"target_name": space.metric}
    for title, text, plot in (
        ("What mattered", "Importance of each choice (fANOVA) among the finished trials; few trials say little.",
         optuna.visualization.plot_param_importances),
        ("Parallel coordinates", "A line is a finished trial.", optuna.visualization.plot_parallel_coordinate),
    ):  # fmt: skip
        try:
            yield title, text, _figure(plot(kept, **named))
        except (ValueError, RuntimeError) as error:  # all trials alike, or no parameter in common
            yield title, f"{text} Not drawn: {error}", ""


def _pictures(trials: Sequence[Trial], runs: Path) -> Iterator[tuple[str, str]]:
    for trial in trials:
        for path in sorted((runs / "evaluations" / trial.name / "pictures").glob("*.png"))[:3]:
            data = base64.b64encode(path.read_bytes()).decode()
            yield f"{trial.name}, {trial.steps} steps, case {path.stem}", data


def _cost(seconds: Mapping[int, float]) -> Markup:
    numbers = sorted(seconds)
    figure = go.Figure(go.Bar(x=[f"trial {n}" for n in numbers], y=[seconds[n] / 60 for n in numbers]))
    figure.update_layout(yaxis_title="minutes")
    return _figure(figure, 260)
