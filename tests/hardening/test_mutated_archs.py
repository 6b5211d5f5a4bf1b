"""Architecture files with something wrong: an error that says what, or a network that makes sense."""

import pytest
import torch
import yaml
from hypothesis import event, given

from fbnetv3.arch import ArchError, configs_folder, cost_of, dump_arch, load_arch
from fbnetv3.errors import UserError
from fbnetv3.modeling import build_network
from tests.hardening.conftest import examples
from tests.hardening.mutations import mutated_yaml

SMALL = {
    "name": "small",
    "resolution": 16,
    "resize": 18,
    "source": "here",
    "stages": [
        {"rows": [{"block": "conv", "kernel": 3, "channels": 8, "stride": 2, "act": "hswish"}]},
        {
            "rows": [
                {"block": "mbconv", "kernel": 3, "expansion": 2, "channels": 8, "repeat": 2, "se": "hsigmoid"},
                {"block": "mbconv", "kernel": 5, "expansion": 1.5, "channels": 16, "stride": 2, "dw_padding": 1},
            ]
        },
        {"rows": [{"block": "mbconv_det", "kernel": 3, "expansion": 1, "channels": 16, "dw_group_width": 8}]},
        {"rows": [{"block": "mbpool", "expansion": 2, "channels": 24, "act": "relu"}]},
    ],
}
DERIVED = {
    "_BASE_": str(configs_folder() / "archs" / "fbnetv3_a0.yaml"),
    "name": "derived",
    "derive": {
        "scale": {"depth": 0.5, "width": 0.25, "resolution": 0.5, "fixed": ["stem"], "multiple": 4},
        "small_images": 32,
        "same_padding": True,
    },
}


def judged(text, folder):
    path = folder / "mutated.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        defn = load_arch(path)
    except UserError as error:
        assert isinstance(error, ArchError) and str(error)
        return
    event("accepted")
    again = folder / "again.yaml"
    again.write_text(dump_arch(defn))
    assert load_arch(again) == defn
    cost = cost_of(defn)
    assert cost.macs > 0 and cost.params > 0 and cost.activations > 0
    assert len(cost.blocks) == len(defn.blocks()) and cost.blocks[-1].height >= 1
    if cost.params < 1e6 and cost.activations < 1e7 and defn.resolution <= 64 and cost.macs < 2e7:
        network = build_network(defn, num_classes=3).eval()
        assert sum(p.numel() for p in network.parameters()) == cost_of(defn, num_classes=3).params
        with torch.inference_mode():
            answer = network(torch.zeros(1, 3, defn.resolution, defn.resolution))
        assert answer.shape == (1, 3) and answer.isfinite().all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("archs")


@examples(120)
@given(text=mutated_yaml(SMALL))
def test_whole_ones(folder, text):
    judged(text, folder)


@examples(50)
@given(text=mutated_yaml(DERIVED))
def test_derived_ones(folder, text):
    judged(text, folder)


def test_the_valid_ones_are_accepted(folder):
    for valid in (SMALL, DERIVED):
        (folder / "valid.yaml").write_text(yaml.safe_dump(valid))
        load_arch(folder / "valid.yaml")
