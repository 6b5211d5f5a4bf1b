#!/usr/bin/env python3
"""Install detectron2 for the running Python: from the official source if GitHub is reachable, else from a wheel.

The wheel is a repackaged detectron2 on PyPI, verified by its SHA-256. Its compiled operators do not load with current
versions of torch; this project needs none of them.
"""

import argparse
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
    "setuptools<81",  # the last with pkg_resources
    "black",
    "cloudpickle",
    "fvcore",
    "hydra-core",
    "matplotlib",
    "omegaconf",
    "pycocotools",
    "tensorboard",
]


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    if importlib.util.find_spec("torch") is None:
        sys.exit("error: detectron2 needs torch: run `pip install torch torchvision` first")
    if importlib.util.find_spec("detectron2") is not None:
        print("detectron2 is already installed")
        return
    pip("install", *REQUIREMENTS)
    if is_github_reachable():
        try:
            pip("install", "--no-build-isolation", f"git+{REPOSITORY}@{COMMIT}")
            return
        except subprocess.CalledProcessError:
            print(
                "building detectron2 from source failed; installing the repackaged wheel instead",
                file=sys.stderr,
            )
    install_wheel()


def is_github_reachable() -> bool:
    """Return whether the official repository answers within 15 seconds."""
    if shutil.which("git") is None:
        return False
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        command = ["git", "ls-remote", "--exit-code", REPOSITORY, "HEAD"]
        return subprocess.run(command, capture_output=True, timeout=15, env=environment).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def install_wheel() -> None:
    """Copy the wheel's packages to site-packages, because pip refuses to install it on Pythons other than 3.10."""
    site = Path(sysconfig.get_path("purelib"))
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder) / "requirements.txt"
        requirement.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
        only = ["--no-deps", "--only-binary=:all:", "--python-version", "3.10"]
        pip("install", *only, "--require-hashes", "--target", f"{folder}/wheel", "-r", str(requirement))
        for package in Path(folder, "wheel").iterdir():
            # Skip scripts and tests; `tools` would also shadow other projects' folders
            if package.name in ("bin", "tools", "tests"):
                continue
            shutil.rmtree(site / package.name, ignore_errors=True)
            shutil.move(package, site / package.name)
    print(f"installed {WHEEL} (repackaged detectron2, without compiled operators)")


def pip(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True
    )


if __name__ == "__main__":
    main()
