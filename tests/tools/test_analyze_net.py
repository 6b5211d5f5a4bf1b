"""tools/analyze_net.py prints the exact cost of networks."""

import subprocess
import sys

from fbnetv3.arch import get_arch, list_archs, save_arch
from tests.tools.conftest import TOOLS


def test_all_networks(tool):
    ran = tool("analyze_net")
    assert ran.code == 0
    assert all(any(line.split()[0] == name for line in ran.out.splitlines()) for name in list_archs())
    (line,) = (line.split() for line in ran.out.splitlines() if line.startswith("fbnetv3_a "))
    assert line == ["fbnetv3_a", "224", "31", "356.60", "8.598", "6.59"]


def test_stage_by_stage(tool):
    ran = tool("analyze_net", "fbnetv3_d", "--stages")
    rows = [line.split() for line in ran.out.splitlines()]
    stages = [row for row in rows if row and row[0] in {*"0123456", "head"}]
    assert len(stages) == 8
    assert abs(sum(float(row[-3].replace(",", "")) for row in stages) - 644.42) < 0.05
    assert rows[-1][0] == "all" and rows[-1][-3:] == ["644.42", "10.306", "10.63"]


def test_a_file_at_another_resolution(tool, tmp_path):
    save_arch(get_arch("fbnetv3_a"), tmp_path / "x.yaml")
    ran = tool("analyze_net", tmp_path / "x.yaml", "--resolution", "248")
    assert "461.55" in ran.out  # FBNetV3-B


def test_a_folder_of_ones_own(tool, tmp_path):
    from dataclasses import replace

    save_arch(replace(get_arch("fbnetv3_a"), name="mine"), tmp_path / "x.yaml")
    assert "mine" in tool("analyze_net", "mine", "--arch-dir", tmp_path).out


def test_wrong_calls_are_one_line_and_exit_2(tool, tmp_path):
    for arguments, message in (
        (["fbnetv3_aa"], "error: unknown architecture 'fbnetv3_aa': did you mean fbnetv3_a"),
        (["nowhere.yaml"], "error: nowhere.yaml: cannot be read: No such file or directory"),
        (["--resolution", "0"], "error: argument --resolution: invalid positive value: '0'"),
        (["fbnetv3_b", "--resolution", "8"], "error: fbnetv3_b: an input of 8 pixels is too small"),
        (["--arch-dir", tmp_path], "no folder with architecture files"),
    ):
        ran = tool("analyze_net", *arguments)
        assert ran.code == 2
        assert message in ran.err and ran.err.count("\n") == 1 and not ran.out


def test_needs_no_torch():
    without_torch = "import sys, runpy; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
    script = without_torch + "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", script, str(TOOLS / "analyze_net.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fbnetv3_g" in done.stdout
