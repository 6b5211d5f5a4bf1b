"""`fbnetv3 zoo`: the table of entries, and downloads."""

from pathlib import Path

from fbnetv3 import model_zoo


def test_all_entries(fbnetv3):
    out = fbnetv3("zoo").out
    entries = [*model_zoo.list_classifiers(), *model_zoo.list_detectors()]
    assert all(entry.name.removesuffix(".yaml") in out for entry in entries)
    line = next(line for line in out.splitlines() if line.startswith("imagenet/fbnetv3_a "))
    assert line.split()[:7] == ["imagenet/fbnetv3_a", "classification", "224", "8.60", "M", "357", "M"]


def test_a_pattern(fbnetv3):
    lines = fbnetv3("zoo", "coco/*").out.splitlines()[2:]
    assert len(lines) == len(model_zoo.list_detectors())
    assert all(line.startswith("coco/") for line in lines)


def test_a_download_prints_the_path(fbnetv3):
    ran = fbnetv3("zoo", "--download", "digits/fbnetv3_digits")
    assert ran.code == 0 and Path(ran.out.strip().partition(": ")[2]).is_file()


def test_an_unknown_entry(fbnetv3):
    ran = fbnetv3("zoo", "digits/fbnetv3")
    assert ran.code == 2 and "did you mean digits/fbnetv3_digits.yaml" in ran.err
