"""A search's report: one HTML file that holds its pictures, and the pictures as PNG."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.errors import UsageError
from fbnetv3.nars.algorithm.early_stopping import rank_correlations
from fbnetv3.nars.algorithm.rounds import predictor_error, ranked
from fbnetv3.nars.algorithm.trial_store import ANALYSIS, DONE, FAILED, Trial, TrialsError, TrialStore
from fbnetv3.nars.report.progress_table import compared_at
from fbnetv3.utils.files import atomic_write, make_folder

REPORT = "report.html"


class _Html(str):
    """Text that is HTML already."""


@dataclass(frozen=True)
class _Search:
    """What a folder holds: trials, facts, and the analysis once the search has come to its end."""

    folder: Path
    trials: list[Trial]
    about: dict[str, Any]
    analysis: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        return self.about.get("settings", {})

    @property
    def epoch(self) -> int:
        return compared_at(self.trials, self.about)

    @property
    def rounds(self) -> list[list[Trial]]:
        """The trials of each round that are done."""
        count = max((trial.round for trial in self.trials), default=-1) + 1
        return [[t for t in self.trials if t.round == number and t.status == DONE] for number in range(count)]


def write_report(folder: Path) -> Path:
    """Write `report.html`, and its pictures into `report/`, from what a search's folder holds.

    Before the search's end it shows the trials alone.

    Returns:
        The path of the HTML file.

    Raises:
        TrialsError: the folder holds no search, or its analysis is damaged.
        UsageError: no trial is done yet.
        OutputError: it cannot be written.
    """
    store = TrialStore(folder)
    try:
        trials, about = store.all(), store.about()
    finally:
        store.close()
    if not any(trial.status == DONE for trial in trials):
        raise UsageError(f"{folder}: no trial is done yet")
    file = folder / ANALYSIS
    try:
        analysis = json.loads(file.read_text()) if file.exists() else {}
    except ValueError as error:
        raise TrialsError(f"{file}: is damaged ({error}): remove it, and resume the search, which writes it") from None
    search = _Search(folder, trials, about, analysis)
    pictures = make_folder(folder / "report")
    shown = []
    for name, title, words, draw in _FIGURES:
        figure = _new_figure()
        if not draw(search, figure):
            continue
        image = io.BytesIO()
        figure.savefig(image, format="png")
        with atomic_write(pictures / f"{name}.png") as f:
            f.write(image.getvalue())
        shown.append(_section(title, words, image.getvalue()))
    with atomic_write(folder / REPORT) as f:
        f.write(_page(search, shown).encode())
    return folder / REPORT


def _new_figure() -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(7.2, 4), layout="constrained", dpi=120)


def _tidy(axes: Any, **labels: str) -> None:
    axes.set(**labels)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


_Values = Sequence[float | None] | np.ndarray


def _against(axes: Any, truth: _Values, guesses: _Values, title: str) -> None:
    """Predicted against measured, with the line on which they are equal."""
    measured, predicted = np.array(truth, float), np.array(guesses, float)
    both = np.isfinite(measured) & np.isfinite(predicted)
    measured, predicted = measured[both], predicted[both]
    _tidy(axes, xlabel="measured", ylabel="predicted", title=title)
    if not len(measured):
        return
    axes.scatter(measured, predicted, s=12, alpha=0.6, linewidths=0)
    ends = [min(measured.min(), predicted.min()), max(measured.max(), predicted.max())]
    axes.plot(ends, ends, color="0.5", linewidth=1)


def _correlation(first: _Values, second: _Values) -> str:
    pairs = np.array([first, second], float).T
    pairs = pairs[np.isfinite(pairs).all(1)]
    if len(pairs) < 3:
        return ""
    value = float(rank_correlations(pairs)[0])
    return f", rank correlation {value:.2f}" if math.isfinite(value) else ""


def _draw_pretraining(search: _Search, figure: Any) -> bool:
    found = search.analysis.get("pretraining")
    if not found:
        return False
    labels, predicted = np.array(found["labels"]), np.array(found["predicted"])
    most = min(3, len(found["names"]))
    for i, axes in enumerate(np.atleast_1d(figure.subplots(1, most))):
        _against(axes, labels[:, i], predicted[:, i], f"{found['names'][i]}: $R^2$ {found['r2'][i]:.4f}")
    return True


def _draw_predictor(search: _Search, figure: Any) -> bool:
    found = search.analysis.get("cross_validation")
    if not found:
        return False
    sides = [(key, words) for key, words in (("plain", "not pretrained"), ("pretrained", "pretrained")) if key in found]
    for axes, (key, words) in zip(np.atleast_1d(figure.subplots(1, len(sides))), sides, strict=True):
        error = np.mean((np.array(found[key]) - np.array(found["measured"])) ** 2)
        _against(
            axes,
            found["measured"],
            found[key],
            f"{words}: MSE {error:.3g}{_correlation(found['measured'], found[key])}",
        )
        axes.title.set_fontsize(9)
    return True


def _draw_samples(search: _Search, figure: Any) -> bool:
    found = search.analysis.get("samples")
    if not found:
        return False
    axes = figure.subplots()
    for key, words in (("plain", "not pretrained"), ("pretrained", "pretrained")):
        if key in found:
            axes.plot(found["sizes"], found[key], "o-", label=words)
    axes.set_yscale("log")
    axes.legend(frameon=False)
    _tidy(axes, xlabel="trials learned from", ylabel="mean squared error on others")
    return True


def _draw_stopping(search: _Search, figure: Any) -> bool:
    curves = [trial.curve for trial in search.trials if trial.round == 0 and trial.curve is not None]
    if len(curves) < 3 or len(curves[0]) < 2:
        return False
    axes = figure.subplots()
    correlations = rank_correlations(np.array(curves))
    axes.plot(range(1, len(correlations) + 1), correlations, "o-")
    threshold = search.settings.get("stop_above")
    if threshold is not None:
        axes.axhline(threshold, color="tab:cyan", label=f"threshold {threshold:g}")
        axes.axvline(search.epoch, color="0.5", linestyle=":", label=f"later trials end after epoch {search.epoch}")
        axes.legend(frameon=False)
    _tidy(axes, xlabel="epoch", ylabel="rank correlation with the last epoch")
    return True


def _draw_rounds(search: _Search, figure: Any) -> bool:
    axes = figure.subplots()
    rounds, epoch = search.rounds, search.epoch
    best: list[tuple[int, float]] = []
    for number, trials in enumerate(rounds, 1):
        values = [trial.accuracy(epoch) for trial in trials]
        if not values:
            continue
        shift = np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else [0]
        axes.scatter(number + np.array(shift), values, s=14, alpha=0.6, linewidths=0)
        axes.plot([number - 0.32, number + 0.32], [np.median(values)] * 2, color="0.2", linewidth=2)
        best.append((number, max([value for _, value in best[-1:]] + values)))
    axes.plot(*zip(*best, strict=True), "k--", linewidth=1, label="best so far")
    axes.set_xticks(range(1, len(rounds) + 1))
    axes.legend(frameon=False)
    _tidy(axes, xlabel="round (the bar is its median)", ylabel=f"accuracy after epoch {epoch}")
    return True


def _draw_last_round(search: _Search, figure: Any) -> bool:
    trials = search.rounds[-1]
    epoch = search.epoch
    if len(trials) < 2 or trials[0].predicted is None:
        return False
    measured, predicted = [t.accuracy(epoch) for t in trials], [t.predicted for t in trials]
    error = predictor_error(trials, epoch)
    _against(figure.subplots(), measured, predicted, f"RMSE {error:.3g}{_correlation(measured, predicted)}")
    return True


def _draw_pareto(search: _Search, figure: Any) -> bool:
    cost, front = search.analysis.get("cost"), search.analysis.get("front")
    if not cost:
        return False
    axes, epoch = figure.subplots(), search.epoch
    scale, unit = _unit(list(cost["trials"].values()))
    for number, trials in enumerate(search.rounds, 1):
        there = [
            (cost["trials"][str(t.number)] / scale, t.accuracy(epoch))
            for t in trials
            if str(t.number) in cost["trials"]
        ]
        if there:
            axes.scatter(*zip(*there, strict=True), s=14, alpha=0.55, linewidths=0, label=f"round {number}")
    if front:
        axes.plot(np.array(front["costs"]) / scale, front["scores"], color="0.3", linewidth=1, label="predicted front")
    found = [item for item in search.analysis["found"] if cost["column"] in item["columns"]]
    if found:
        places = [(item["columns"][cost["column"]] / scale, item["predicted"]) for item in found]
        axes.scatter(*zip(*places, strict=True), marker="*", s=110, color="tab:red", label="recommended, as predicted")
    for name, place in search.analysis.get("known", {}).items():
        if cost["column"] in place:
            axes.scatter(place[cost["column"]] / scale, place["accuracy"], marker="D", s=26, color="k")
            axes.annotate(
                name,
                (place[cost["column"]] / scale, place["accuracy"]),
                xytext=(5, -10),
                textcoords="offset points",
                fontsize=8,
            )
    axes.legend(frameon=False, fontsize=8)
    _tidy(axes, xlabel=f"{cost['column']}{unit}", ylabel=f"accuracy after epoch {epoch}")
    return True


def _unit(values: Sequence[float]) -> tuple[float, str]:
    most = max(abs(value) for value in values)
    for size, words in ((1e9, ", billions"), (1e6, ", millions"), (1e3, ", thousands")):
        if most >= size:
            return size, words
    return 1.0, ""


_Draw = Callable[[_Search, Any], bool]
_FIGURES: tuple[tuple[str, str, str, _Draw], ...] = (
    ("rounds", "Rounds", "The accuracies of each round's trials (the paper's Fig. 6).", _draw_rounds),
    (
        "pareto",
        "Accuracy and cost",
        "What was measured, what the predictor holds for the best at each cost, and what is recommended.",
        _draw_pareto,
    ),
    (
        "last_round",
        "The predictor on the last round",
        "What it said of those trials before they ran. They are its own favourites, so that they are much alike.",
        _draw_last_round,
    ),
    (
        "predictor",
        "The predictor on trials that it has not seen",
        "Five predictors, each trained without a fifth of the trials (Fig. 4 c, d).",
        _draw_predictor,
    ),
    (
        "samples",
        "Error and number of trials",
        "On a fifth of the trials that none of them saw (Fig. 4 e).",
        _draw_samples,
    ),
    (
        "pretraining",
        "Free labels",
        "Of candidates of the pool that the encoder has not seen, standardised (Fig. 4 a, b).",
        _draw_pretraining,
    ),
    (
        "stopping",
        "Early stopping",
        "How the ranking after each epoch agrees with the last one's, over the first round (Fig. 5).",
        _draw_stopping,
    ),
)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .3rem; }
table { border-collapse: collapse; margin: .6rem 0; font-size: .92rem; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top; }
td.number, th.number { text-align: right; }
img { max-width: 100%; height: auto; } p { margin: .3rem 0; } .small { color: #666; font-size: .88rem; }
"""


