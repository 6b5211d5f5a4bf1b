"""tools/measure_net.py."""

import pytest
import yaml

SPACE = {
    "name": "two",
    "variables": {"width": {"range": [8, 32, 8]}, "kernel": {"choices": [3, 5]}, "n": {"range": [1, 3]}},
    "architecture": {
        "resolution": 32,
        "stages": [
            {"rows": [{"block": "conv", "kernel": 3, "channels": 8, "stride": 2}]},
            {
                "rows": [
                    {
                        "block": "mbconv",
                        "kernel": "$kernel",
                        "expansion": 4,
                        "channels": "$width",
                        "repeat": "$n",
                    }
                ]
            },
            {"rows": [{"block": "mbpool", "expansion": 2, "channels": 64}]},
        ],
    },
}


@pytest.fixture
def space(tmp_path):
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(SPACE))
    return file


def test_networks_are_measured(tool):
    done = tool(
        "measure_net", "fbnetv3_a0_cifar", "--seconds", 0.05, "--num-classes", 10, "--runtime", "torch"
    )
    assert done.code == 0, done.err
    header, row = done.out.splitlines()[1], done.out.splitlines()[3]
    assert "median ms" in header and "p99" in header and "memory MB" in header
    assert row.startswith("fbnetv3_a0_cifar  torch")


def test_a_table_is_filled_checked_and_used_for_predictions(tool, space, tmp_path):
    table = tmp_path / "table.jsonl"
    shared = ("--space", space, "--table", table, "--num-classes", 10)
    done = tool("measure_net", *shared, "--networks", 8)
    assert done.code == 0, done.err
    assert "20 blocks, 8 networks" in done.out and "x sum of its blocks" in done.out
    done = tool("measure_net", *shared, "--check", 4)
    assert done.code == 0, done.err
    assert "4 networks that are not in the table" in done.out and "rank correlation" in done.out
    done = tool("measure_net", "fbnetv3_a0_cifar", "--table", table, "--seconds", 0.05)
    assert done.code == 1 and "the latency table has no" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--space", "x.yaml"], "--space needs --table"),
        (["--check", 3], "--check needs --space"),
        (["fbnetv3_b", "--space", "x.yaml", "--table", "x.jsonl"], "--space takes no names"),
        (["fbnetv3_b", "--remeasure"], "--remeasure is for filling a table"),
        (["--networks", 24], "--networks is for filling a table"),
        (["--space", "x.yaml", "--table", "x.jsonl", "--check", 0], "--check 0 must be at least 2"),
        (["--space", "x.yaml", "--table", "x.jsonl", "--networks", -1], "--networks -1 must be at least 0"),
        (
            ["--space", "x.yaml", "--table", "x.jsonl", "--device", "cuda"],
            "--device cuda: latency tables are for CPUs only",
        ),
        (["--threads", 0], "--threads: 0 must be at least 1"),
        (["fbnetv3_x"], "unknown architecture 'fbnetv3_x'"),
        (["fbnetv3_b", "--table", "none.jsonl"], "none.jsonl: cannot be read"),
        (["fbnetv3_b", "--runtime", "executorch", "--batch", 4], "one image at a time"),
    ],
)
def test_wrong_calls_are_one_line(arguments, message, tool):
    done = tool("measure_net", *arguments)
    assert done.code in (1, 2) and message in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize(
    "runtime, message",
    [
        ("torch", "error: device 'cuda:77' cannot be used here ("),
        ("onnxruntime", "error: device 'cuda:77': this onnxruntime is for CPUs only: "),
        ("openvino", "error: device 'cuda:77': model.xml runs in openvino on the CPU only: "),
    ],
)
def test_devices_that_are_not_here(tool, runtime, message):
    pytest.importorskip(runtime)
    done = tool("measure_net", "fbnetv3_a0_cifar", "--runtime", runtime, "--device", "cuda:77")
    assert done.code and done.err.startswith(message) and done.err.count("\n") == 1
