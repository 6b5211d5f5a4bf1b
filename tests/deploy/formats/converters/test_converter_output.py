"""What converters print is not shown, by Python or by native code."""

import os
import sys

from fbnetv3.deploy.formats.converters.converter_output import quiet_converter


def test_nothing_is_printed(capfd):
    with quiet_converter():
        print("progress")
        print("warning", file=sys.stderr)
        os.write(2, b"native warning")
    print("result")
    assert capfd.readouterr() == ("result\n", "")
