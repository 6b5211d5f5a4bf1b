"""The structure of the package: import layers, module names, folder sizes, names; and the cost of importing it."""

import ast
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

import fbnetv3

PACKAGE = Path(fbnetv3.__file__).resolve().parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_MODULES = 12
BASE = {"errors", "registry", "utils"}
# What each part of the package may import besides itself.
ALLOWED = {
    "errors": set(),
    "registry": {"errors", "utils"},
    "utils": {"errors"},
    "arch": BASE,
    "config": BASE,
    "data": BASE,
    "modeling": BASE | {"arch"},
    "training": BASE | {"arch", "config", "data", "modeling"},
    "experiments": BASE | {"arch", "config", "data", "modeling", "training"},
    "deploy": BASE | {"arch", "data", "modeling"},
    "detection": BASE | {"arch", "config", "data", "deploy", "modeling", "training"},
    "nars": BASE | {"arch", "config"},
    "model_zoo": BASE | {"arch", "config", "data", "detection", "modeling", "training"},
    "commands": BASE
    | {
        "arch",
        "config",
        "data",
        "deploy",
        "detection",
        "model_zoo",
        "modeling",
        "nars",
        "training",
        "__init__",
    },
    "factory": BASE | {"arch", "modeling", "model_zoo"},
    "timm": BASE | {"arch", "factory", "modeling", "model_zoo"},
    "__init__": {"arch", "factory", "modeling", "utils"},
}
# Modules that may import more than their part: the search trains candidates and draws networks only by these.
EXCEPTIONS = {"nars/evaluators/training_evaluator.py": {"data", "modeling", "training"}}
WITHOUT_TORCH = {"errors", "registry", "utils", "arch", "config"}
HEAVY = {
    "detectron2",
    "ray",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "executorch",
    "torchao",
    "litert_torch",
    "ai_edge_litert",
    "ai_edge_quantizer",
    "coremltools",
    "ncnn",
    "pnnx",
    "openvino",
    "nncf",
    "timm",
    "wandb",
    "mlflow",
}
# The only modules outside fbnetv3.detection that import an optional package, and which.
OPTIONAL = {
    "deploy/detector_graph/box_ops.py": {"onnxscript"},
    "model_zoo/zoo.py": {"detectron2"},
    "modeling/cpu/expanding_pooler.py": {"detectron2"},
    "nars/execution/ray_executor.py": {"ray"},
    "timm.py": {"timm"},
    "training/optimizers.py": {"timm"},
    "training/tracking/trackers.py": {"mlflow", "wandb"},
}
# Local names that say nothing of what they hold.
CATCH_ALL = {
    "found",
    "known",
    "kept",
    "given",
    "there",
    "here",
    "theirs",
    "ours",
    "what",
    "how",
    "thing",
    "stuff",
}


def relative(file):
    return file.relative_to(PACKAGE).as_posix()


def imports(file):
    """Yield the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            if node.module == "fbnetv3":
                yield from (f"fbnetv3.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_imports_follow_the_layers(file):
    part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    imported = set(imports(file))
    parts = {name.split(".")[1] for name in imported if name.startswith("fbnetv3.")}
    assert parts <= ALLOWED[part] | {part} | EXCEPTIONS.get(relative(file), set())
    packages = {name.split(".")[0] for name in imported}
    if relative(file).startswith("deploy/formats/converters/"):
        allowed = {"litert_torch", "ai_edge_litert", "ai_edge_quantizer", "coremltools", "ncnn", "pnnx"}
    elif relative(file).startswith("deploy/formats/"):
        allowed = {"onnx", "onnxscript", "onnxruntime", "executorch", "torchao", "openvino", "nncf"}
    elif relative(file).startswith("deploy/latency/"):
        allowed = {"onnx"}
    else:
        allowed = {"detectron2"} if part == "detection" else OPTIONAL.get(relative(file), set())
    assert not packages & HEAVY - allowed
    if part in WITHOUT_TORCH:
        assert not top_level_packages(file) & {"torch", "torchvision"}


def top_level_packages(file):
    """Return the packages that importing the file imports at once, not inside its functions."""
    nodes = ast.parse(file.read_text()).body
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return {module.split(".")[0] for module in modules}


def test_modules_import_one_another_without_cycles():
    """Imports at the top of modules; those inside functions may go back."""
    names = {module_name(file): file for file in FILES}
    graph = {name: set(module_imports(file, names)) - {name} for name, file in names.items()}
    while leaves := [name for name, targets in graph.items() if not targets]:
        for leaf in leaves:
            del graph[leaf]
        graph = {name: targets - set(leaves) for name, targets in graph.items()}
    assert not graph, f"cycles among {sorted(graph)}"


def module_name(file):
    parts = ("fbnetv3", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_imports(file, names):
    """Yield the modules of the package that the top level of a module imports."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in names:
                    yield full
                elif node.module in names:
                    yield node.module


