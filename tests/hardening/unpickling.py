"""An object that shows whether it was unpickled."""

import os


class CreatesFolder:
    """Creates a folder when it is unpickled.

    Args:
        folder: the folder.
    """

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)
