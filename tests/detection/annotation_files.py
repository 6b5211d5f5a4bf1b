"""The same small dataset in the formats of COCO, LVIS, YOLO, Pascal VOC and CSV."""

import csv
import json
from xml.etree import ElementTree

import numpy as np
import yaml
from PIL import Image

CLASSES = ["cat", "dog", "owl"]
SIZES = [(128, 64), (64, 128)]  # powers of two: fractions of them are exact
SPLITS = {"train": 6, "val": 3}


def draw_split(folder, split, count):
    """Write images of rectangles in a color per class. Return each file's [(class, x, y, width, height)]."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(split))
    contents = {}
    for number in range(count):
        width, height = SIZES[number % 2]
        pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        boxes = []
        for name in CLASSES[: 3 if number < 3 else number % 3]:  # some images have no objects
            box_width, box_height = (int(side) for side in rng.integers(12, 40, 2))
            x, y = int(rng.integers(0, width - box_width)), int(rng.integers(0, height - box_height))
            pixels[y : y + box_height, x : x + box_width, CLASSES.index(name)] += 180
            boxes.append((name, x, y, box_width, box_height))
        Image.fromarray(pixels).save(folder / f"{split}_{number}.png")
        contents[f"{split}_{number}.png"] = boxes
    return contents


def write_formats(folder):
    """Write the dataset in each format. Return what names it in a config, by format: DATASETS.CUSTOM.DATA."""
    data = {}
    for split, count in SPLITS.items():
        contents = draw_split(folder / "yolo" / "images" / split, split, count)
        for name, write in WRITERS.items():
            data[name] = write(folder, split, contents)
    return data


def _link_images(folder, split, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(folder / "yolo" / "images" / split)


def write_coco(folder, split, contents):
    """Write `train.json` next to the images in `train`."""
    root = folder / "coco"
    _link_images(folder, split, root / split)
    (root / f"{split}.json").write_text(json.dumps(coco_content(folder, split, contents)))
    return root


def coco_content(folder, split, contents):
    """Return the annotations in COCO's format."""
    images, annotations = [], []
    for number, (file, boxes) in enumerate(contents.items(), 1):
        width, height = Image.open(folder / "yolo" / "images" / split / file).size
        images.append({"id": number, "file_name": file, "width": width, "height": height})
        for name, *box in boxes:
            annotation = {"id": len(annotations) + 1, "image_id": number, "bbox": box, "iscrowd": 0}
            annotation |= {"category_id": CLASSES.index(name) + 1, "area": box[2] * box[3]}
            annotations.append(annotation)
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_lvis(folder, split, contents):
    """Write `train.json` with URLs instead of file names."""
    root = folder / "lvis"
    _link_images(folder, split, root / split)
    content = coco_content(folder, split, contents)
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/{split}/{image.pop('file_name')}"
        image["neg_category_ids"] = image["not_exhaustive_category_ids"] = []
    (root / f"{split}.json").write_text(json.dumps(content))
    return root


def write_yolo(folder, split, contents):
    """Write label files and `data.yaml`; images without objects have an empty file or none."""
    root = folder / "yolo"
    labels = root / "labels" / split
    labels.mkdir(parents=True)
    for number, (file, boxes) in enumerate(contents.items()):
        width, height = Image.open(root / "images" / split / file).size
        lines = [
            f"{CLASSES.index(name)} {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}\n"
            for name, x, y, w, h in boxes
        ]
        if boxes or number % 2:
            (labels / file).with_suffix(".txt").write_text("".join(lines))
    values = {
        "path": str(root),
        "train": "images/train",
        "val": "images/val",
        "names": dict(enumerate(CLASSES)),
    }
    (root / "data.yaml").write_text(yaml.safe_dump(values))
    return root / "data.yaml"


def write_voc(folder, split, contents):
    """Write Annotations, JPEGImages and ImageSets; corners are one-based and inclusive."""
    root = folder / "voc"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for file, boxes in contents.items():
        (root / "JPEGImages" / file).symlink_to(folder / "yolo" / "images" / split / file)
        tree = ElementTree.Element("annotation")
        ElementTree.SubElement(tree, "filename").text = file
        for name, x, y, w, h in boxes:
            add_voc_object(tree, name, x + 1, y + 1, x + w, y + h)
        ElementTree.ElementTree(tree).write((root / "Annotations" / file).with_suffix(".xml"))
    stems = [file.removesuffix(".png") for file in contents]
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems))
    return root


def add_voc_object(tree, name, *corners, **more):
    """Add an object with the corners xmin, ymin, xmax, ymax to an XML tree."""
    element = ElementTree.SubElement(tree, "object")
    for key, value in {"name": name, **more}.items():
        ElementTree.SubElement(element, key).text = str(value)
    box = ElementTree.SubElement(element, "bndbox")
    for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
        ElementTree.SubElement(box, key).text = str(value)


def write_csv_boxes(folder, split, contents):
    """Write `train.csv` with the images in `images`; an image without objects has a row without a box."""
    root = folder / "csv"
    (root / "images").mkdir(parents=True, exist_ok=True)
    with (root / f"{split}.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["image", "x0", "y0", "x1", "y1", "class"])
        for file, boxes in contents.items():
            (root / "images" / file).symlink_to(folder / "yolo" / "images" / split / file)
            writer.writerows([file, x, y, x + w, y + h, name] for name, x, y, w, h in boxes)
            if not boxes:
                writer.writerow([file, "", "", "", "", ""])
    return root


WRITERS = {
    "coco": write_coco,
    "lvis": write_lvis,
    "yolo": write_yolo,
    "voc": write_voc,
    "csv": write_csv_boxes,
}
