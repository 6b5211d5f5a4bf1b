"""tools/analyze_net.py prints the exact cost of networks and detectors."""

import subprocess
import sys

from fbnetv3.arch import configs_folder, get_arch, list_archs, save_arch
from tests.tools.conftest import TOOLS


def test_all_networks(tool):
    ran = tool("analyze_net")
    assert ran.code == 0
    listed = [line.split()[0] for line in ran.out.splitlines() if line]
    assert all(listed.count(name) == 1 for name in list_archs())
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


def test_a_folder_of_architectures(tool, tmp_path):
    from dataclasses import replace

    save_arch(replace(get_arch("fbnetv3_a"), name="mine"), tmp_path / "x.yaml")
    assert "mine" in tool("analyze_net", "mine", "--arch-dir", tmp_path).out


def test_import_registers_a_users_architecture(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_archs.py").write_text(
        "from fbnetv3.arch import get_arch, register_arch, with_same_padding\n"
        "register_arch(with_same_padding(get_arch('fbnetv3_a'), name='imported'))\n"
    )
    ran = tool("analyze_net", "imported", "--import", "my_archs")
    assert (ran.code, ran.err) == (0, "")
    assert "imported" in ran.out
    ran = tool("analyze_net", "--import", "no_such_module")
    assert ran.code == 2 and ran.err.startswith("error: --import 'no_such_module' cannot be imported")


def test_invalid_usage_is_one_line_and_exit_code_2(tool, tmp_path):
    for arguments, message in (
        (
            ["fbnetv3_aa"],
            "error: unknown architecture or detection config 'fbnetv3_aa': did you mean fbnetv3_a",
        ),
        (["faster_rcnn_fbnetv3_a_C5"], "did you mean faster_rcnn_fbnetv3_"),
        (["nowhere.yaml"], "error: nowhere.yaml: cannot be read: No such file or directory"),
        (["--resolution", "0"], "error: argument --resolution: 0 must be at least 1"),
        (
            ["--resolution", "1x2x3"],
            "error: argument --resolution: '1x2x3' must be a number of pixels or HxW",
        ),
        (["fbnetv3_a", "--detectors"], "error: --detectors takes no names"),
        (["fbnetv3_b", "--resolution", "8"], "error: fbnetv3_b: an input of 8x8 pixels is too small"),
        (["--arch-dir", tmp_path], "no architecture files"),
    ):
        ran = tool("analyze_net", *arguments)
        assert ran.code == 2
        assert message in ran.err and ran.err.count("\n") == 1 and not ran.out


def test_needs_no_torch():
    without_torch = "import sys, runpy; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
    script = without_torch + "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", script, str(TOOLS / "analyze_net.py")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "fbnetv3_g" in done.stdout


# Table 5 of the paper, and the parameters of the released detectors
TABLE_5 = {
    "efficientnet_b0_det": ("3.56", "3.6", "8,042,740", "8.0"),
    "fbnetv3_a_det": ("2.92", "2.9", "5,306,708", "5.3"),
    "efficientnet_b1_det": ("5.55", "5.6", "13,344,588", "13.3"),
    "fbnetv3_e_det": ("5.33", "5.3", "10,669,772", "10.6"),
}


def rows_of(text):
    return {words[0]: words for words in map(str.split, text.splitlines()) if words}


def test_table_5_next_to_the_papers_figures(tool):
    ran = tool("analyze_net", "--detectors")
    assert ran.code == 0 and "384x640 pixels" in ran.out
    rows = rows_of(ran.out)
    for name, (macs, paper_macs, params, paper_params) in TABLE_5.items():
        assert rows[name][1] == "75"
        assert rows[name][5:] == [macs, paper_macs, params, paper_params, "M"]


