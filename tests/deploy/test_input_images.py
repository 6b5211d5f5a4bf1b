"""Images of folders, and sample images."""

import pytest

from fbnetv3.deploy.input_images import sample_classifier_images, sample_image_files
from fbnetv3.errors import DataError


def test_sample_images():
    photos, digits = sample_classifier_images(3), sample_classifier_images(1)
    assert len(photos) == 10 and {photo.mode for photo in photos} == {"RGB"}
    assert len(digits) == 32 and {digit.size for digit in digits} == {(8, 8)}
    assert max(digit.getextrema()[1] for digit in digits) == 255


def test_images_of_a_folder_are_evenly_spaced(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}").mkdir()
        (tmp_path / f"{i}" / "x.PNG").touch()
    assert [path.parent.name for path in sample_image_files(tmp_path)] == ["0", "1", "2", "3", "4"]
    assert [path.parent.name for path in sample_image_files(tmp_path, max_images=2)] == ["0", "2"]
    with pytest.raises(DataError, match="no such folder"):
        sample_image_files(tmp_path / "nowhere")
