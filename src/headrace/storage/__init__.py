"""Storage: bytes of local files, on time.

`LocalFile` is one open file: mapped into memory where the address space allows, else read at positions. `OpenFiles`
keeps a bounded number of them open. `Residency` measures whether the data is in memory; where it isn't, it tells the
kernel which rows are coming, and reads files that fit into memory through in the background.
"""

from headrace.storage.local import LocalFile, OpenFiles, open_limit, read_bytes
from headrace.storage.residency import Residency

__all__ = ["LocalFile", "OpenFiles", "Residency", "open_limit", "read_bytes"]
