"""Readers of the file formats that the pinned sources use, from bytes; what those files do not need is refused."""
