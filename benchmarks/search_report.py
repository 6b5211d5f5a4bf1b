"""Tables and figures of the search benchmark's results."""

import statistics

import numpy as np
from tabulate import tabulate

from fbnetv3.utils.plotting import new_figure, save_figure, style_axes

FLOOR = 0.001
"""Smaller regrets count as this much in ratios, geometric means and figures, so that a regret of 0 is possible."""
STUCK = 1.0
"""Regret in points above which a finished search counts as stuck."""
LEVELS = (1.0, 0.3, 0.1, 0.05, 0.02, 0.01)
"""Regrets in points for which the trainings until they are reached are printed."""
COLUMNS = 3  # of panels in a figure


def print_report(results, trainings):
    """Print the regrets of each task, and over tasks the geometric means and the ratios to the best peer."""
    if not results:
        return
    marks = sorted({max(1, trainings // 4), max(1, trainings // 2), trainings})
    cells = group_regrets(results)
    for task in unique(results, "task"):
        rows = [
            [searcher, len(curves), *map(describe_regrets, regrets_at(curves.values(), marks))]
            for (name, searcher), curves in cells.items()
            if name == task
        ]
        print(f"\n{task}: regret in points, mean / median / worst of the seeds\n")
        print_table(rows, ["", "seeds", *(f"at {mark} trainings" for mark in marks)])
    print_summary(results, cells, marks)


def group_regrets(results):
    """Return the trajectories of regrets by seed, by (task, searcher)."""
    cells = {}
    for result in results:
        cells.setdefault((result["task"], result["searcher"]), {})[result["seed"]] = result["regrets"]
    return cells


def unique(results, key):
    return list(dict.fromkeys(result[key] for result in results))


def regrets_at(curves, marks):
    """Return the regrets of all seeds after each number of trainings."""
    return [[curve[mark - 1] for curve in curves] for mark in marks]


def describe_regrets(values):
    return " / ".join(
        f"{value:.3f}" for value in (statistics.fmean(values), statistics.median(values), max(values))
    )


def print_summary(results, cells, marks):
    """Print a row for each searcher, over the tasks and seeds on which all searchers have results."""
    searchers = list(dict.fromkeys(searcher for _, searcher in cells))
    peers = [name for name in searchers if not name.startswith("nars")]
    means, num_seeds = mean_regrets(cells, searchers, marks)
    if not num_seeds:
        return
    has_ratios = bool(peers) and len(searchers) > 1
    rows = []
    for searcher in searchers:
        others = [name for name in peers if name != searcher]
        row = [searcher, *(f"{geometric_mean(values):.4f}" for values in means[searcher].T)]
        if others:
            best = np.min([means[name] for name in others], axis=0)
            row += [f"{geometric_mean(ratios):.2f}" for ratios in (means[searcher] / best).T]
        elif has_ratios:
            row += [""] * len(marks)
        finished = [result for result in results if result["searcher"] == searcher]
        num_stuck = sum(result["regrets"][-1] > STUCK for result in finished)
        seconds = statistics.fmean(result["seconds"] for result in finished)
        rows.append([*row, f"{num_stuck} of {len(finished)}", f"{seconds:.0f}"])
    seeds = ", ".join(f"{task} ({number})" for task, number in num_seeds.items())
    print(
        "\nGeometric means of the mean regret, and of its ratio to the best other peer on each task; regrets below "
        f"{FLOOR} count as {FLOOR}. Stuck: searches that end more than {STUCK:g} point from the best.\n"
        f"Seconds: of a search, trainings excluded. Tasks, and seeds that all searchers have finished: {seeds}\n"
    )
    headers = ["", *(f"regret at {mark}" for mark in marks)]
    if has_ratios:
        headers += [f"ratio at {mark}" for mark in marks]
    headers += ["stuck", "seconds"]
    print_table(rows, headers)
    print_trainings_to_levels(cells, searchers, marks[-1])


def print_trainings_to_levels(cells, searchers, trainings):
    """Print how many trainings each searcher needs until the geometric mean over the tasks is at most each level."""
    means, _ = mean_regrets(cells, searchers, range(1, trainings + 1))
    rows = []
    for searcher in searchers:
        curve = [geometric_mean(values) for values in means[searcher].T]
        counts = [
            next((mark for mark, regret in enumerate(curve, 1) if regret <= level), None)
            for level in LEVELS
        ]
        rows.append([searcher, *("" if count is None else f"{count}" for count in counts)])
    print("\nTrainings, in epochs of full ones, until the geometric mean of the regret is at most:\n")
    print_table(rows, ["", *(f"{level:g}" for level in LEVELS)])


def mean_regrets(cells, searchers, marks):
    """Return the mean regrets by searcher, (tasks, marks), and the number of seeds by task.

    They are those of the tasks and seeds on which all searchers have results.
    """
    means = {searcher: [] for searcher in searchers}
    num_seeds = {}
    for task in dict.fromkeys(task for task, _ in cells):
        curves = {searcher: cells.get((task, searcher), {}) for searcher in searchers}
        seeds = set.intersection(*map(set, curves.values()))
        if seeds:
            num_seeds[task] = len(seeds)
            for searcher in searchers:
                values = regrets_at([curves[searcher][seed] for seed in seeds], marks)
                means[searcher].append(np.maximum(np.mean(values, 1), FLOOR))
    return {searcher: np.array(rows) for searcher, rows in means.items()}, num_seeds


def geometric_mean(values):
    return float(np.exp(np.mean(np.log(values))))


def print_table(rows, headers):
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


def plot_regrets(results, path):
    """Draw the median and the quartiles of the regret over the epochs, a panel for each task."""
    tasks, searchers = unique(results, "task"), unique(results, "searcher")
    cells = group_regrets(results)
    epochs = {result["task"]: result["epochs"] for result in results}
    num_columns = min(COLUMNS, len(tasks))
    num_rows = -(-len(tasks) // num_columns)
    figure = new_figure(4.0 * num_columns, 3.0 * num_rows + 0.5)
    figure.get_layout_engine().set(hspace=0.06, wspace=0.04)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, task in zip(panels, tasks, strict=False):
        for number, searcher in enumerate(searchers):
            if (task, searcher) in cells:
                style = {
                    "label": searcher,
                    "color": f"C{number % 10}",
                    "linestyle": "-" if number < 10 else "--",
                }
                plot_trajectories(axes, cells[task, searcher], epochs[task], style)
        style_axes(axes, title=task, yscale="log", ylim=decades(axes))
        axes.yaxis.set_major_formatter("{x:g}")
    for axes in panels[len(tasks) :]:
        axes.remove()
    figure.supxlabel("epochs")
    figure.supylabel("regret in points: median, quartiles")
    handles = {
        label: handle
        for axes in panels[: len(tasks)]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=6, frameon=False)
    save_figure(figure, path)


def decades(axes):
    """Return the powers of ten that enclose the data of a panel."""
    low, high = axes.dataLim.intervaly
    exponent = np.floor(np.log10(low))
    return 10**exponent, 10 ** max(exponent + 1, np.ceil(np.log10(high)))


def plot_trajectories(axes, curves, epochs, style):
    curves = np.maximum(np.array(list(curves.values())), FLOOR)
    x = np.arange(1, curves.shape[1] + 1) * epochs
    low, median, high = np.quantile(curves, (0.25, 0.5, 0.75), axis=0)
    axes.step(x, median, where="post", **style)
    axes.fill_between(x, low, high, step="post", color=style["color"], alpha=0.15, linewidth=0)
