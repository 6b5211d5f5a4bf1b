"""README and docs: their Python runs, their commands parse, their links lead somewhere."""

import re
import shlex
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

import fbnetv3
from fbnetv3 import model_zoo
from fbnetv3.config import is_detection_config, load_config
from fbnetv3.engine.ablation import cell_config, cells, load_ablation
from fbnetv3.file_io import cached_path
from fbnetv3.nars import load_space
from fbnetv3.nars.settings import SearchSettings, load_search_config
from tests.modeling.test_weights import mobile_vision

ROOT = Path(__file__).resolve().parent.parent
CONFIGURED = ("train_net.py", "cache_teacher.py", "run_ablation.py", "search_net.py")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


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
        if "fbnetv3.detection" in block and find_spec("detectron2") is None:
            continue
        exec(compile(block, str(page), "exec"), names)


def commands(tools):
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if (words := shlex.split(line, comments=True)) and any(word.endswith(tools) for word in words):
                    yield pytest.param(words, id=f"{page.name}: {line[:60]}")


@pytest.mark.parametrize("words", [*commands(CONFIGURED)])
def test_training_commands_name_configs_and_keys_that_exist(words):
    tool = next(i for i, word in enumerate(words) if word.endswith(CONFIGURED))
    assert (ROOT / words[tool]).exists()
    if words[tool + 1] in ("status", "report"):
        return
    _, config, *overrides = words[tool + 1 :]
    assert words[tool + 1] == "--config"
    overrides = [word for word in overrides if not word.startswith("--")]
    if words[tool].endswith("search_net.py"):
        load_search_config(ROOT / config, overrides)
    elif words[tool].endswith("run_ablation.py"):
        ablation = load_ablation(ROOT / config)
        cell_config(ablation, cells(ablation)[0], overrides)
    elif not is_detection_config(ROOT / config):
        load_config(ROOT / config, overrides)
    elif find_spec("detectron2") is not None:
        from fbnetv3.detection.loading import load_config as load_detection_config

        load_detection_config(ROOT / config, overrides)


class Parsed(Exception):
    """A tool has understood its arguments."""


@pytest.mark.parametrize("words", [*commands(("export_net.py", "classify.py"))])
def test_commands_to_export_and_classify_are_understood(words, monkeypatch):
    start = next(i for i, word in enumerate(words) if word.endswith(".py"))
    spec = spec_from_file_location("the_tool", ROOT / words[start])
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)

    def found(name, *arguments, **keywords):
        assert (
            name.startswith("exported/")
            or (ROOT / name).is_file()
            or fbnetv3.list_models(name)
            or model_zoo.entry(name)
        )
        raise Parsed

    monkeypatch.setattr(tool, "from_config", found)
    monkeypatch.setattr(tool, "from_name", found)
    monkeypatch.setattr(tool, "export_detector", lambda args, command: found(args.model or args.config), raising=False)
    with pytest.raises(Parsed):
        tool.main(words[start + 1 :])


@pytest.mark.parametrize("words", [*commands(("measure_net.py",))])
def test_commands_to_measure_are_understood(words, monkeypatch):
    spec = spec_from_file_location("the_tool", ROOT / "tools" / "measure_net.py")
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)

    def found(args):
        assert args.space is None or load_space(ROOT / args.space)
        assert all(name.startswith("exported/") or fbnetv3.list_models(name) for name in args.names)
        raise Parsed

    for name in ("check", "fill", "compare"):
        monkeypatch.setattr(tool, name, found)
    with pytest.raises(Parsed):
        tool.main(words[words.index("tools/measure_net.py") + 1 :])


def test_every_setting_of_a_search_is_explained():
    names = re.findall(
        r"`(\w+)`", "".join(re.findall(r"^\| `.*?\|", (ROOT / "docs/search.md").read_text(), re.MULTILINE))
    )
    assert set(SearchSettings.__dataclass_fields__) <= set(names)


def test_every_tool_in_the_docs_is_there():
    for page in PAGES:
        for tool in re.findall(r"(?:tools|benchmarks)/\w+\.py", page.read_text()):
            assert (ROOT / tool).exists(), f"{page.name}: {tool}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


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
