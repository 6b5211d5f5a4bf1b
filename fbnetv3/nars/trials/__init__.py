"""The trials of a search: their file, and what proposals and progress reports see of them."""
