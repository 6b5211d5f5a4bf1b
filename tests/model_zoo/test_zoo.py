"""The zoo: entries, configs, and weights that come along or from a server, some of which are hostile."""

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import fbnetv3
from fbnetv3 import model_zoo
from fbnetv3.arch import compound_scale, get_arch
from fbnetv3.data import build_dataset, build_loader
from fbnetv3.errors import UnknownNameError, UsageError, WeightsError
from fbnetv3.modeling import load_weights
from fbnetv3.training import evaluate
from fbnetv3.utils.downloads import PathManager, cached_path, download
from tests.modeling.test_weights import RunsCode, mobile_vision

A = "imagenet/fbnetv3_a.yaml"
DIGITS = "digits/fbnetv3_digits.yaml"
# What the authors publish: top-1 and top-5 on ImageNet in per cent, and the folder of the file.
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
    for entry in model_zoo.list():
        assert entry.weights and entry.source and entry.params and entry.macs
        assert entry.preprocessing.resolution == entry.resolution <= entry.preprocessing.resize
        assert entry.num_classes in (10, 1000)
        assert entry.arch.name == model_zoo.get_config(entry.name).MODEL.ARCH


@pytest.mark.parametrize("letter", PUBLISHED)
def test_published_figures_and_addresses(letter):
    entry = model_zoo.entry(f"imagenet/fbnetv3_{letter}")
    top1, top5, folder = PUBLISHED[letter]
    assert (entry.top1, entry.top5) == (top1, top5)
    base = "https://dl.fbaipublicfiles.com/fbnet/models/20201201/GtOtfw"
    assert model_zoo.get_checkpoint_url(entry.name) == f"{base}/{folder}/model.pth"


def test_the_authors_preprocessing():
    found = model_zoo.entry(A).preprocessing
    assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("ask", [model_zoo.get_config, model_zoo.get, model_zoo.entry, model_zoo.get_checkpoint_url])
def test_unknown_paths_suggest_close_ones(ask):
    with pytest.raises(UnknownNameError, match="did you mean imagenet/fbnetv3_a.yaml"):
        ask("imagenet/fbnet_v3_a.yaml")


def test_a_config_without_weights():
    assert model_zoo.get_config("imagenet/fbnetv3_a0").MODEL.ARCH == "fbnetv3_a0"
    with pytest.raises(UnknownNameError, match="no weights for 'imagenet/fbnetv3_a0'"):
        model_zoo.get("imagenet/fbnetv3_a0", trained=True)


def test_untrained():
    model = model_zoo.get(A, device="cpu")
    assert model.training
    assert (model.arch.name, model.num_classes) == ("fbnetv3_a", 1000)


def test_the_digits_network_works_offline_and_reaches_its_accuracy():
    entry = model_zoo.entry(DIGITS)
    assert Path(entry.weights).stat().st_size <= 3e6
    model = model_zoo.get(DIGITS, trained=True, device="cpu")
    data = build_dataset("digits", "", "val")
    loader = build_loader(data, entry.preprocessing.transform(), batch_size=120, training=False)
    found = evaluate(model, loader, torch.device("cpu"))
    assert found["top1"] == pytest.approx(entry.top1, abs=0.01)
    assert entry.top1 >= 97
    assert hashlib.sha256(Path(entry.weights).read_bytes()).hexdigest() == entry.sha256


def test_pretrained_by_name():
    model = fbnetv3.create_model("fbnetv3_digits", pretrained=True)
    other = model_zoo.get(DIGITS, trained=True, device="cpu")
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(model.eval()(x), other.eval()(x))
    assert fbnetv3.create_model("fbnetv3_digits", pretrained=True, num_classes=3).num_classes == 3
    assert fbnetv3.create_model("fbnetv3_digits", pretrained=True, features_only=True).feature_strides == (2, 4, 8, 16)


def test_pretrained_without_weights():
    with pytest.raises(UnknownNameError, match="no pretrained weights for 'fbnetv3_a0': did you mean fbnetv3_a"):
        fbnetv3.create_model("fbnetv3_a0", pretrained=True)


def test_pretrained_for_a_network_of_that_name_only():
    other = compound_scale(get_arch("fbnetv3_digits"), depth=2, name="fbnetv3_digits")
    with pytest.raises(UsageError, match="the zoo's are for other blocks"):
        fbnetv3.create_model(other, pretrained=True)


def test_configs_are_the_users_to_change():
    cfg = model_zoo.get_config(DIGITS)
    cfg.SOLVER.EPOCHS = 1
    assert model_zoo.get_config(DIGITS).SOLVER.EPOCHS == 30


def test_list_models():
    names = [f"fbnetv3_{letter}" for letter in "abcdefg"]
    assert fbnetv3.list_models(pretrained=True) == sorted(["fbnetv3_digits", *names])
    assert fbnetv3.list_models("*_a*_cifar") == ["fbnetv3_a0_cifar", "fbnetv3_a_cifar"]


def test_zoo_addresses():
    assert PathManager.get_local_path(f"zoo://{DIGITS}") == model_zoo.get_checkpoint_url(DIGITS)
    with PathManager.open("zoo://digits/fbnetv3_digits", "rb") as f:
        assert f.read(2) == b"PK"


def test_torch_hub():
    hub = Path(__file__).resolve().parents[2]
    model = torch.hub.load(str(hub), "fbnetv3_digits", source="local", pretrained=True)
    assert model.num_classes == 10


