"""Keypoints by name, as checkpoints and exported folders record them."""

import json

import pytest

from fbnetv3.data.classes.keypoint_skeleton import KeypointSkeleton, skeleton_from_dict

SKELETON = KeypointSkeleton(("nose", "l", "r"), (("l", "r"),), (("r", "nose"), ("nose", "l")))


def test_plain_values_give_it_back():
    assert skeleton_from_dict(json.loads(json.dumps(SKELETON.to_dict()))) == SKELETON
    assert skeleton_from_dict(None) is None


def test_lines_by_index():
    assert SKELETON.line_indices == [(2, 0), (0, 1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("a", "a"),), "names of keypoints are repeated"),
        ((("a", "b"), (("a", "c"),)), "'a', 'c'. are not two of the keypoints"),
        ((("a", "b"), (), (("a",),)), "'a'. are not two of the keypoints"),
    ],
)
def test_wrong_skeletons(arguments, message):
    with pytest.raises(ValueError, match=message):
        KeypointSkeleton(*arguments)
