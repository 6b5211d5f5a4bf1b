"""A model file that cannot be read is named together with the runtime, in every format."""

import shutil

import pytest

from fbnetv3.deploy import FORMATS
from fbnetv3.deploy.formats.export_format import get_format
from fbnetv3.errors import ExportError

CORRUPTIONS = {
    "empty": lambda content: b"",
    "junk": lambda content: b"junk" * 100,
    "short": lambda content: content[: len(content) // 2],
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("format", FORMATS.names())
def test_a_corrupt_model(format, corruption, exported, tmp_path):
    folder = shutil.copytree(exported(format), tmp_path / "copy")
    export_format = get_format(format)
    path = folder / export_format.file_name
    runtime = export_format.open(path).name
    path.write_bytes(CORRUPTIONS[corruption](path.read_bytes()))
    with pytest.raises(ExportError) as error:
        export_format.open(path)
    assert str(error.value).startswith(f"{path}: {runtime} cannot read it; export it again")