def test_folders_are_small():
    for folder in {file.parent for file in FILES}:
        modules = [file.name for file in folder.glob("*.py") if file.name != "__init__.py"]
        assert len(modules) <= MAX_MODULES, f"{relative(folder)}: {len(modules)} modules"


def test_module_names_are_unique():
    files = defaultdict(list)
    for file in FILES:
        if file.name != "__init__.py":
            files[file.name].append(relative(file))
    assert {name: paths for name, paths in files.items() if len(paths) > 1} == {}


def test_public_names_are_unique():
    files = defaultdict(list)
    for file in FILES:
        for node in ast.parse(file.read_text()).body:
            is_definition = isinstance(node, (ast.FunctionDef, ast.ClassDef))
            # Each command has a function `main`
            if is_definition and not node.name.startswith("_") and node.name != "main":
                files[node.name].append(relative(file))
    assert {name: paths for name, paths in files.items() if len(paths) > 1} == {}


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_names_say_what_they_hold(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            assert node.id not in CATCH_ALL, f"{relative(file)}:{node.lineno}: {node.id}"
        elif isinstance(node, ast.arg):
            assert node.arg not in CATCH_ALL, f"{relative(file)}:{node.lineno}: {node.arg}"


def test_tests_mirror_the_package():
    tests = PACKAGE.parent / "tests"
    if not tests.is_dir():
        pytest.skip("the package is installed without its tests")
    rooms = {
        relative(folder)
        for folder in PACKAGE.rglob("*")
        if folder.is_dir() and (folder / "__init__.py").exists()
    }
    others = {"hardening", "tools"}
    for file in tests.rglob("test_*.py"):
        folder = file.parent.relative_to(tests).as_posix()
        assert folder in rooms | others | {"."}, f"{file.relative_to(tests)}: no such package"


def run(script):
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_importing_loads_nothing_optional():
    loaded = run(
        "import fbnetv3, sys; fbnetv3.create_model, fbnetv3.load_weights; print(*sys.modules)"
    ).split()
    optional = HEAVY | {"jinja2", "matplotlib", "scipy", "sklearn", "tensorboard"}
    # torch imports jinja2 by itself in some versions
    loaded_by_torch = run("import torch, torchvision, sys; print(*sys.modules)").split()
    packages = {name.split(".")[0] for name in loaded} - {name.split(".")[0] for name in loaded_by_torch}
    assert not packages & optional


def test_cost_needs_no_torch():
    script = (
        "import sys; sys.modules['torch'] = None; import fbnetv3; print(fbnetv3.cost('fbnetv3_a').macs)"
    )
    assert run(script) == "356598280\n"


def test_importing_takes_hardly_longer_than_torch_and_torchvision():
    """At most 1.3 times, with everything that builds networks."""

    def seconds(script):
        start = time.perf_counter()
        run(script)
        return time.perf_counter() - start

    baseline = "import torch, torchvision"
    package = "import fbnetv3; fbnetv3.create_model"
    rounds = [(seconds(baseline), seconds(package)) for _ in range(3)]
    torch_seconds, package_seconds = (min(times) for times in zip(*rounds, strict=True))
    ratio = package_seconds / torch_seconds
    print(
        f"import torch, torchvision {torch_seconds:.2f} s; fbnetv3 {package_seconds:.2f} s; ratio {ratio:.2f}"
    )
    assert ratio <= 1.3


def test_unknown_attributes():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fbnetv3.nothing  # noqa: B018
    assert {"create_model", "list_models", "cost", "load_weights"} <= set(dir(fbnetv3))


def test_detectron2_is_installed_after_setup():
    """`make setup` installs it by whichever route works; its compiled operators are not needed."""
    detectron2 = pytest.importorskip(
        "detectron2", reason="detectron2 is optional: python tools/install_detectron2.py"
    )
    assert detectron2.__version__
    assert (
        run("from detectron2.modeling import build_model; from detectron2 import model_zoo; print('ok')")
        == "ok\n"
    )
    origin = run("import importlib.util as u; s = u.find_spec('tools'); print(s and s.origin)").strip()
    assert origin in ("None", "") or "site-packages" not in origin, "detectron2's `tools` shadows others"
