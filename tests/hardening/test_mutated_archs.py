"""Architecture files with mistakes: either an error that names the field, or a network that works."""

import pytest
import torch
import yaml
from hypothesis import event, given

from fbnetv3.arch import ArchError, compute_cost, configs_folder, dump_arch, load_arch
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
                {
                    "block": "mbconv",
                    "kernel": 3,
                    "expansion": 2,
                    "channels": 8,
                    "repeat": 2,
                    "se": "hsigmoid",
                },
                {
                    "block": "mbconv",
                    "kernel": 5,
                    "expansion": 1.5,
                    "channels": 16,
                    "stride": 2,
                    "dw_padding": 1,
                },
            ]
        },
        {
            "rows": [
                {"block": "mbconv_det", "kernel": 3, "expansion": 1, "channels": 16, "dw_group_width": 8}
            ]
        },
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("archs")


def check_file(text, folder):
    """Load an architecture; if it is accepted, it round-trips, has a cost, and builds a network of that cost."""
    path = folder / "mutated.yaml"
    path.write_text(text)
    try:
        arch = load_arch(path)
    except UserError as error:
        assert isinstance(error, ArchError) and str(error)
        return
    event("accepted")
    dumped = folder / "dumped.yaml"
    dumped.write_text(dump_arch(arch))
    assert load_arch(dumped) == arch
    cost = compute_cost(arch)
    assert cost.macs > 0 and cost.params > 0 and cost.activations > 0
    assert len(cost.blocks) == len(arch.blocks()) and cost.blocks[-1].height >= 1
    if cost.params < 1e6 and cost.activations < 1e7 and arch.resolution <= 64 and cost.macs < 2e7:
        network = build_network(arch, num_classes=3).eval()
        assert sum(p.numel() for p in network.parameters()) == compute_cost(arch, num_classes=3).params
        with torch.inference_mode():
            logits = network(torch.zeros(1, 3, arch.resolution, arch.resolution))
        assert logits.shape == (1, 3) and logits.isfinite().all()


@examples(120)
@given(text=mutated_yaml(SMALL))
def test_mutated_architectures(folder, text):
    check_file(text, folder)


@examples(50)
@given(text=mutated_yaml(DERIVED))
def test_mutated_derived_architectures(folder, text):
    check_file(text, folder)


@pytest.mark.parametrize("valid", [SMALL, DERIVED], ids=["small", "derived"])
def test_the_unmutated_files_are_accepted(folder, valid):
    (folder / "valid.yaml").write_text(yaml.safe_dump(valid))
    load_arch(folder / "valid.yaml")
