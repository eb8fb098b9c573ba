"""How much address space this process says it has in use."""

from pathlib import Path
from types import SimpleNamespace

from headrace.storage import local


def hold_used_pages(monkeypatch) -> int:
    """Returns the pages that are in use, which stay that many for the library: other threads come and go."""
    said = Path("/proc/self/statm").read_text()
    monkeypatch.setattr(local, "Path", {"/proc/self/statm": SimpleNamespace(read_text=lambda: said)}.__getitem__)
    return int(said.split()[0])