class Server(http.server.BaseHTTPRequestHandler):
    """Answers by the path: weights, an error, half of what it promises, a page, code."""

    files: dict[str, bytes] = {}
    hits: list[str] = []

    def do_GET(self):
        self.hits.append(self.path)
        if self.path.startswith("/missing"):
            return self.send_error(404)
        content = self.files["page.pth" if self.path.startswith("/page") else self.path.rpartition("/")[2]]
        self.send_response(200)
        if not self.path.startswith("/endless"):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.path.startswith(("/short", "/endless")) else content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """A server on this machine, with the weights of an FBNetV3 for digits in the authors' layout."""
    model = fbnetv3.create_model("fbnetv3_digits", num_classes=10)
    torch.save({"state_dict": mobile_vision(model), "model_ema": None}, tmp_path / "good.pth")
    torch.save(RunsCode(tmp_path / "trace"), tmp_path / "code.pth")
    Server.files = {name: (tmp_path / name).read_bytes() for name in ("good.pth", "code.pth")}
    Server.files["page.pth"] = b"<!DOCTYPE html><html><body>Sign in</body></html>"
    Server.hits = []
    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=instance.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{instance.server_port}"
    instance.shutdown()
    instance.server_close()


def fresh():
    return fbnetv3.create_model("fbnetv3_digits", num_classes=10)


def leftovers(cache):
    return [p for p in cache.rglob("*") if p.is_file() and not p.name.endswith(".lock")]


def test_a_download_is_cached(server, cache):
    model = fresh()
    for _ in range(2):
        assert load_weights(model, f"{server}/a/good.pth").layout == "mobile_vision"
    assert Server.hits == ["/a/good.pth"]
    assert leftovers(cache) == [cached_path(f"{server}/a/good.pth")]


def test_a_right_and_a_wrong_checksum(server, cache):
    right = hashlib.sha256(Server.files["good.pth"]).hexdigest()
    assert download(f"{server}/good.pth", right).read_bytes() == Server.files["good.pth"]
    with pytest.raises(WeightsError, match=f"SHA-256 is {right}, not 000; it was removed"):
        download(f"{server}/good.pth", "000")
    assert leftovers(cache) == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing/good.pth", "the server answers 404"),
        ("/short/good.pth", "the download broke off"),
        ("/endless/good.pth", "is corrupt or not a checkpoint .*; it was deleted from the cache"),
        ("/page/good.pth", "is a web page, not weights; it was deleted from the cache"),
    ],
)
def test_answers_that_are_no_weights(server, cache, path, message):
    with pytest.raises(WeightsError, match=message) as error:
        load_weights(fresh(), server + path)
    assert "\n" not in str(error.value)
    assert leftovers(cache) == []


def test_an_answer_that_would_run_code(server, tmp_path):
    for _ in range(2):
        with pytest.raises(WeightsError, match="could run code: refused$"):
            load_weights(fresh(), f"{server}/code.pth")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("url", ["http://h/../../etc/x.pth", "http://h/", "http:///x.pth", "http://h/a//x.pth"])
def test_addresses_that_name_no_file(url):
    with pytest.raises(UsageError, match="is not the address of a file"):
        download(url)


def test_every_address_has_a_place_of_its_own():
    urls = [f"http://{rest}" for rest in ("h/a/x.pth", "h/b/x.pth", "g/a/x.pth", "h/a/x.pth?s=1/b", "h/a/x.pth?s=2/b")]
    assert len({cached_path(url) for url in urls}) == 5
    assert len(cached_path("http://h/x.pth?sig=" + "0" * 500).name) < 40


@pytest.mark.parametrize("path", ["/missing/good.pth", "/short/good.pth"])
def test_the_remedy_names_address_and_place(server, path):
    with pytest.raises(WeightsError) as error:
        download(server + path)
    assert server + path in str(error.value)
    assert f"put it at {cached_path(server + path)}" in str(error.value)


def test_no_network(cache):
    with pytest.raises(WeightsError, match="cannot be downloaded .* put it at") as error:
        download("http://127.0.0.1:9/x/y.pth")
    assert str(cached_path("http://127.0.0.1:9/x/y.pth")) in str(error.value)


def test_a_file_put_in_place_by_hand_is_used(cache):
    """As the message about a missing network says."""
    place = cached_path(model_zoo.get_checkpoint_url(A))
    place.parent.mkdir(parents=True)
    torch.save({"state_dict": mobile_vision(fbnetv3.create_model("fbnetv3_a")), "model_ema": None}, place)
    assert fbnetv3.create_model("fbnetv3_a", pretrained=True).num_classes == 1000


def test_an_unwritable_cache(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FBNETV3_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="cannot be written .*: set FBNETV3_CACHE to a folder of yours"):
        download(f"{server}/good.pth")


def test_two_processes_at_once(server, cache):
    """Both get the whole file, and it is downloaded once."""
    script = "import sys; from fbnetv3.utils.files import download; print(download(sys.argv[1]).stat().st_size)"
    command = [sys.executable, "-c", script, f"{server}/good.pth"]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ})
        for _ in range(2)
    ]
    assert [int(process.communicate(timeout=120)[0]) for process in both] == [len(Server.files["good.pth"])] * 2
    assert Server.hits == ["/good.pth"]


def test_a_download_killed_in_the_middle_does_not_pass_for_whole(server, cache):
    """Its temporary file lies around; the next call downloads the whole."""
    place = cached_path(f"{server}/good.pth")
    place.parent.mkdir(parents=True)
    Path(f"{place}.tmp").write_bytes(Server.files["good.pth"][:1000])
    assert download(f"{server}/good.pth").read_bytes() == Server.files["good.pth"]
