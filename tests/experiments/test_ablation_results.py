"""Table and figure of an ablation."""

import pytest

from fbnetv3.experiments.ablation import Ablation, CellResult, results_table, save_results

RESULTS = [
    CellResult("small", "a", 0, 90.0, 2_000_000),
    CellResult("small", "a", 1, 92.0, 2_000_000),
    CellResult("large", "a", 0, 95.0, 7_100_000),
]


@pytest.fixture
def make_ablation(tmp_path):
    def make(rows, columns, x_axis="", line_of_row=None):
        return Ablation(
            title="Two networks",
            config=tmp_path / "base.yaml",
            overrides={},
            rows={row: {} for row in rows},
            columns={column: {} for column in columns},
            teacher_of_column={},
            line_of_row=line_of_row or {},
            seeds=(0, 1),
            x_axis=x_axis,
            output=tmp_path / "out",
        )

    return make


def test_the_table_has_means_and_deviations(make_ablation):
    lines = results_table(make_ablation(["small", "large"], ["a", "b"]), RESULTS).splitlines()
    assert lines[0] == "Two networks: top-1, mean and standard deviation over 2 seeds"
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:]] == [
        ["small", "91.00% ± 1.41", ""],
        ["large", "95.00%", ""],
    ]


def test_the_table_of_a_figure_over_macs_has_macs(make_ablation):
    ablation = make_ablation(["small", "large"], ["a", "b"], x_axis="macs")
    assert "| small | 2.0 M" in results_table(ablation, RESULTS) and "7.1 M" in results_table(
        ablation, RESULTS
    )
    assert [path.name for path in save_results(ablation, RESULTS)] == [
        "results.json",
        "table.md",
        "figure.png",
    ]
    assert (ablation.output / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_has_a_line_per_column_and_per_line_that_rows_name(make_ablation, monkeypatch):
    from matplotlib.axes import Axes

    drawn = {}
    monkeypatch.setattr(
        Axes, "errorbar", lambda self, x, y, *a, label, **k: drawn.update({label: (list(x), list(y))})
    )
    rows = ["small", "large", "baseline"]
    results = [*RESULTS, CellResult("baseline", "a", 0, 80.0, 5_000_000)]
    save_results(make_ablation(rows, ["a"], line_of_row={"baseline": "peers"}), results)
    assert {label: sorted(y) for label, (_, y) in drawn.items()} == {"a": [80.0, 91.0, 95.0]}
    drawn.clear()
    save_results(make_ablation(rows, ["a"], x_axis="macs", line_of_row={"baseline": "peers"}), results)
    assert drawn == {"a": ([2.0, 7.1], [91.0, 95.0]), "peers": ([5.0], [80.0])}
