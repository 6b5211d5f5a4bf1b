"""Images of folders, and sample images."""

import pytest
from PIL import Image

from fbnetv3.deploy.input_images import read_image_folder, sample_images
from fbnetv3.errors import DataError


def test_sample_images():
    photos, digits = sample_images(3), sample_images(1)
    assert len(photos) == 10 and {photo.mode for photo in photos} == {"RGB"}
    assert len(digits) == 32 and {digit.size for digit in digits} == {(8, 8)}
    assert max(digit.getextrema()[1] for digit in digits) == 255


def test_images_of_a_folder_are_evenly_spaced(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}").mkdir()
        Image.new("RGB", (4 + i, 4)).save(tmp_path / f"{i}" / "x.PNG")
    assert [image.size[0] for image in read_image_folder(tmp_path)] == [4, 5, 6, 7, 8]
    assert [image.size[0] for image in read_image_folder(tmp_path, max_images=2)] == [4, 6]
    with pytest.raises(DataError, match="no such folder"):
        read_image_folder(tmp_path / "nowhere")
