#!/usr/bin/env python3
"""Install detectron2 beside the running Python: the official source where GitHub can be reached, else a wheel.

The wheel is a repackaged detectron2 on PyPI, checked by its SHA-256. Its compiled operators do not load on a
current torch; the models of this project need none of them.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

REPOSITORY = "https://github.com/facebookresearch/detectron2.git"
COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
WHEEL = "sal-detectron2==0.7.2"
WHEEL_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
REQUIREMENTS = [
    "setuptools<81",  # pkg_resources
    "black",
    "cloudpickle",
    "fvcore",
    "hydra-core",
    "matplotlib",
    "omegaconf",
    "pycocotools",
    "tensorboard",
]


def main():
    if importlib.util.find_spec("torch") is None:
        sys.exit("error: detectron2 needs torch: pip install torch torchvision first")
    if importlib.util.find_spec("detectron2") is not None:
        print("detectron2 is installed already")
        return
    pip("install", *REQUIREMENTS)
    if github_answers():
        try:
            pip("install", "--no-build-isolation", f"git+{REPOSITORY}@{COMMIT}")
            return
        except subprocess.CalledProcessError:
            print("the official source does not build here; taking the repackaged wheel", file=sys.stderr)
    install_wheel()


def github_answers():
    """Whether the official repository can be reached within a few seconds."""
    if shutil.which("git") is None:
        return False
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        command = ["git", "ls-remote", "--exit-code", REPOSITORY, "HEAD"]
        return subprocess.run(command, capture_output=True, timeout=15, env=environment).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def install_wheel():
    """Put the wheel's packages into site-packages; pip refuses it on other Pythons than 3.10, so not as a package."""
    site = Path(sysconfig.get_path("purelib"))
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder) / "requirements.txt"
        requirement.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
        only = ["--no-deps", "--only-binary=:all:", "--python-version", "3.10"]
        pip("install", *only, "--require-hashes", "--target", f"{folder}/wheel", "-r", str(requirement))
        for package in Path(folder, "wheel").iterdir():
            if package.name in ("bin", "tools", "tests"):  # detectron2's scripts; `tools` would shadow others' own
                continue
            shutil.rmtree(site / package.name, ignore_errors=True)
            shutil.move(package, site / package.name)
    print(f"installed {WHEEL} (repackaged detectron2, without compiled operators)")


def pip(*arguments):
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


if __name__ == "__main__":
    main()
