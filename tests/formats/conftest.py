"""What holds for the tests of formats."""

import pytest

from headrace.storage import transfers


@pytest.fixture(autouse=True)
def _threads_end_at_once(monkeypatch):
    """Threads that read from a store don't wait for more work: a thousand tests would wait for each to end."""
    monkeypatch.setattr(transfers, "_LINGER_SECONDS", 0.0)
