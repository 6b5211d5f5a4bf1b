"""Invalid YAML in place of each kind of file: a one-line error, and no code is executed."""

import pytest

from fbnetv3.arch import load_arch
from fbnetv3.arch.detector_cost import find_detector_config, read_detector_config
from fbnetv3.config import is_detection_config, load_config
from fbnetv3.config.recipe import load_recipe
from fbnetv3.errors import UserError
from fbnetv3.experiments.ablation import load_ablation
from fbnetv3.nars.settings.search_config import load_search_config
from fbnetv3.nars.space.search_space import load_space

INVALID = {
    "python object": "name: !!python/object/apply:os.system ['touch executed']\nSEED: !!python/name:os.system",
    "new python object": "!!python/object/new:os.system ['touch executed']",
    "unknown tag": "name: !resistor 1\nSEED: !resistor 1",
    "list as a key": "{[1]: 2}",
    "duplicate key": "SEED: 1\nSEED: 2",
    "two documents": "SEED: 1\n---\nSEED: 2",
    "undefined alias": "SEED: *nothing",
    "unclosed list": "SEED: [1, 2",
    "unclosed text": 'SEED: "1',
    "tab indentation": "MODEL:\n\tARCH: fbnetv3_a",
    "wrong indentation": "MODEL:\n  ARCH: a\n IN_CHANS: 1",
    "binary data": bytes(range(256)),
    "not UTF-8": "name: é".encode("latin-1"),
    "own base": "_BASE_: ./file.yaml\nname: x",
    "base in a circle": "_BASE_: ../{folder}/./file.yaml\nname: x",
    "base is a folder": "_BASE_: .\nname: x",
    "missing base": "_BASE_: missing.yaml\nname: x",
    "base is a URL": "_BASE_: http://127.0.0.1:9/x.yaml\nname: x",
    "base is no text": "_BASE_: [1, null]\nname: x",
    "empty file": "",
    "null": "null",
    "text": "text",
    "list": "[1, 2]",
}
READERS = {
    "architecture": load_arch,
    "space": load_space,
    "search": load_search_config,
    "recipe": load_recipe,
    "training config": load_config,
    "ablation": load_ablation,
    "detection config": lambda path: load_config(path) if is_detection_config(path) else None,
    "detector": lambda path: read_detector_config(path) if find_detector_config(path) else None,
}
# An empty training config is valid: all defaults; the last two readers only detect whether a file is theirs
LENIENT = ("detection config", "detector")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", INVALID)
def test_invalid_yaml_is_refused_in_one_line(case, reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = INVALID[case]
    if isinstance(content, str):
        content = content.replace("{folder}", tmp_path.name).encode()
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    message = ""
    try:
        READERS[reader](path)
    except UserError as error:
        message = str(error)
        assert "\n" not in message and len(message) < 1000
    if case != "empty file" and reader not in LENIENT:
        assert message, "it was accepted"
    assert not (tmp_path / "executed").exists()
