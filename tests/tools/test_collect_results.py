"""tools/collect_results.py: the table of all runs in a folder."""


def test_the_runs_of_a_folder(tool, config, tmp_path):
    for name in ("slow", "fast"):
        tool("train_net", "--config", config, "OUTPUT_DIR", tmp_path / "runs" / name, "EVAL.REPORT", "off")
    (tmp_path / "runs" / "results.csv").unlink()
    ran = tool("collect_results", tmp_path / "runs")
    assert (ran.code, ran.err) == (0, "")
    assert [line.split()[0] for line in ran.out.splitlines()[2:]] == ["fast", "slow", "table:"]
    assert (tmp_path / "runs" / "results.csv").read_text().startswith("run,arch,data,top1")


def test_a_folder_without_runs(tool, tmp_path):
    ran = tool("collect_results", tmp_path)
    assert ran.code == 1 and "has no runs with results" in ran.err
    assert not (tmp_path / "results.csv").exists()
