"""`import fbnetv3` with all that builds networks, against `import torch, torchvision`. Goal: at most 1.3 times."""

import argparse
import subprocess
import sys

from measure import compare, report


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()

    def run(script):
        return lambda: subprocess.run([sys.executable, "-c", script], check=True)

    ours, theirs = run("import fbnetv3; fbnetv3.create_model"), run("import torch, torchvision")
    report("import", compare(ours, theirs, rounds=args.rounds), 1 / 1.3, "torch and torchvision alone")


if __name__ == "__main__":
    main()
