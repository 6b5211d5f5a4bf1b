"""Formats of other frameworks, whose converters are installed with `pip install 'fbnetv3[converters]'`."""
