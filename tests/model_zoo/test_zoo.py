"""Entries, configs and weights of the model zoo."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fbnetv3
from fbnetv3 import model_zoo
from fbnetv3.arch import compound_scale, configs_folder, get_arch
from fbnetv3.data import Preprocessing, build_dataset, build_loader
from fbnetv3.errors import UnknownNameError, UsageError, WeightsError
from fbnetv3.model_zoo.pretrained import load_classifier_from_config, load_classifier_from_name
from fbnetv3.training import evaluate
from fbnetv3.utils.downloads import cached_path, local_path
from tests.modeling.weight_files import mobile_vision, randomized

A = "imagenet/fbnetv3_a.yaml"
DIGITS = "digits/fbnetv3_digits.yaml"
# What the authors publish: top-1 and top-5 on ImageNet in percent, and the folder of the file.
PUBLISHED = {
    "a": (79.574, 94.712, "FBNetV3_A_f235707940"),
    "b": (80.206, 94.944, "FBNetV3_B_f233607847"),
    "c": (80.826, 95.286, "FBNetV3_C_f234529537"),
    "d": (81.042, 95.436, "FBNetV3_D_f231225742"),
    "e": (81.254, 95.488, "FBNetV3_E_f230158956"),
    "f": (82.062, 95.874, "FBNetV3_F_f230161092"),
    "g": (82.794, 96.3, "FBNetV3_G_f226438997"),
}


def test_every_entry_is_complete():
    for entry in model_zoo.list_classifiers():
        assert entry.weights and entry.source and entry.params and entry.macs
        assert entry.preprocessing.resolution == entry.resolution <= entry.preprocessing.resize
        assert entry.num_classes in (10, 1000)
        assert entry.arch.name == model_zoo.get_config(entry.name).MODEL.ARCH


@pytest.mark.parametrize("letter", PUBLISHED)
def test_published_figures_and_urls(letter):
    entry = model_zoo.entry(f"imagenet/fbnetv3_{letter}")
    top1, top5, folder = PUBLISHED[letter]
    assert (entry.top1, entry.top5) == (top1, top5)
    base = "https://dl.fbaipublicfiles.com/fbnet/models/20201201/GtOtfw"
    assert model_zoo.get_checkpoint_url(entry.name) == f"{base}/{folder}/model.pth"


def test_the_authors_preprocessing():
    preprocessing = model_zoo.entry(A).preprocessing
    assert (preprocessing.mean, preprocessing.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    "function", [model_zoo.get_config, model_zoo.get, model_zoo.entry, model_zoo.get_checkpoint_url]
)
def test_unknown_paths_suggest_similar_ones(function):
    with pytest.raises(UnknownNameError, match="did you mean imagenet/fbnetv3_a.yaml"):
        function("imagenet/fbnet_v3_a.yaml")


@pytest.mark.parametrize("path", ["ablations/recipes/recipe_0", "nars/spaces/fbnetv3", "archs/fbnetv3_a"])
def test_other_files_are_not_configs(path):
    with pytest.raises(UnknownNameError, match=f"no config '{path}' in the model zoo") as error:
        model_zoo.get_config(path)
    assert "recipe_" not in str(error.value).removeprefix(f"no config '{path}'")


def test_a_config_without_weights():
    assert model_zoo.get_config("imagenet/fbnetv3_a0").MODEL.ARCH == "fbnetv3_a0"
    with pytest.raises(UnknownNameError, match="no weights for 'imagenet/fbnetv3_a0'"):
        model_zoo.get("imagenet/fbnetv3_a0", trained=True)


def test_random_weights():
    model = model_zoo.get(A, device="cpu")
    assert model.training
    assert (model.arch.name, model.num_classes) == ("fbnetv3_a", 1000)


def test_the_digits_network_works_offline_and_reaches_its_accuracy():
    entry = model_zoo.entry(DIGITS)
    assert Path(entry.weights).stat().st_size <= 3e6
    model = model_zoo.get(DIGITS, trained=True, device="cpu")
    data = build_dataset("digits", "", "val")
    loader = build_loader(data, entry.preprocessing.transform(), batch_size=120, training=False)
    metrics = evaluate(model, loader, torch.device("cpu"))
    assert metrics["top1"] == pytest.approx(entry.top1, abs=0.01)
    assert entry.top1 >= 97
    assert hashlib.sha256(Path(entry.weights).read_bytes()).hexdigest() == entry.sha256


def test_pretrained_by_name():
    model = fbnetv3.create_model("fbnetv3_digits", pretrained=True)
    other = model_zoo.get(DIGITS, trained=True, device="cpu")
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(model.eval()(x), other.eval()(x))
    assert fbnetv3.create_model("fbnetv3_digits", pretrained=True, num_classes=3).num_classes == 3
    assert fbnetv3.create_model("fbnetv3_digits", pretrained=True, features_only=True).feature_strides == (
        2,
        4,
        8,
        16,
    )


def test_pretrained_without_weights():
    with pytest.raises(
        UnknownNameError, match="no pretrained weights for 'fbnetv3_a0': did you mean fbnetv3_a"
    ):
        fbnetv3.create_model("fbnetv3_a0", pretrained=True)


def test_pretrained_needs_the_same_blocks():
    other = compound_scale(get_arch("fbnetv3_digits"), depth=2, name="fbnetv3_digits")
    with pytest.raises(UsageError, match="belong to an architecture with different blocks"):
        fbnetv3.create_model(other, pretrained=True)


def test_a_config_is_a_copy():
    cfg = model_zoo.get_config(DIGITS)
    cfg.SOLVER.EPOCHS = 1
    assert model_zoo.get_config(DIGITS).SOLVER.EPOCHS == 30


def test_list_models():
    names = [f"fbnetv3_{letter}" for letter in "abcdefg"]
    others = ["fbnetv3_b_same_padding", "fbnetv3_digits"]  # with timm's weights, with the project's own
    assert fbnetv3.list_models(pretrained=True) == sorted([*names, *others])
    assert fbnetv3.list_models("*_det") == []  # only for detectors
    assert fbnetv3.list_models("*_a*_cifar") == ["fbnetv3_a0_cifar", "fbnetv3_a_cifar"]


def test_zoo_paths():
    assert str(local_path(f"zoo://{DIGITS}")) == model_zoo.get_checkpoint_url(DIGITS)
    assert local_path("zoo://digits/fbnetv3_digits").suffix == ".pth"


def test_torch_hub():
    hub = Path(__file__).resolve().parents[2]
    model = torch.hub.load(str(hub), "fbnetv3_digits", source="local", pretrained=True)
    assert model.num_classes == 10


def test_a_file_placed_in_the_cache_by_hand_is_used(cache):
    """As the error of a failed download advises."""
    path = cached_path(model_zoo.get_checkpoint_url(A))
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": mobile_vision(fbnetv3.create_model("fbnetv3_a")), "model_ema": None}, path)
    assert fbnetv3.create_model("fbnetv3_a", pretrained=True).num_classes == 1000


# timm's networks: architecture, file, sides of training and evaluation, and accuracies in results-imagenet.csv
TIMM = {
    "b": ("fbnetv3_b_same_padding", "fbnetv3_b_224-ead5d2a1.pth", 256, 79.142, 94.742),
    "d": ("fbnetv3_d", "fbnetv3_d_224-c98bce42.pth", 256, 79.682, 94.944),
    "g": ("fbnetv3_g", "fbnetv3_g_240-0b1df83b.pth", 288, 82.036, 96.058),
}


@pytest.mark.parametrize("letter", TIMM)
def test_entries_of_timms_networks(letter):
    arch, file, side, top1, top5 = TIMM[letter]
    entry = model_zoo.entry(f"imagenet/fbnetv3_{letter}_timm")
    assert (entry.arch.name, entry.top1, entry.top5, entry.tag) == (arch, top1, top5, "ra2_in1k")
    base = "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-weights"
    assert entry.weights == f"{base}/{file}"
    assert entry.sha256 == file[:-4].rpartition("-")[2]
    # timm resizes the short side to the evaluation size over 0.95, rounded down
    assert entry.preprocessing == Preprocessing(
        side, int(side / 0.95), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear"
    )


@pytest.mark.parametrize("letter", TIMM)
def test_timms_own_metadata(letter):
    timm = pytest.importorskip("timm")
    arch, *_ = TIMM[letter]
    cfg = timm.get_pretrained_cfg(f"fbnetv3_{letter}")
    entry = model_zoo.entry_for_arch(arch, "ra2_in1k")
    assert cfg.tag == entry.tag and cfg.url.rpartition("/")[2] == entry.weights.rpartition("/")[2]
    assert (cfg.test_input_size[1], cfg.crop_pct) == (entry.resolution, 0.95)
    assert (cfg.mean, cfg.std) == (entry.preprocessing.mean, entry.preprocessing.std)
    assert cfg.interpolation == entry.preprocessing.interpolation


def place_timms_weights(letter):
    """Save random weights of timm's network where its download would be."""
    timm = pytest.importorskip("timm")
    network = randomized(timm.create_model(f"fbnetv3_{letter}"))
    path = cached_path(model_zoo.get_checkpoint_url(f"imagenet/fbnetv3_{letter}_timm"))
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    return network, path


