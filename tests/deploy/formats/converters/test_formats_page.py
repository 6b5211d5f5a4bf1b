"""The table of docs/formats.md is that of `--format all`, here and now."""

import pytest

from fbnetv3.commands import export
from fbnetv3.deploy.collection_index import read_index
from fbnetv3.deploy.exported_collection import TABLE_FILE
from tests.pages import ROOT

for package in (
    "onnxruntime",
    "openvino",
    "executorch",
    "litert_torch",
    "coremltools",
    "ncnn",
    "pnnx",
    "nncf",
):
    pytest.importorskip(package, reason="pip install 'fbnetv3[export,converters]'")


def cells_of_table(text):
    """Return the cells of the rows of a Markdown table, without its header."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.timeout(1200)
def test_the_page_has_the_table_of_this_version(tmp_path):
    export.main(["--model", "digits/fbnetv3_digits", "--format", "all", "--output", str(tmp_path / "all")])
    assert not [variant for variant in read_index(tmp_path / "all") if variant.problem]
    page = (ROOT / "docs" / "formats.md").read_text()
    compared = page[page.index("\n## Compared") : page.index("\n## Notes on each")]
    rows = cells_of_table((tmp_path / "all" / TABLE_FILE).read_text())
    documented = cells_of_table(compared)
    assert [row[:2] for row in rows] == [row[:2] for row in documented]
    for row, expected in zip(rows, documented, strict=True):
        # Sizes vary by names and versions, rounding errors by processor, and times are not compared
        assert float(row[2].split()[0]) == pytest.approx(float(expected[2].split()[0]), rel=0.05), row
        for index, tolerance in {3: None, 4: 0.3, 5: 0.6, 6: 0.6}.items():
            assert bool(row[index]) == bool(expected[index]), row
            if row[index] and tolerance is None:
                assert 0.1 < float(row[index]) / float(expected[index]) < 10, row
            elif row[index]:
                assert float(row[index].strip("%")) == pytest.approx(
                    float(expected[index].strip("%")), abs=tolerance
                ), row
        assert bool(row[7]) == bool(expected[7]), row
