"""torchvision's EfficientNets as C4 detectors."""

import pytest
import torch
from detectron2.modeling import build_model
from torchvision.models import efficientnet_b0

from fbnetv3.detection import EfficientNetBackbone, get_config
from fbnetv3.errors import UsageError, WeightsError
from tests.detection.detectors import detect, image, train_step


@pytest.fixture
def cfg():
    cfg = get_config("faster_rcnn_torchvision_efficientnet_b0_C4")
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def test_training_and_inference(cfg):
    model = build_model(cfg)
    assert all(torch.isfinite(torch.tensor([*train_step(model, [image()]).values()])))
    assert len(detect(model, [image()])) == 1


def test_the_model_is_smaller_than_table_5s_baseline(cfg):
    """The width of EfficientNet's own squeeze-and-excite depends on a block's input, not on its expansion."""
    params = sum(p.numel() for p in build_model(cfg).parameters())
    assert 4_000_000 < params < 4_500_000


def test_torchvisions_weights_initialize_trunk_and_box_head(cfg, tmp_path):
    peer = efficientnet_b0().eval()
    torch.save(peer.state_dict(), tmp_path / "x.pth")
    cfg.MODEL.FBNETV3.WEIGHTS = str(tmp_path / "x.pth")
    model = build_model(cfg).eval()
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        maps = model.backbone(x)["res4"]
        assert torch.equal(maps, peer.features[:6](x))
        assert torch.equal(model.roi_heads.box_head.blocks(maps), peer.features[:8](x))


def test_wrong_networks_and_weights(cfg, tmp_path):
    with pytest.raises(UsageError, match="did you mean torchvision/efficientnet_b"):
        EfficientNetBackbone(arch="torchvision/efficientnet_b9")
    torch.save(efficientnet_b0().state_dict(), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="does not fit the network"):
        EfficientNetBackbone(arch="torchvision/efficientnet_b1", weights=tmp_path / "x.pth")
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    with pytest.raises(UsageError, match="set MODEL.BACKBONE.FREEZE_AT to 0"):
        build_model(cfg)
