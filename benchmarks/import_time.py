"""Time to import fbnetv3 and everything that builds networks, against `import torch, torchvision`.

Goal: at most 1.3 times as long.
"""

import argparse
import subprocess
import sys

from measure import compare, report_comparison

GOAL = 1 / 1.3


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    fbnetv3 = python_process("import fbnetv3; fbnetv3.create_model")
    peer = python_process("import torch, torchvision")
    report_comparison(
        "import", compare(fbnetv3, peer, rounds=args.rounds), GOAL, "torch and torchvision alone"
    )


def python_process(code):
    """Return a function that runs code in a new Python process."""
    return lambda: subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    main()
