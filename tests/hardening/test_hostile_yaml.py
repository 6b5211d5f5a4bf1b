"""YAML made to harm, in the place of every file that we read: one line, in no time, and nothing of it is run."""

import resource
import time

import pytest

from fbnetv3.arch import load_arch
from fbnetv3.arch.detector_settings import find_detector_config, read_detector_config
from fbnetv3.config import is_detection_config, load_config
from fbnetv3.config.recipe import load_recipe
from fbnetv3.errors import UserError
from fbnetv3.experiments.ablation import load_ablation
from fbnetv3.nars.algorithm.search_settings import load_search_config
from fbnetv3.nars.space.search_space import load_space

LAUGHS = "\n".join(
    ["x0: &x0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    + [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 10)]
)
ROW = "{block: conv, kernel: 3, channels: 8, repeat: 1000}"
HOSTILE = {
    "a billion laughs": LAUGHS,
    "laughs as a value": f"{LAUGHS}\nname: *x9\nstages: *x9\nspace: *x9\nvariables: *x9\nSOLVER: *x9\noptimizer: *x9",
    "an alias of itself": "name: &a [*a]\nstages: *a\nvariables: *a\nspace: *a\nSOLVER: *a",
    "a section in itself": "&a\nname: x\nstages: *a\nvariables: *a\nSOLVER: *a\nspace: *a",
    "blocks without end": f"name: x\nresolution: 8\nstages:\n- &s\n  rows: [&r {ROW}{', *r' * 300}]\n" + "- *s\n" * 300,
    "nested lists": "[" * 100_000,
    "nested mappings": "{a: " * 5_000,
    "nested blocks": "\n".join(f"{' ' * i}a:" for i in range(900)),
    "a number without end": f"name: x\nSEED: {'9' * 10_000}\nlr: 0x{'f' * 10_000}\noptimizer: sgd",
    "a large number": f"resolution: {10**400}\nname: x\nstages: [1]\nSEED: {10**400}\nlr: {10**400}\noptimizer: sgd",
    "python": "name: !!python/object/apply:os.system ['touch pwned']\nSEED: !!python/name:os.system",
    "python, new": "!!python/object/new:os.system ['touch pwned']",
    "a tag that lies": "name: !!bool maybe\nSEED: !!bool maybe",
    "a date that is none": "name: !!timestamp never\nSEED: !!timestamp never",
    "no number": "name: !!int ''\nSEED: !!int ''",
    "a list called a mapping": "!!map [1]",
    "a mapping with a list for a key": "{[1]: 2}",
    "one key in two spellings": "SEED: 1\n? !!str SEED\n: 2",
    "two documents": "SEED: 1\n---\nSEED: 2",
    "merged with itself": "&a\n<<: *a\nSEED: 1",
    "an alias of nothing": "SEED: *nothing",
    "a NUL": "SEED: 1\0",
    "a NUL in a name": 'OUTPUT_DIR: "a\\0b"\nMODEL: {ARCH: "a\\0.yaml"}\n_BASE_: "\\0"',
    "UTF-16 in halves": "\ufeff\ud800".encode("utf-16-le", "surrogatepass"),
    "bytes": bytes(range(256)),
    "twenty megabytes": "# " + "x" * 20_000_000,
    "itself as its base": "_BASE_: ./file.yaml\nname: x",
    "itself by a detour": "_BASE_: ../{folder}/./file.yaml\nname: x",
    "a base that is a folder": "_BASE_: .\nname: x",
    "a device as its base": "_BASE_: /dev/zero\nname: x",
    "a base from the network": "_BASE_: http://127.0.0.1:9/x.yaml\nname: x",
    "a list of bases": "_BASE_: [1, null]\nname: x",
    "nothing": "",
    "null": "null",
    "text": "text",
}
READERS = {
    "architecture": load_arch,
    "space": load_space,
    "search": load_search_config,
    "recipe": load_recipe,
    "training": load_config,
    "kind of config": is_detection_config,
    "ablation": load_ablation,
    "detector": lambda path: read_detector_config(path) if find_detector_config(path) else None,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", HOSTILE)
def test_it_is_refused_in_one_line(case, reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = HOSTILE[case]
    path = tmp_path / "file.yaml"
    if isinstance(text, str):
        text = text.replace("{folder}", tmp_path.name).encode("utf-8", "surrogatepass")
    path.write_bytes(text)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    message = ""
    try:
        READERS[reader](path)
    except UserError as error:
        message = str(error)
    if case != "nothing" and reader not in ("kind of config", "detector"):
        assert message, "it was accepted"
    assert len(" ".join(message.split()).encode(errors="replace")) < 20_000
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes
    assert not (tmp_path / "pwned").exists()
