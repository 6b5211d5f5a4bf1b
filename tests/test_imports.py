"""Who may import whom, and what `import fbnetv3` costs."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fbnetv3

PACKAGE = Path(fbnetv3.__file__).resolve().parent
BASE = {"errors", "registry", "file_io", "yaml_io", "text"}
# Each part of the package, and the parts that it may import besides itself.
ALLOWED = {
    "errors": set(),
    "registry": {"errors"},
    "file_io": {"errors"},
    "yaml_io": {"errors"},
    "text": set(),
    "arch": BASE,
    "recipe": BASE,
    "config": BASE | {"recipe"},
    "data": BASE,
    "modeling": BASE | {"arch"},
    "engine": BASE | {"arch", "cli", "config", "data", "modeling", "recipe"},
    "detection": BASE | {"arch", "config", "data", "deploy", "engine", "modeling"},
    "deploy": BASE | {"arch", "data", "modeling"},
    "trained": BASE | {"arch", "config", "data", "engine", "model_zoo"},
    "api": BASE | {"arch", "modeling", "model_zoo"},
    "nars": BASE | {"arch", "recipe"},
    "cli": BASE,
    "__init__": {"api", "arch", "modeling"},
}
# The only modules that import something heavy, and what.
OPTIONAL = {
    "nars/ray_executor.py": {"ray"},
    "deploy/box_ops.py": {"onnxscript"},
    "deploy/formats.py": {"onnx", "onnxscript", "executorch"},
    "deploy/graphs.py": {"onnx"},
    "deploy/quantize_onnx.py": {"onnx", "onnxruntime"},
    "deploy/quantize_executorch.py": {"executorch", "torchao"},
    "deploy/runtimes.py": {"onnxruntime", "executorch"},
}
HEAVY = {"detectron2", "ray", "onnx", "onnxscript", "onnxruntime", "executorch", "torchao", "openvino", "timm"}


def imports(file):
    """Modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            if node.module == "fbnetv3":
                yield from (f"fbnetv3.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_go_upward_only(file):
    part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    ours = {name.split(".")[1] for name in imports(file) if name.startswith("fbnetv3.")}
    assert ours <= ALLOWED[part] | {part}
    theirs = {name.split(".")[0] for name in imports(file)}
    heavy = {"detectron2"} if part == "detection" else OPTIONAL.get(file.relative_to(PACKAGE).as_posix(), set())
    assert not theirs & HEAVY - heavy
    if part in BASE | {"arch", "config", "recipe"}:
        assert not theirs & {"torch", "torchvision"}


def run(script):
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_importing_loads_nothing_optional():
    loaded = run("import fbnetv3, sys; fbnetv3.create_model, fbnetv3.load_weights; print(*sys.modules)").split()
    assert not {name.split(".")[0] for name in loaded} & (HEAVY | {"sklearn", "matplotlib", "tensorboard", "scipy"})


def test_cost_needs_no_torch():
    assert (
        run("import sys; sys.modules['torch'] = None; import fbnetv3; print(fbnetv3.cost('fbnetv3_a').macs)")
        == "356598280\n"
    )


def test_importing_takes_hardly_longer_than_torch_and_torchvision():
    """At most 1.3 times, all that builds networks included."""

    def seconds(script):
        start = time.perf_counter()
        run(script)
        return time.perf_counter() - start

    rounds = [(seconds("import torch, torchvision"), seconds("import fbnetv3; fbnetv3.create_model")) for _ in range(5)]
    theirs, ours = (min(times) for times in zip(*rounds, strict=True))
    print(f"import torch, torchvision {theirs:.2f} s; fbnetv3 {ours:.2f} s; ratio {ours / theirs:.2f}")
    assert ours <= 1.3 * theirs


def test_unknown_attributes():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fbnetv3.nothing  # noqa: B018
    assert {"create_model", "list_models", "cost", "load_weights"} <= set(dir(fbnetv3))


def test_detectron2_is_there_after_setup():
    """`make setup` installs it by the route that the machine allows; nothing of ours needs its compiled operators."""
    detectron2 = pytest.importorskip("detectron2", reason="detectron2 is optional: python tools/install_detectron2.py")
    assert detectron2.__version__
    assert run("from detectron2.modeling import build_model; from detectron2 import model_zoo; print('ok')") == "ok\n"
    found = run("import importlib.util as u; s = u.find_spec('tools'); print(s and s.origin)").strip()
    assert found in ("None", "") or "site-packages" not in found, "detectron2's `tools` shadows others"
