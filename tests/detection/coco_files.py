"""Small COCO-format datasets for tests."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def save_image(path, height=48, width=64, mode="RGB", seed=0, **arguments):
    """Write an image of noise; keyword arguments are passed to Pillow's save."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 2**16, (height, width), dtype=np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
    image.save(path, **arguments)


def exif_with_orientation(tag):
    """Return EXIF data with an orientation tag."""
    exif = Image.Exif()
    exif[274] = tag
    return exif


def annotation(id=1, image_id=1, category_id=1, bbox=(8, 8, 24, 16), **more):
    """Return a box annotation with all of COCO's keys."""
    return {
        "id": id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": list(bbox),
        "area": bbox[2] * bbox[3],
        "iscrowd": 0,
        **more,
    }


def dataset(images=2, annotations=None, classes=("cat", "dog")):
    """Return the content of an annotation file for images of 64 x 48 pixels."""
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(1, images + 1)
        ],
        "annotations": [annotation(i, i) for i in range(1, images + 1)]
        if annotations is None
        else annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, 1)],
    }


def save_dataset(folder, data=None, images=True):
    """Write `instances.json` and the images that it lists. Return the file and the image folder."""
    data = dataset() if data is None else data
    root = folder / "images"
    root.mkdir(parents=True, exist_ok=True)
    for image in data["images"] if images else ():
        save_image(root / image["file_name"], image["height"], image["width"])
    file = folder / "instances.json"
    file.write_text(json.dumps(data))
    return file, root


def write_with_categories(source, target, names, ids=None):
    """Copy an annotation file with other category names and ids, in the order of its own ids. Return the copy."""
    content = json.loads(Path(source).read_text())
    old_ids = sorted(category["id"] for category in content["categories"])
    new_id = dict(zip(old_ids, ids or old_ids, strict=True))
    content["categories"] = [
        {"id": new_id[old], "name": name} for old, name in zip(old_ids, names, strict=True)
    ]
    for box in content["annotations"]:
        box["category_id"] = new_id[box["category_id"]]
    target.write_text(json.dumps(content))
    return target
