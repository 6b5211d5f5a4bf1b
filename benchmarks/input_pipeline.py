"""Images per second that reach the training loop, normalized, against timm's loader with the same transforms.

Both read a folder in ImageNet's layout with the same number of worker processes, at 224 pixels and batch 64: random
resized crop, flip, bilinear interpolation, normalization. Each side has its own process, with fbnetv3 set up as
in its tools. Goal: at least 1.5 times as many.
"""

import argparse
from pathlib import Path

import timm
import torch
from measure import SideProcess, compare, report_comparison, serve_calls
from timm.data import ImageDataset, create_loader, create_transform

from fbnetv3.data import Preprocessing, build_loader, train_transform
from fbnetv3.data.datasets import FolderDataset
from fbnetv3.modeling.cpu.malloc import keep_freed_memory

BATCH = 64
RESOLUTION = 224
GOAL = 1.5
CPU = torch.device("cpu")
PREPROCESSING = Preprocessing(RESOLUTION, 256)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="folder with one folder per class")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", choices=("fbnetv3", "timm"), help="serve epochs to the comparing process")
    args = parser.parse_args()
    if args.side:
        build_epoch = {"fbnetv3": fbnetv3_epoch, "timm": timm_epoch}[args.side]
        serve_calls(build_epoch(args.root, args.workers))
        return
    check_pixels(args.root)
    sides = [
        SideProcess(args.root, "--workers", args.workers, "--side", side) for side in ("fbnetv3", "timm")
    ]
    num_images, num_peer_images = (int(side()) for side in sides)
    assert num_images == num_peer_images
    result = compare(*sides, rounds=args.rounds)
    name = f"an epoch of {num_images} images, {args.workers} workers, timm {timm.__version__}"
    report_comparison(name, result, GOAL, "timm")
    for side in sides:
        side.close()
    print(f"images/s: fbnetv3 {num_images / result['fbnetv3']:.0f}, timm {num_images / result['peer']:.0f}")


def fbnetv3_epoch(root, workers):
    """Return a function that loads an epoch and returns its number of images."""
    keep_freed_memory()
    transform = train_transform(
        PREPROCESSING,
        crop="random_resized",
        crop_scale=(0.08, 1.0),
        crop_padding=0,
        flip=True,
        normalize=False,
    )
    arguments = {"batch_size": BATCH, "training": True, "workers": workers, "preprocessing": PREPROCESSING}
    loader = build_loader(FolderDataset(Path(root)), transform, **arguments)
    return lambda: sum(len(batch.to(CPU, torch.contiguous_format)[0]) for batch in loader)


def timm_epoch(root, workers):
    """Return a function that loads an epoch with timm and returns its number of images."""
    loader = create_loader(
        ImageDataset(root),
        (3, RESOLUTION, RESOLUTION),
        BATCH,
        is_training=True,
        num_workers=workers,
        interpolation="bilinear",
        color_jitter=None,
        device=CPU,
    )
    return lambda: sum(len(images) for images, _ in loader)


def check_pixels(root):
    """Check that evaluation, which has no random transforms, gives the same pixels except for rounding."""
    dataset = FolderDataset(Path(root))
    transform = PREPROCESSING.transform(normalize=False)
    size = (3, RESOLUTION, RESOLUTION)
    reference = create_transform(
        size, interpolation="bilinear", crop_pct=RESOLUTION / 256, use_prefetcher=True
    )
    peer_dataset = ImageDataset(root, transform=reference)
    differences = torch.stack(
        [
            (transform(dataset[i][0]).int() - torch.as_tensor(peer_dataset[i][0]).int()).abs().float()
            for i in range(0, len(dataset), 10)
        ]
    )
    print(
        f"pixels differ by {differences.mean():.3f} of 255 levels on average, {differences.max():.0f} at most"
    )
    assert differences.mean() < 0.5


if __name__ == "__main__":
    main()
