"""The packed store: crystals in memory-mapped arrays on disk.

store       opening, views, batches
format      arrays, manifest, checksums
writer      making and appending, crash-safe
merge       several stores as one
"""

from fastcrystal.data.store.store import Store, is_store, open_store

__all__ = ["Store", "is_store", "open_store"]
