"""Files of class names, and names that several classes share."""

import pytest

from fbnetv3.data.classes.class_names import read_class_names


@pytest.mark.parametrize("text", ["one\ntwo\n", "\ufeffone\r\ntwo\r\n", "one \n two\n\n"])
def test_names_without_what_editors_add(text, tmp_path):
    (tmp_path / "names.txt").write_text(text, newline="")
    assert read_class_names(tmp_path / "names.txt") == ["one", "two"]


def test_repeated_names_are_said(tmp_path, caplog):
    """Published lists of ImageNet's classes have two cranes: the bird and the machine."""
    (tmp_path / "names.txt").write_text("crane\nowl\ncrane\n")
    assert read_class_names(tmp_path / "names.txt") == ["crane", "owl", "crane"]
    assert "names.txt: several classes have the name crane, so that results cannot tell" in caplog.text
