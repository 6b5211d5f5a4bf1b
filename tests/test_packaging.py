"""The package as pip installs it, away from the checkout."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import fbnetv3, fbnetv3.model_zoo
from pathlib import Path
site = Path(fbnetv3.__file__).resolve().parent
assert str(site).startswith({site!r}), site
assert Path(fbnetv3.model_zoo.__file__).parent == site / "model_zoo"
assert [*fbnetv3.__path__] == [str(site)]
assert (site / "py.typed").is_file()
assert (site / "deploy/web/page/index.html").is_file()
from fbnetv3 import model_zoo
assert len(fbnetv3.list_models()) >= 9
print(model_zoo.get("digits/fbnetv3_digits.yaml", trained=True, device="cpu").num_classes)
print(fbnetv3.create_model("fbnetv3_digits", pretrained=True).num_classes)
print(len(list((site / "configs").rglob("*.yaml"))), model_zoo.get_config("cifar10/fbnetv3_a0.yaml").MODEL.ARCH)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """`pip install` of a copy of the checkout (pip builds in place) into a folder of its own."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    ignore = shutil.ignore_patterns(".*", "output", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignore)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--target", str(folder / "site"), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    return folder / "site"


def test_installed_it_works_without_the_checkout(installed, tmp_path):
    """-P and -I keep the checkout and the editable install out; dependencies come from this environment."""
    script = f"import sys; sys.path[:0] = [{str(installed)!r}]\n" + SCRIPT.format(site=str(installed))
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    assert lines[:2] == ["10", "10"]
    count = len(list((ROOT / "configs").rglob("*.yaml")))
    assert lines[2] == f"{count} fbnetv3_a0_cifar"


def test_only_what_belongs_is_installed(installed):
    assert {
        path.name for path in installed.iterdir() if path.is_dir() and "dist-info" not in path.name
    } == {"fbnetv3", "bin"}
    assert [path.name for path in (installed / "bin").iterdir()] == ["fbnetv3"]


def run_command(installed, folder, *arguments):
    """Run the installed command in a folder, without the checkout."""
    script = f"import sys; sys.path[:0] = [{str(installed)!r}]; sys.argv = ['fbnetv3', *{[*map(str, arguments)]!r}]\n"
    script += f"import runpy; runpy.run_path({str(installed / 'bin/fbnetv3')!r}, run_name='__main__')"
    return subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=folder)


def test_the_command_needs_no_checkout(installed, tmp_path):
    """It finds the configs that are installed, and checks data with a page."""
    done = run_command(installed, tmp_path, "zoo", "digits/*")
    assert done.returncode == 0 and "digits/fbnetv3_digits" in done.stdout, done.stderr
    short = [
        "SOLVER.EPOCHS",
        "1",
        "SOLVER.WARMUP_EPOCHS",
        "0",
        "SOLVER.BATCH_SIZE",
        "360",
        "OUTPUT_DIR",
        "run",
    ]
    done = run_command(
        installed, tmp_path, "train", "--config", "configs/digits/fbnetv3_digits.yaml", *short
    )
    assert done.returncode == 0 and (tmp_path / "run/model_final.pth").is_file(), done.stderr
    done = run_command(installed, tmp_path, "check-data", "DATA.NAME", "digits", "--workers", 1)
    assert done.returncode == 0 and (tmp_path / "data_check.html").is_file(), done.stderr
