"""What converters print, which this project does not show."""

import contextlib
import io
from collections.abc import Iterator

from fbnetv3.utils.logging_setup import quiet_standard_error


@contextlib.contextmanager
def quiet_converter() -> Iterator[None]:
    """Discard the progress that converters print, in Python and in C++, within the block."""
    output = io.StringIO()
    with quiet_standard_error(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        yield
