"""README and docs: their Python runs, their links lead somewhere; the notebook too. Commands: test_commands.py."""

import ast
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import fbnetv3
from fbnetv3 import model_zoo
from fbnetv3.config import get_cfg
from fbnetv3.nars.settings.search_settings import SearchSettings
from fbnetv3.utils.downloads import cached_path
from fbnetv3.utils.nested_keys import flatten
from tests.modeling.weight_files import mobile_vision
from tests.pages import NOTEBOOK, PAGES, ROOT, blocks, cells_of, text_of

# What a block contains that needs an optional package
OPTIONAL = {
    "fbnetv3.detection": "detectron2",
    "fbnetv3.timm": "timm",
    "segmentation_models_pytorch": "segmentation_models_pytorch",
}


@pytest.fixture
def published(cache):
    """Stands in for the download of the published A: the same format, other values."""
    place = cached_path(model_zoo.get_checkpoint_url("imagenet/fbnetv3_a.yaml"))
    place.parent.mkdir(parents=True)
    torch.save({"state_dict": mobile_vision(fbnetv3.create_model("fbnetv3_a")), "model_ema": None}, place)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_runs(page, published, monkeypatch, tmp_path):
    """A page's blocks in order, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(page, "python"):
        if any(name in block and find_spec(package) is None for name, package in OPTIONAL.items()):
            continue
        # No name of a file: the lines of the page are not those of the block
        exec(compile(block, f"<{page.name}>", "exec"), names)


def test_every_setting_of_a_search_is_explained():
    names = re.findall(
        r"`(\w+)`", "".join(re.findall(r"^\| `.*?\|", (ROOT / "docs/search.md").read_text(), re.MULTILINE))
    )
    assert set(SearchSettings.__dataclass_fields__) <= set(names)


def test_every_tool_in_the_docs_is_there():
    for page in PAGES:
        for tool in re.findall(r"(?:tools|benchmarks)/[\w/]+\.(?:py|sbatch)", text_of(page)):
            assert (ROOT / tool).exists(), f"{page.name}: {tool}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", text_of(page)):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_to_sections_lead_to_headings(page):
    for target, anchor in re.findall(r"\]\(([\w./-]*\.md)?#([\w-]+)\)", text_of(page)):
        text = (page.parent / target).read_text() if target else text_of(page)
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        anchors = {
            re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
        }
        assert anchor in anchors, f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_functions_are_where_links_say(page):
    for name, target in re.findall(r"\[`([A-Za-z_][\w.]*)`\]\(([^)#]+\.py)\)", text_of(page)):
        if not name.endswith(".py"):
            assert name in defined((page.parent / target).read_text()), f"{name} in {target}"


def defined(source):
    """Functions and classes of a module, and their methods as `Class.method`."""
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (
                f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)
            )


def test_every_page_is_in_the_sites_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        assert f" {page.stem}.md\n" in navigation, page.name


def test_the_config_reference_has_every_key(hook):
    page = hook("config_reference").page()
    of_classifiers, of_detectors = (
        re.findall(r"^\| `([\w.]+)` \|", part, re.MULTILINE) for part in page.split("\n## Detectors\n")
    )
    assert sorted(of_classifiers) == sorted(flatten(get_cfg()))
    assert "| `SOLVER.LABEL_SMOOTHING` | `0.0` | in [0, 1) | Fraction of the target" in page
    assert "MODEL.FBNETV3.ARCH" in of_detectors


def test_a_key_without_a_comment_is_named(hook, tmp_path):
    (tmp_path / "defaults.py").write_text("# A seed.\ncfg.SEED = 0\ncfg.OTHER = 1\n")
    with pytest.raises(ValueError, match=r"defaults\.py:3: OTHER has no comment"):
        hook("config_reference").sections(tmp_path / "defaults.py")


def test_the_api_reference_has_all_that_packages_offer(hook):
    api, claimed = hook("api_reference"), {}
    for package in api.PACKAGES:
        page = api.page(package, (), claimed)
        offered = (
            import_module(package).__all__
            if package != "fbnetv3.detection" or find_spec("detectron2")
            else ()
        )
        for name in {*offered} - {"__version__"}:
            assert f"{package}.{name}" in page, f"{package}.{name}"


@pytest.fixture
def hook(monkeypatch):
    """What makes pages of the site, by its name."""
    pytest.importorskip("mkdocs", reason="pip install 'fbnetv3[docs]'")
    monkeypatch.syspath_prepend(ROOT / "docs" / "hooks")
    return import_module


def test_the_notebook_runs(tmp_path, monkeypatch):
    """All of its cells with shorter trainings, in a kernel of this Python, with this checkout."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    source = NOTEBOOK.read_text()
    shorter = {"evaluations=16": "evaluations=8", "epochs=5": "epochs=2"}
    shorter |= {f'EPOCHS\\", \\"{epochs}': 'EPOCHS\\", \\"2' for epochs in (6, 8)}
    for long, short in shorter.items():
        assert long in source
        source = source.replace(long, short)
    notebook = nbformat.reads(source, as_version=4)
    nbclient.NotebookClient(notebook, timeout=500, kernel_name="python3").execute(cwd=tmp_path)
    assert (tmp_path / "output/tour/search/report.html").exists()
    assert (tmp_path / "output/tour/exported/model.onnx").exists()


def test_the_notebook_was_saved_with_its_outputs():
    cells = cells_of(NOTEBOOK, "code")
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert str(Path.home()) not in NOTEBOOK.read_text()


def test_the_readmes_table_is_the_zoos():
    rows = re.findall(
        r"^\| `(fbnetv3_[a-g])` \| (\d+) \| ([\d.]+) M \| ([\d,]+) M \| ([\d.]+) \| ([\d.]+) \| [\d.]+ ms \|$",
        (ROOT / "README.md").read_text(),
        re.MULTILINE,
    )
    assert [row[0] for row in rows] == [f"fbnetv3_{letter}" for letter in "abcdefg"]
    for name, resolution, params, macs, top1, top5 in rows:
        entry = model_zoo.entry_for_arch(name)
        assert int(resolution) == entry.resolution
        assert (params, macs) == (f"{entry.params / 1e6:.2f}", f"{entry.macs / 1e6:,.0f}")
        assert (top1, top5) == (f"{entry.top1:.1f}", f"{entry.top5:.1f}")
