#!/usr/bin/env python3
"""Put a folder of images into tar files, in webdataset's layout: `make_shards.py imagenet/train shards`."""

from pathlib import Path

from tqdm import tqdm

from fbnetv3.data.datasets import FolderDataset
from fbnetv3.data.samplers import EpochSampler
from fbnetv3.data.shards import CLASSES_FILE, IMAGES_A_SHARD, write_shards
from fbnetv3.errors import DataError, UsageError
from fbnetv3.utils.command_line import ArgumentParser, run_tool


def main(argv=None):
    parser = ArgumentParser(description="Write the images of a folder, in random order, into shards.")
    parser.add_argument("root", help="folder with a folder a class")
    parser.add_argument("output", help="folder for the shards")
    parser.add_argument("--split", default="train", help="train or val, the first part of their names")
    parser.add_argument("--images-a-shard", type=int, default=IMAGES_A_SHARD, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the order (default: %(default)s)")
    args = parser.parse_args(argv)
    data, output = FolderDataset(Path(args.root)), Path(args.output)

    def images():
        order = EpochSampler(len(data), 1, args.seed)
        for _, index in tqdm(order, unit="image", leave=False, disable=None):
            path, target = data.samples[index]
            yield Path(path).read_bytes(), Path(path).suffix.lower(), target

    classes, known = "\n".join(data.classes) + "\n", output / CLASSES_FILE
    if known.exists() and known.read_text() != classes:
        raise DataError(f"{known}: names other classes than {args.root} has; shards of all splits need the same")
    if old := sorted(output.glob(f"{args.split}-*.tar")):
        raise UsageError(f"{old[0]}: is there already; remove it and its like, or choose another folder")
    shards = write_shards(images(), output, args.split, args.images_a_shard)
    known.write_text(classes)
    print(f"{output}: {len(data)} images of {len(data.classes)} classes in {len(shards)} shards")


if __name__ == "__main__":
    run_tool(main)
