"""Packaging: the data in `configs/` and `model_zoo/` is installed inside the package."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "fbnetv3" / "__init__.py").read_text())[1]

SEARCH = ["plotly", "ray>=2"]
SERVE = [
    "httptools",
    "onnxruntime",
    "prometheus-client",
    "python-multipart",
    "starlette>=0.40",
    "uvicorn>=0.30",
    "uvloop; sys_platform != 'win32'",
]
EXPORT = ["executorch>=1.5", "onnx", "onnxruntime", "onnxscript", "openvino>=2025"]
# Converters to formats of other frameworks, in versions that work together. They are large, and `dev` leaves them out
CONVERTERS = [
    "ai-edge-litert>=2.3",
    "ai-edge-quantizer>=0.10",
    "coremltools>=9",
    "litert-torch>=0.10",
    "ncnn>=1.0.20261020",
    "nncf>=3.4",
    "pnnx>=20261020",
]
BENCHMARKS = ["litserve", "openvino", "optuna", "pymoo", "smac", "timm"]
PEERS = ["neural-pipeline-search"]
VIDEO = ["opencv-python-headless"]
# It requires opencv-python, whose files replace those of opencv-python-headless; see the Makefile
TRACKING = ["trackers>=2.6"]
TEST = [
    "hypothesis",
    "ipykernel",
    "nbclient",
    "playwright",  # with Debian's Chromium; its own browsers are not needed
    "pytest",
    "pytest-cov",
    "pytest-timeout",
    "pytest-xdist",
    "httpx",  # Starlette's client for tests
    "segmentation-models-pytorch",
    *SEARCH,
    *EXPORT,
    *SERVE,
    *BENCHMARKS,
    *VIDEO,
    *TRACKING,
]
LINT = ["codespell==2.4.1", "mypy==2.4.1", "ruff==0.17.6"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.29"]

setup(
    name="fbnetv3",
    version=VERSION,
    description="The FBNetV3 family of compact image networks, and the architecture search that found it",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=[
        *find_packages(include=["fbnetv3", "fbnetv3.*"]),
        "fbnetv3.model_zoo_data",
        "fbnetv3.configs",
    ],
    entry_points={"console_scripts": ["fbnetv3 = fbnetv3.commands.cli:main"]},
    package_dir={"fbnetv3.model_zoo_data": "model_zoo", "fbnetv3.configs": "configs"},
    package_data={
        "fbnetv3": [
            "py.typed",
            "data/check/page/*",
            "data/classes/imagenet_synsets.txt",
            "deploy/web/page/*",
            "nars/report/page/*",
        ],
        "fbnetv3.model_zoo_data": ["entries.yaml", "weights/*.pth"],
        "fbnetv3.configs": ["**/*.yaml"],
    },
    install_requires=[
        "cloudpickle",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",
        "jinja2",
        "matplotlib",
        "numpy",
        "pillow>=10.1",  # Image.has_transparency_data
        "pyyaml",
        "safetensors",
        "scikit-learn",
        "scipy",
        "simplejpeg",
        "tabulate",
        "tensorboard",
        "torch>=2.4",
        "torchvision>=0.19",
        "tqdm",
        "yacs",
    ],
    extras_require={
        # detectron2 itself is not on PyPI: see tools/install_detectron2.py
        "detection": ["hydra-core", "omegaconf", "pycocotools", "setuptools<81", *VIDEO],
        "tracking": TRACKING,  # ByteTrack
        "search": SEARCH,
        "export": EXPORT,
        "converters": CONVERTERS,  # LiteRT, Core ML, NCNN; int8 for OpenVINO
        "serve": SERVE,
        "benchmarks": BENCHMARKS,  # peers in the comparisons
        # A peer of the search that changes versions of other packages. DEHB cannot be installed beside it: it requires
        # numpy<2, NePS numpy>=2
        "peers": PEERS,
        "test": TEST,
        "lint": LINT,
        "docs": DOCS,
        "dev": [*TEST, *LINT, *DOCS],
    },
)
