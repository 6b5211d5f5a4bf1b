"""Every shell command of README and docs runs as written, on small stand-ins for its data.

Options and config keys that shorten a run are appended; none of the page's is removed. `make` and pip run with their
dry-run options, Docker's are only checked, and a Ray cluster of two nodes and a Slurm job of one run on this machine.
"""

import contextlib
import functools
import os
import random
import shlex
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is optional: python tools/install_detectron2.py")

from fbnetv3.deploy.web.browser_runtime import fetch_browser_runtime
from fbnetv3.errors import MissingPackageError
from tests.commands.test_cli import SCRIPTS as COMMAND_SCRIPTS
from tests.pages import PAGES, ROOT, blocks, commands, text_of
from tests.stand_ins import make_data, make_weights, save_detector
from tests.tools.conftest import tool  # noqa: F401 - a fixture

# A page runs all its commands in one test, exports and benchmarks among them
pytestmark = pytest.mark.timeout(1800)

EPOCH = "SOLVER.EPOCHS 1 SOLVER.WARMUP_EPOCHS 0 DATA.WORKERS 0 DISTILL.RESOLUTION 32"
IMAGENET = f"{EPOCH} MODEL.NUM_CLASSES 0 SOLVER.BATCH_SIZE 8 INPUT.RESOLUTION 64"
STEPS = "SOLVER.MAX_ITER 1 SOLVER.IMS_PER_BATCH 2 SOLVER.WARMUP_ITERS 0 DATALOADER.NUM_WORKERS 0 TEST.EVAL_PERIOD 0"
STEPS += " INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64"
SEARCH = "epochs 2 evaluations 6 initial_trials 3 pool_size 60 workers 1 pretraining_labels paper"
SEARCH += " budgets '[{macs: 1.5e+6}]'"
SEARCH += " evaluator_args.overrides '{SOLVER.BATCH_SIZE: 10, SOLVER.WARMUP_EPOCHS: 0}'"
SEARCH += " predictor.members 4 predictor.width 32 predictor.pretrain_epochs 3 predictor.frozen_epochs 5"
SEARCH += " predictor.finetune_epochs 5 resources.num_gpus 0 resources.num_cpus 1"
# Overrides appended to trainings, by the beginning of the config's path
TRAINING_OVERRIDES = {
    "configs/digits/": EPOCH,
    "configs/cifar10/": f"{EPOCH} SOLVER.BATCH_SIZE 20",
    "configs/imagenet/": IMAGENET,
    "configs/finetune/": IMAGENET,
    "configs/coco/": STEPS,
    "output/other/": EPOCH,
    "output/mine/": IMAGENET,
    "configs/ablations/": f"{EPOCH} SOLVER.BATCH_SIZE 10",
    "configs/ablations/table8_imagenet.yaml": f"{IMAGENET} MODEL.ARCH fbnetv3_a0",
}
# Published teachers have ImageNet's 1,000 classes.
PUBLISHED_TEACHER = "MODEL.NUM_CLASSES 1000 DATA.ROOT datasets/thousand SOLVER.BATCH_SIZE 250"
SIMULATION = "--pool-size 200 --round-size 6 --rounds 2 --epochs 8 --gpus 2 8 --repeats 1"
# Options appended to other scripts, by script and one of its arguments
SCRIPT_OPTIONS = {
    "find_lr.py": "--steps 3 DATA.WORKERS 0 INPUT.RESOLUTION 64",
    "make_split.py": "--held-out 10 --train 40",
    "make_split.py datasets/imagenet/train": "--classes 4 --held-out 4 --train 8",
    "make_split.py all_images": "--held-out 20% --train 8",
    "simulate_search.py --asynchronous": SIMULATION,
    "simulate_search.py --failure-rate": SIMULATION,
    "check_data.py": "--workers 1",
    "measure_net.py": "--seconds 0.02 --threads 1",
    "measure_net.py --space": "--space tiny.yaml --num-classes 10",
    "measure_net.py --check": "--check 3 --num-classes 10 --space tiny.yaml",
    "inference.py": "--rounds 1 --batches 1 --networks fbnetv3_b --threads 1",
    "runtimes.py": "--rounds 1 --batches 1 --networks fbnetv3_b",
    "roofline.py": "--rounds 1 --threads 1",
    "browser.py": "--rounds 1",
    "export_net.py all": "--precision float32",
    "int8.py": "--rounds 1 --resolution 64 --formats onnx",
    "latency_search.py": "--table table2.jsonl --budgets 8 --evaluations 8 --seconds 0.1",
    "train_step.py": "--rounds 1 --threads 1",
    "trial_start.py": "--trials 2",
    "import_time.py": "--rounds 1",
    "input_pipeline.py": "--rounds 1 --workers 0",
    "loop_overhead.py": "SOLVER.EPOCHS 1",
    "detection.py": "--rounds 1",
    # After one step, all scores are nearly equal: keep all boxes
    "export_net.py output/digit_scenes": "MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 MODEL.ROI_HEADS.NMS_THRESH_TEST 1.0"
    " TEST.DETECTIONS_PER_IMAGE 1000",
    "serve.py": "--rounds 1 --images 64 --connections 4 --models digits/fbnetv3_digits",
    "detector_export.py": "--rounds 1 --max-images 1",
    "pool_cost.py": "--pool 500 --candidates 2048",
    "evolution.py --seeds": "--seeds 1",
    "evolution.py --table": "--runs 2",
    "search_benchmark.py": "--seeds 0 --trainings 10 --searchers random evolution tpe",
    "search_benchmark.py joint0": "--tasks mixed0",
    "search_benchmark.py lcbench3945": "--tasks mixed0",
    "predictor_efficiency.py": "--seeds 1 --sizes 10",
}
# Placeholders for files of the reader's own
PLACEHOLDERS = {
    "IMAGES": "datasets/cifar10/train",
    "TABLE": "nas-bench-macro_cifar10.json",
    "LATENCIES": "table2.jsonl",
    "CONFIG": "configs/coco/faster_rcnn_fbnetv3_digits_C4.yaml",
    "WEIGHTS": "output/digit_scenes/model_final.pth",
    "EXPORTED": "exported/scenes",
    "PHOTOS": "photos",
}
# Slow commands that several pages have; their output is kept
slow_commands_run = set()
# Commands of other pages that a page relies on
SPLIT = "python tools/make_split.py datasets/cifar10/train datasets/cifar10_5k.json --classes 10"
PREREQUISITES = {
    "benchmarks.md": [
        "python tools/export_net.py --config configs/coco/faster_rcnn_fbnetv3_digits_C4.yaml"
        " --weights output/digit_scenes/model_final.pth --format onnx --output exported/scenes"
    ],
    "machines.md": [SPLIT],
    "search.md": [SPLIT],
    "int8.md": ["python tools/train_net.py --config configs/cifar10/fbnetv3_a0.yaml"],
    "deploy.md": [
        "python tools/export_net.py --config configs/coco/coco128_fbnetv3_a_C4.yaml --format onnx"
        " --weights output/coco128/model_final.pth --output exported/coco128",
    ],
    "latency.md": [
        "python tools/export_net.py --model fbnetv3_b --format executorch --output exported/b_phone"
    ],
    "phone.md": [
        "python tools/train_net.py --config configs/imagenet/fbnetv3_a.yaml DATA.ROOT my_images MODEL.NUM_CLASSES 0"
        " OUTPUT_DIR output/mine"
    ],
}
# Detectors that a page relies on, by config; trained for longer than these tests do
TRAINED_DETECTORS = {
    "benchmarks.md": {
        "configs/coco/faster_rcnn_fbnetv3_digits_C4.yaml": "output/digit_scenes/model_final.pth"
    },
    "deploy.md": {
        "configs/coco/faster_rcnn_fbnetv3_digits_C4.yaml": "output/digit_scenes/model_final.pth",
        "configs/coco/coco128_fbnetv3_a_C4.yaml": "output/coco128/model_final.pth",
    },
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Return a folder with links to the checkout's files and with data; commands run and write there."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        if path.name not in ("docs", "output", "build", "dist", ".git") and not path.name.endswith(
            ".egg-info"
        ):
            (folder / path.name).symlink_to(path)
    shutil.copytree(ROOT / "docs", folder / "docs")
    make_data(folder)
    (folder / "my_extensions.py").write_text("\n\n".join(blocks(ROOT / "docs" / "extending.md", "python")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FBNETV3_CACHE", str(folder / "cache"))
        make_weights()
    return folder


@pytest.fixture
def reader(checkout, tool, cache, monkeypatch, request):  # noqa: F811
    """Return a reader that runs commands in that folder."""
    threads = torch.get_num_threads()
    for name, value in {
        "FBNETV3_CACHE": checkout / "cache",
        "DETECTRON2_DATASETS": "datasets/coco128",
        "PYTHONPATH": ROOT,
        "OMP_NUM_THREADS": 1,
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(checkout)
    shutil.rmtree(checkout / "output", ignore_errors=True)
    if "datasets/imagenet" in text_of(request.getfixturevalue("page")):  # only some pages assume ImageNet
        (checkout / "datasets/imagenet").symlink_to("few")
        request.addfinalizer((checkout / "datasets/imagenet").unlink)
    yield Reader(tool, request)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_commands_run(page, reader):
    """The commands of a page run in order, as a reader would type them."""
    for block in blocks(page, "sh"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    for config, file in TRAINED_DETECTORS.get(page.name, {}).items():
        save_detector(config, Path(file))
    for line in (*PREREQUISITES.get(page.name, ()), *commands(page)):
        if not line.startswith("for ") and line != "done" and can_run(line):
            reader.run_line(line)
    if reader.server is not None:
        reader.stop_server()


def can_run(line):
    """Return whether a command is no run of the tests themselves, and what it needs for browsers is here."""
    if "python -m pytest" in line:
        return False
    if "browser.py" in line and not (shutil.which("chromium") and find_spec("playwright")):
        return False
    return not ("--format web" in line or "_web" in line) or has_browser_runtime()


@functools.cache
def has_browser_runtime():
    try:
        return bool(fetch_browser_runtime())
    except MissingPackageError:
        return False


def remove_export(words):
    """Remove the folder that an export command creates, which another page may have exported a different network to."""
    if "--output" in words:
        shutil.rmtree(words[words.index("--output") + 1], ignore_errors=True)


class Reader:
    """Runs the docs' commands in a shortened form."""

    def __init__(self, run_tool, request):
        self.run_tool = run_tool
        self.request = request
        self.cluster = None
        self.server = None

    def run_line(self, line):
        words = [os.path.expandvars(word) for word in shlex.split(line, comments=True)]
        words = [PLACEHOLDERS.get(word, word) for word in words]
        environment = {}
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        program = Path(words[0]).name
        handlers = {
            "python": self.python,
            "fbnetv3": self.fbnetv3,
            "torchrun": self.torchrun,
            "make": self.make,
            "pip": self.pip,
            "run": self.ci,
            "sbatch": self.sbatch,
            "ray": self.ray,
            "curl": self.curl,
            "docker": self.docker,
        }
        handlers[program](words[1:], environment)

    def python(self, words, environment):
        folder, name = Path(words[0]).parts[-2:]
        words = [*words, *shortening_options(name, words[1:])]
        if name == "export_net.py" or folder == "benchmarks":
            if (short := shlex.join(words)) in slow_commands_run:
                return
            slow_commands_run.add(short)
        if name == "export_net.py":
            remove_export(words)
        if "--address" in words:
            words[words.index("--address") + 1] = self.cluster.address
        if folder == "tools" and not environment and name != "install_detectron2.py" and not self.cluster:
            done = self.run_tool(Path(name).stem, *words[1:])
            assert done.code == 0, f"{shlex.join(words)}\n{done.out}\n{done.err}"
        else:
            self.run([sys.executable, *words], environment)

    def fbnetv3(self, words, environment):
        name, *arguments = words
        if name == "serve":
            self.serve(arguments)
            return
        if name == "export":
            remove_export(arguments)
        script = COMMAND_SCRIPTS.get(name)
        short = shortening_options(f"{script}.py", arguments) if script else []
        code = "from fbnetv3.commands.cli import main; main()"
        self.run([sys.executable, "-c", code, name, *arguments, *short], environment)

    def serve(self, arguments):
        """Start a server on a free port for the commands that follow; it is stopped at the end of the page."""
        from tests.http_client import RunningServer

        if self.server is not None:
            self.stop_server()
        self.server = RunningServer(*arguments)

    def stop_server(self):
        code, _, errors = self.server.stop()
        assert code == 0 and not errors, errors

    def curl(self, words, environment):
        """Send a request to the running server."""
        words = [word.replace("127.0.0.1:8000", f"127.0.0.1:{self.server.port}") for word in words]
        self.run(["curl", "--fail", "--silent", "--show-error", *words], environment)

    def docker(self, words, environment):
        """Only check what is built: there may be no Docker."""
        assert words[0] in ("build", "run") and Path("Dockerfile").exists()

    def torchrun(self, words, environment):
        script = words.index("tools/train_net.py")
        options = words[:script]
        for option, limit in (("--nnodes", 1), ("--nproc-per-node", 2)):
            if option in options:
                at = options.index(option) + 1
                options[at] = str(min(limit, int(options[at])))
        options = [option.replace("HOST:29400", f"127.0.0.1:{free_port()}") for option in options]
        words = [*options, *words[script:], *shortening_options("train_net.py", words[script + 1 :])]
        self.run([sys.executable, "-m", "torch.distributed.run", *words], environment)

    def make(self, words, environment):
        """Check the targets with a dry run, and run their trainings."""
        for line in self.run(
            ["make", "--dry-run", "--no-print-directory", *words], environment
        ).splitlines():
            if "tools/train_net.py" in line:
                self.run_line(line)

    def pip(self, words, environment):
        """Check extras with a dry run, and that requirements from GitHub are those of tools/install_detectron2.py."""
        if sources := [word for word in words if word.startswith("git+")]:
            spec = spec_from_file_location("install_detectron2", ROOT / "tools" / "install_detectron2.py")
            script = module_from_spec(spec)
            spec.loader.exec_module(script)
            assert sources == [f"git+{script.REPOSITORY}@{script.COMMIT}"]
            return
        dry = ["--dry-run", "--no-deps", "--no-build-isolation", "--quiet"]
        done = self.run([sys.executable, "-m", "pip", *words, *dry], environment)
        assert "does not provide" not in done

    def ci(self, words, environment):
        script = (ROOT / ".ci" / "run").read_text()
        assert all(f"make {target}\n" in script for target in ("lint", "docs", "test", "commands"))

    def ray(self, words, environment):
        """Add a node to a cluster on this machine."""
        scripts = pytest.importorskip("ray.scripts.scripts", reason="pip install '.[search]'")
        assert scripts.cli.commands[words[0]].make_context(words[0], words[1:])
        if self.cluster is None:
            from ray.cluster_utils import Cluster

            self.cluster = Cluster()
            self.request.addfinalizer(self.cluster.shutdown)
        head = {} if self.cluster.head_node else {"gcs_server_port": free_port()}
        self.cluster.add_node(num_cpus=1, include_dashboard=False, **head)

    def sbatch(self, words, environment):
        """Run a batch script as the job's only node; `srun` runs its command here, on the existing cluster."""
        at = next(i for i, word in enumerate(words) if word.endswith(".sbatch"))
        assert all(
            word.split("=")[0] in ("--nodes", "--gpus-per-node", "--dependency") for word in words[:at:2]
        )
        script, arguments = words[at], words[at + 1 :]
        stand_ins = {"scontrol": 'echo "$3"', "srun": 'shift; exec "$@"'}
        port = free_port()
        if script.endswith("search.sbatch"):
            stand_ins["srun"] = (
                'until [ "$1" = -- ]; do shift; done; shift; unset RAY_AUTH_MODE RAY_AUTH_TOKEN; exec "$@"'
            )
            port = int(self.cluster.address.rpartition(":")[2])
        folder = Path("slurm").absolute()
        folder.mkdir(exist_ok=True)
        for name, content in stand_ins.items():
            (folder / name).write_text(f"#!/bin/bash\n{content}\n")
            (folder / name).chmod(0o755)
        job = {"JOB_ID": port - 20000, "JOB_NUM_NODES": 1, "CPUS_PER_TASK": 1, "JOB_NODELIST": "127.0.0.1"}
        environment = environment | {f"SLURM_{name}": str(value) for name, value in job.items()}
        environment |= {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "FBNETV3_BIN": str(Path(sys.executable).parent),
        }
        short = shortening_options(
            "search_net.py" if script.endswith("search.sbatch") else "train_net.py", arguments
        )
        self.run(["bash", script, *arguments, *short], environment)

    def run(self, words, environment):
        done = subprocess.run(
            words,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


def shortening_options(name, words):
    """Return options that shorten a run of a script, to append to its own."""
    if name == "search_net.py":
        return shlex.split(SEARCH) if "--config" in words else []
    if name in ("train_net.py", "run_ablation.py", "cache_teacher.py") and "--config" in words:
        config = words[words.index("--config") + 1]
        short = TRAINING_OVERRIDES[
            max((start for start in TRAINING_OVERRIDES if config.startswith(start)), key=len)
        ]
        published = "DISTILL.WEIGHTS zoo://imagenet" in " ".join(words)
        return f"{short} {PUBLISHED_TEACHER if published else ''}".split()
    keys = [key for key in (f"{name} {word}" for word in words) if key in SCRIPT_OPTIONS]
    short = [word for key in (name, *keys) for word in SCRIPT_OPTIONS.get(key, "").split()]
    fills_table = name == "measure_net.py" and "--space" in words and "--check" not in words
    return [*short, "--networks", "3"] if fills_table else short


def free_port():
    """Return a free port in the range of the batch scripts, below the system's ephemeral ports."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")