def _section(title: str, words: str, image: bytes) -> str:
    data = base64.b64encode(image).decode()
    return (
        f"<h2>{html.escape(title)}</h2><p>{html.escape(words)}</p>"
        f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'
    )


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def cell(value: Any, tag: str = "td") -> str:
        number = isinstance(value, (int, float))
        text = f"{value:,.6g}" if number else value if isinstance(value, _Html) else html.escape(str(value))
        return f"<{tag}{' class=number' if number else ''}>{text}</{tag}>"

    head = "".join(cell(name, "th") for name in headers)
    body = "".join(f"<tr>{''.join(cell(value) for value in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _link(path: str | None) -> _Html:
    return _Html(f'<a href="{html.escape(path)}">{html.escape(Path(path).name)}</a>' if path else "")


def _page(search: _Search, sections: Sequence[str]) -> str:
    settings, epoch = search.settings, search.epoch
    failed = [trial for trial in search.trials if trial.status == FAILED]
    done = ranked(search.trials, epoch)
    hours = sum(trial.seconds or 0 for trial in search.trials) / 3600
    rounds = [
        [
            number,
            len(trials),
            trials[0].epochs if trials else "",
            max((t.accuracy(epoch) for t in trials), default=float("nan")),
            predictor_error(trials, epoch) or "",
        ]
        for number, trials in enumerate(search.rounds, 1)
    ]
    parts = [
        f"<p>{len(done)} trials done, {len(failed)} failed, {hours:.2f} hours of evaluation. Accuracies are compared "
        f"after epoch {epoch} of {settings.get('epochs', '?')}; the best is {done[0].accuracy(epoch):.4g} "
        f"(trial {done[0].number}).</p>",
    ]
    if search.analysis.get("found"):
        columns = list(search.analysis["found"][0]["columns"])
        rows = [
            [
                item["name"],
                item["predicted"],
                *(item["columns"].get(column, "") for column in columns),
                *(_link(item[what]) for what in ("config", "arch", "provenance")),
            ]
            for item in search.analysis["found"]
        ]
        rows += [
            [item["name"], "", *("" for _ in columns), _link(item["config"]), "", ""]
            for item in search.analysis.get("scaled", [])
        ]
        headers = ["network", "predicted", *columns, "training config", "architecture", "provenance"]
        parts += ["<h2>Recommended</h2>", _table(headers, rows)]
    else:
        parts.append("<p>The search has not come to its end: this report shows the trials so far.</p>")
    parts += [
        "<h2>Trials by round</h2>",
        _table(["round", "trials done", "epochs", f"best after epoch {epoch}", "predictor's error (RMSE)"], rounds),
        *sections,
    ]
    if failed:
        rows = [[trial.number, trial.attempts, trial.error or ""] for trial in failed]
        parts += ["<h2>Failed trials</h2>", _table(["trial", "attempts", "error"], rows)]
    shown = [[key, json.dumps(value)] for key, value in settings.items()]
    parts += ["<h2>Settings</h2>", _table(["setting", "value"], shown)]
    name = html.escape(str(settings.get("space", search.folder.name)))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Search: {name}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<h1>Search in {name}</h1>{''.join(parts)}"
        f'<p class="small">fbnetv3 {html.escape(str(search.about.get("fbnetv3", "")))}</p></body></html>\n'
    )