def test_detection_variants_and_configs_are_costed_as_detectors(tool):
    names = [
        "fbnetv3_b_det",
        "fbnetv3_d_det",
        "faster_rcnn_fbnetv3_a_C4",
        "coco/faster_rcnn_fbnetv3_e_C4.yaml",
    ]
    ran = tool("analyze_net", *names, "fbnetv3_a")
    rows = rows_of(ran.out)
    assert [rows[name][-1] for name in names[:3]] == ["6,526,636", "9,706,572", "5,306,708"]
    assert rows["faster_rcnn_fbnetv3_e_C4"][-2:] == ["5.33", "10,669,772"]
    assert rows["fbnetv3_a"][3:5] == ["356.60", "8.598"]
    a = rows["faster_rcnn_fbnetv3_a_C4"]
    assert abs(sum(map(float, a[2:5])) - float(a[5])) < 0.02


def test_a_detector_part_by_part(tool):
    ran = tool("analyze_net", "faster_rcnn_fbnetv3_a_C4", "--stages")
    rows = rows_of(ran.out)
    assert rows["trunk"][1:6] == ["24", "x", "40", "x", "112"]
    parts = [rows["trunk"], rows["RPN"], rows["box"]]
    assert abs(sum(float(row[-2].replace(",", "")) for row in parts) - 2917.594) < 0.02
    assert abs(sum(float(row[-1]) for row in [*parts, rows["predictor"]]) - 5.306708) < 0.002
    assert rows["all"][1:] == ["2,917.59", "5.307"]


def test_config_values_determine_the_cost(tool, tmp_path):
    """Proposals, classes and the image size count, also in a user's config with a shipped base."""
    base = tool("analyze_net", "faster_rcnn_fbnetv3_a_C4", "--stages").out
    fewer = tool("analyze_net", "faster_rcnn_fbnetv3_a_C4_224", "--stages", "--resolution", "384x640").out
    assert rows_of(base)["trunk"] == rows_of(fewer)["trunk"]
    per_proposal = float(rows_of(base)["box"][-2].replace(",", "")) / 75
    assert abs(float(rows_of(fewer)["box"][-2].replace(",", "")) - 30 * per_proposal) < 0.02
    config = tmp_path / "mine.yaml"
    shipped = configs_folder() / "coco" / "mask_rcnn_fbnetv3_a_C4.yaml"
    config.write_text(f"_BASE_: {shipped}\nMODEL:\n  ROI_HEADS:\n    NUM_CLASSES: 7\n")
    ran = tool("analyze_net", config)
    assert int(rows_of(ran.out)["mine"][-1].replace(",", "")) == 5_306_708 - 73 * 5 * (200 + 1)
    assert "mine: without its mask head" in ran.out
    assert (
        rows_of(tool("analyze_net", "fbnetv3_a_det", "--num-classes", "7").out)["fbnetv3_a_det"][-1]
        == "5,233,343"
    )


def test_unsupported_detectors_are_rejected(tool, tmp_path):
    for name, message in (
        (
            "faster_rcnn_fbnetv3_g_FPN",
            "MODEL.BACKBONE.NAME: build_fbnetv3_fpn_backbone must be build_fbnetv3_backbone",
        ),
        ("retinanet_fbnetv3_a_FPN", "MODEL.BACKBONE.NAME: build_retinanet_fbnetv3_fpn_backbone"),
        ("faster_rcnn_torchvision_efficientnet_b0_C4", "MODEL.BACKBONE.NAME: build_efficientnet_backbone"),
    ):
        ran = tool("analyze_net", name)
        assert ran.code == 2 and message in ran.err and ran.err.count("\n") == 1
    (tmp_path / "x.yaml").write_text("MODEL: [")
    assert "error: " + str(tmp_path / "x.yaml") in tool("analyze_net", tmp_path / "x.yaml").err
    (tmp_path / "y.yaml").write_text(f"_BASE_: {tmp_path / 'gone.yaml'}")
    ran = tool("analyze_net", tmp_path / "y.yaml")
    assert ran.code == 2 and "gone.yaml does not exist" in ran.err