@pytest.mark.parametrize("letter", TIMM)
def test_timms_weights_give_timms_outputs(letter, monkeypatch):
    network, _ = place_timms_weights(letter)
    arch, file, *_ = TIMM[letter]
    digest = file[:-4].rpartition("-")[2]
    monkeypatch.setattr("fbnetv3.utils.downloads.file_sha256", lambda path: digest + 56 * "0")
    model = fbnetv3.create_model(f"{arch}.ra2_in1k", pretrained=True).eval()
    assert model.pretrained_cfg["tag"] == "ra2_in1k"
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)
        assert (model(x) - expected).abs().max() < 1e-4 * expected.abs().max()
    # By the path of the config as well, also where the architecture's default weights are others
    zoo_model = model_zoo.get(f"imagenet/fbnetv3_{letter}_timm", trained=True, device="cpu").eval()
    classifier = load_classifier_from_name(f"imagenet/fbnetv3_{letter}_timm")
    file = configs_folder() / f"imagenet/fbnetv3_{letter}_timm.yaml"
    from_config = load_classifier_from_config(file, weights="published")
    assert from_config.preprocessing == model_zoo.entry(f"imagenet/fbnetv3_{letter}_timm").preprocessing
    for other in (zoo_model, classifier.model, from_config.model):
        weights = other.state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_a_checksum_may_be_given_by_its_beginning():
    _, path = place_timms_weights("b")
    entry = model_zoo.entry("imagenet/fbnetv3_b_timm")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert replace(entry, sha256=digest[:8]).local_weights() == path
    with pytest.raises(WeightsError, match=f"SHA-256 is {digest}, expected ead5d2a1; the file was deleted"):
        fbnetv3.create_model("fbnetv3_b_same_padding", pretrained=True)
    assert not path.exists()


def test_tags():
    assert model_zoo.entry_for_arch("fbnetv3_d").name == "imagenet/fbnetv3_d.yaml"
    assert model_zoo.entry_for_arch("fbnetv3_d", "ra2_in1k").name == "imagenet/fbnetv3_d_timm.yaml"
    assert fbnetv3.create_model("fbnetv3_d.ra2_in1k").pretrained_cfg["input_size"] == (3, 256, 256)
    assert fbnetv3.create_model("fbnetv3_d").pretrained_cfg["input_size"] == (3, 248, 248)
    with pytest.raises(
        UnknownNameError, match="no pretrained weights 'ra_in1k' for 'fbnetv3_d': did you mean"
    ):
        fbnetv3.create_model("fbnetv3_d.ra_in1k")


@pytest.mark.parametrize("name", fbnetv3.list_models())
def test_the_pretrained_config_gives_the_same_size_before_the_crop(name):
    """timm divides the side by the ratio and rounds down."""
    cfg = fbnetv3.create_model(name).pretrained_cfg
    entry = model_zoo.default_entry(get_arch(name))
    resize = entry.preprocessing.resize if entry else get_arch(name).resize
    assert int(cfg["input_size"][1] / cfg["crop_pct"]) == resize
