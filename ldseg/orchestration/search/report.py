"""A study as one page that needs no network: the front, what mattered, how trials learnt, pictures, failures, cost."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import plotly.graph_objects as go
import plotly.io

from ldseg.files import write_atomically
from ldseg.orchestration.search.pareto import FRONT, Point, points
from ldseg.orchestration.search.search import Trial, study_front
from ldseg.orchestration.search.spaces import Space
from ldseg.orchestration.search.study import STANDS_FOR, Study
from ldseg.orchestration.training.run import HISTORY

REPORT = "report.html"
COLOURS = ("#2a78b8", "#e08a2e", "#3a9a5b", "#c2497a", "#7a6bc0", "#b0702f", "#2b9aa5", "#8a8f2a")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1080px; padding: 0 1rem; color: #1c2330; }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem }
p.lead, figcaption { color: #57606d; margin-top: 0 } table { border-collapse: collapse; font-size: 14px; width: 100% }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #e2e6ea } .scroll { overflow-x: auto }
th:first-child, td:first-child { text-align: left } img { max-width: 100%; border-radius: 6px }
tr.best td { font-weight: 600; background: #f2f7fc } td.text { text-align: left; white-space: normal }
"""


def write_report(study: Study, space: Space, stored: optuna.Study, trials: Sequence[Trial], runs: Path) -> Path:
    """Write report.html into the study's folder, whole or not at all.

    Args:
        trials: of `ldseg.orchestration.search.search.read_trials`.
        runs: the home, where histories and the evaluations' pictures are looked for.

    Returns:
        The file.
    """
    best = study_front(list(trials))
    sections = [
        _head(study, space, trials),
        _section("Accuracy, uncertainty and speed", FRONT_TEXT, _front_figure(trials, best), _front_table(best)),
        _section("Trials", "Best first, by the study's metric.", _trials_table(trials, space)),
        _section("Learning curves", f"{space.metric} on the validation cases.", _curves(trials, space, runs)),
        *_optuna_sections(stored, space),
        _section("Held-out cases", PICTURE_TEXT, *_pictures(trials, runs)),
        _section("Failures", "", _failures(trials)),
        _section("Cost", "Training time of each trial, scoring included.", _cost(trials, runs)),
    ]
    script = f"<script>{plotly.offline.get_plotlyjs()}</script>"
    title = html.escape(f"Study {study.name}")
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>{script}</head>'
        f"<body>{''.join(sections)}</body></html>"
    )
    path = study.folder / REPORT
    write_atomically(path, page.encode())
    return path


FRONT_TEXT = (
    "A point is one trained model sampled with one number of steps, on the validation cases. The marked points are the "
    "front: none is beaten in Dice, likelihood and seconds at once."
)
PICTURE_TEXT = (
    "Test cases of the models that were exported, with the spread of their samples. Nothing was chosen by them."
)


def _head(study: Study, space: Space, trials: Sequence[Trial]) -> str:
    failed, stopped = sum(bool(t.reason) for t in trials), sum(t.stopped for t in trials)
    kind = "several objectives" if study.front else f"{space.metric} ({space.mode}), early stopping"
    text = (
        f"{len(trials)} trials: {len(trials) - failed - stopped} trained to the end, {stopped} stopped early, "
        f"{failed} failed. Space {space.name}, {kind}, {study.epochs} epochs, seed {study.seed}, data {study.data}."
    )
    return f"<h1>Study {html.escape(study.name)}</h1><p class='lead'>{html.escape(text)}</p>"


def _section(title: str, text: str, *parts: str) -> str:
    body = "".join(part for part in parts if part) or "<p class='lead'>None.</p>"
    return f"<h2>{html.escape(title)}</h2><p class='lead'>{html.escape(text)}</p>{body}"


def _figure(figure: go.Figure, height: int = 420) -> str:
    figure.update_layout(template="plotly_white", height=height, margin={"l": 60, "r": 20, "t": 20, "b": 50})
    return str(plotly.io.to_html(figure, include_plotlyjs=False, full_html=False))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], best: int = -1, text: bool = False) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    kind = " class='text'" if text else ""
    lines = [
        f"<tr{' class=best' if i == best else ''}>" + "".join(f"<td{kind}>{html.escape(c)}</td>" for c in row) + "</tr>"
        for i, row in enumerate(rows)
    ]
    return f"<div class='scroll'><table><tr>{head}</tr>{''.join(lines)}</table></div>"


def _front_figure(trials: Sequence[Trial], best: Sequence[Point]) -> str:
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
        yaxis_title="negative log-likelihood, nats a voxel",
        coloraxis={
            "colorscale": "Viridis",
            "colorbar": {"title": "s a sample"},
            "cmin": min((p.values[2] for p in [*others, *best]), default=0.0),
            "cmax": max((p.values[2] for p in [*others, *best]), default=1.0),
        },
        legend={"orientation": "h", "y": 1.08},
    )
    return _figure(figure) if others or best else ""


def _front_table(best: Sequence[Point]) -> str:
    header = ["trial", "steps", *[name.removeprefix("val_") for name, _ in FRONT]]
    rows = [[str(p.trial), str(p.steps), *[f"{v:.4f}" for v in p.values]] for p in best]
    return _table(header, rows) if rows else ""


def _trials_table(trials: Sequence[Trial], space: Space) -> str:
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
    return _table(header, rows, best=0)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _history(runs: Path, trial: Trial) -> Iterator[dict[str, float]]:
    path = runs / "train" / trial.name / HISTORY
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:  # the last line of a run that was killed
            return


def _curves(trials: Sequence[Trial], space: Space, runs: Path) -> str:
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


def _optuna_sections(stored: optuna.Study, space: Space) -> Iterator[str]:
    """Optuna's own plots, where there is enough for them."""
    complete = [
        t for t in stored.get_trials(states=(optuna.trial.TrialState.COMPLETE,)) if STANDS_FOR not in t.user_attrs
    ]
    if len(complete) < 4:
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
            yield _section(title, text, _figure(plot(kept, **named)))
        except (ValueError, RuntimeError) as error:  # all trials alike, or no parameter in common
            yield _section(title, f"{text} Not drawn: {error}")


def _pictures(trials: Sequence[Trial], runs: Path) -> Iterator[str]:
    for trial in trials:
        for path in sorted((runs / "evaluations" / trial.name / "pictures").glob("*.png"))[:3]:
            data = base64.b64encode(path.read_bytes()).decode()
            caption = html.escape(f"{trial.name}, {trial.steps} steps, case {path.stem}")
            yield (
                f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
                f"<figcaption>{caption}</figcaption></figure>"
            )


def _failures(trials: Sequence[Trial]) -> str:
    rows = [[str(trial.number), trial.reason] for trial in trials if trial.reason]
    return _table(["trial", "reason"], rows, text=True) if rows else ""


def _cost(trials: Sequence[Trial], runs: Path) -> str:
    seconds = {t.number: sum(row.get("seconds", 0.0) for row in _history(runs, t)) for t in trials}
    total = sum(seconds.values())
    if not total or not math.isfinite(total):
        return ""
    figure = go.Figure(go.Bar(x=[f"trial {n}" for n in sorted(seconds)], y=[seconds[n] / 60 for n in sorted(seconds)]))
    figure.update_layout(yaxis_title="minutes")
    return _figure(figure, 260) + f"<p>{total / 3600:.2f} hours of training in all.</p>"
