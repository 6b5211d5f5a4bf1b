#!/usr/bin/env python3
"""Pack a folder of images into tar files with webdataset's layout: `make_shards.py imagenet/train shards`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from fbnetv3.data.datasets import FolderDataset
from fbnetv3.data.samplers import EpochSampler
from fbnetv3.data.shards import CLASSES_FILE, IMAGES_PER_SHARD, write_shards
from fbnetv3.errors import DataError, UsageError
from fbnetv3.utils.command_line import ArgumentParser, positive_int, run_tool
from fbnetv3.utils.files import write_text


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description="Write the images of a folder into shards, in random order.")
    parser.add_argument("root", help="folder with one subfolder per class")
    parser.add_argument("output", help="folder for the shards")
    parser.add_argument(
        "--split", default="train", choices=("train", "val"), help="split; shard names begin with it"
    )
    parser.add_argument(
        "--images-per-shard",
        type=positive_int,
        default=IMAGES_PER_SHARD,
        metavar="N",
        help="maximum number of images per tar file",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of the image order")
    args = parser.parse_args(argv)
    dataset = FolderDataset(Path(args.root), allow_empty_classes=args.split != "train")
    output = Path(args.output)

    # The shards of all splits need the same classes, and old shards would be mixed with new ones
    classes = "\n".join(dataset.classes) + "\n"
    classes_file = output / CLASSES_FILE
    if classes_file.exists() and classes_file.read_text() != classes:
        raise DataError(
            f"{classes_file}: the classes differ from those of {args.root}; all splits need the same ones"
        )
    if old_shards := sorted(output.glob(f"{args.split}-*.tar")):
        raise UsageError(
            f"{old_shards[0]}: exists already; delete the old shards or choose a different folder"
        )

    shards = write_shards(shuffled_images(dataset, args.seed), output, args.split, args.images_per_shard)
    write_text(classes_file, classes)
    print(f"{output}: {len(dataset)} images of {len(dataset.classes)} classes in {len(shards)} shards")


def shuffled_images(dataset: FolderDataset, seed: int) -> Iterator[tuple[bytes, str, int]]:
    """Yield content, suffix and class index of each image in a random order."""
    order = EpochSampler(len(dataset), batch_size=1, seed=seed)
    for _, index in tqdm(order, unit="image", leave=False, disable=None):
        path, target = dataset.samples[index]
        yield Path(path).read_bytes(), Path(path).suffix.lower(), target


if __name__ == "__main__":
    run_tool(main)
