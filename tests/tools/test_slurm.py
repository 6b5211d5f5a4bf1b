"""Slurm batch scripts, with fake Slurm commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "tools" / "slurm"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Run a script as the first node of a job does; `srun` is the shell command behind that name."""

    def run(script, *arguments, srun='echo "$@"', nodes=2, **variables):
        commands = {"srun": srun, "scontrol": 'echo "$3" | tr "," "\\n"'}
        for name, body in commands.items():
            (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
            (tmp_path / name).chmod(0o755)
        job = {"SLURM_JOB_ID": "20123", "SLURM_JOB_NUM_NODES": nodes, "SLURM_CPUS_PER_TASK": 16}
        job["SLURM_JOB_NODELIST"] = ",".join(["localhost", "other"][:nodes])
        variables = {name: str(value) for name, value in {**job, **variables}.items()}
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
        return subprocess.run(
            ["bash", SCRIPTS / script, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def test_training_starts_one_process_per_gpu_on_every_node(slurm):
    process = slurm("train.sbatch", "--config", "a.yaml", "DATA.ROOT", "with space", SLURM_GPUS_ON_NODE=8)
    assert process.stdout.split() == [
        *(
            "--kill-on-bad-exit=1",
            ".venv/bin/torchrun",
            "--nnodes",
            "2",
            "--nproc-per-node",
            "8",
            "--max-restarts",
            "3",
        ),
        *("--rdzv-id", "20123", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:20123"),
        *("tools/train_net.py", "--resume", "--config", "a.yaml", "DATA.ROOT", "with", "space"),
    ]


def test_processes_share_the_cores_of_a_node(slurm):
    assert slurm("train.sbatch", srun="echo $OMP_NUM_THREADS", FBNETV3_PROCESSES=4).stdout == "4\n"


def test_training_runs(slurm, tmp_path):
    config = str(ROOT / "configs/digits/fbnetv3_digits.yaml")
    short = ("SOLVER.EPOCHS", "1", "SOLVER.WARMUP_EPOCHS", "0", "OUTPUT_DIR", str(tmp_path / "run"))
    variables = {
        "FBNETV3_BIN": Path(sys.executable).parent,
        "FBNETV3_PROCESSES": 1,
        "SLURM_CPUS_PER_TASK": 1,
    }
    process = slurm(
        "train.sbatch", "--config", config, *short, srun='shift; exec "$@"', nodes=1, **variables
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "run" / "model_final.pth").exists()


def test_search_starts_ray_on_every_node(slurm):
    process = slurm("search.sbatch", "--config", "a.yaml", "workers", "8", SLURM_GPUS_ON_NODE=4)
    assert process.stdout.split() == [
        *(
            "--kill-on-bad-exit=1",
            ".venv/bin/ray",
            "symmetric-run",
            "--address",
            "localhost:20123",
            "--min-nodes",
            "2",
        ),
        *("--num-cpus", "16", "--num-gpus", "4", "--", ".venv/bin/python", "tools/search_net.py"),
        *("--executor", "ray", "--address", "localhost:20123", "--config", "a.yaml", "workers", "8"),
    ]
