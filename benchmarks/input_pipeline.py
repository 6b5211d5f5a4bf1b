"""Images a second that reach the training loop, normalised, against timm's loader with the same transforms.

Both read a folder in ImageNet's layout with the same number of worker processes, at 224 pixels, batch 64: random
resized crop, mirror, normalisation, bilinear; each in a process of its own, ours set up as our tools are.
Goal: at least 1.5 times as many.
"""

import argparse
from pathlib import Path

import timm
import torch
from measure import Side, compare, report, serve
from timm.data import ImageDataset, create_loader, create_transform

from fbnetv3.data import Preprocessing, build_loader, train_transform
from fbnetv3.data.datasets import FolderDataset
from fbnetv3.modeling.cpu.malloc import keep_freed_memory

BATCH, SIDE, GOAL = 64, 224, 1.5
CPU = torch.device("cpu")
PREPROCESSING = Preprocessing(SIDE, 256)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="folder with a folder a class")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", choices=("ours", "theirs"), help="serve epochs to the process that compares")
    args = parser.parse_args()
    if args.side:
        serve({"ours": ours, "theirs": theirs}[args.side](args.root, args.workers))
        return
    check_pixels(args.root)
    sides = [Side(args.root, "--workers", args.workers, "--side", side) for side in ("ours", "theirs")]
    images, others = (int(side()) for side in sides)
    assert images == others
    found = compare(*sides, rounds=args.rounds)
    report(f"an epoch of {images} images, {args.workers} workers, timm {timm.__version__}", found, GOAL, "timm")
    for side in sides:
        side.close()
    print(f"ours {images / found['ours']:.0f}, theirs {images / found['theirs']:.0f} images a second")


def ours(root, workers):
    keep_freed_memory()
    crop = {"crop": "random_resized", "crop_scale": (0.08, 1.0), "crop_padding": 0}
    transform = train_transform(PREPROCESSING, **crop, flip=True, normalize=False)
    arguments = {"batch_size": BATCH, "training": True, "workers": workers, "normalize": PREPROCESSING}
    loader = build_loader(FolderDataset(Path(root)), transform, **arguments)
    return lambda: sum(len(batch.to(CPU, torch.contiguous_format)[0]) for batch in loader)


def theirs(root, workers):
    loader = create_loader(
        ImageDataset(root),
        (3, SIDE, SIDE),
        BATCH,
        is_training=True,
        num_workers=workers,
        interpolation="bilinear",
        color_jitter=None,
        device=CPU,
    )
    return lambda: sum(len(images) for images, _ in loader)


def check_pixels(root):
    """Evaluation's pixels, which nothing random goes into, are the same but for rounding."""
    data, transform = FolderDataset(Path(root)), PREPROCESSING.transform(normalize=False)
    reference = create_transform((3, SIDE, SIDE), interpolation="bilinear", crop_pct=SIDE / 256, use_prefetcher=True)
    dataset = ImageDataset(root, transform=reference)
    differences = torch.stack(
        [
            (transform(data[i][0]).int() - torch.as_tensor(dataset[i][0]).int()).abs().float()
            for i in range(0, len(data), 10)
        ]
    )
    print(f"pixels differ by {differences.mean():.3f} of 255 levels on average, {differences.max():.0f} at most")
    assert differences.mean() < 0.5


if __name__ == "__main__":
    main()
