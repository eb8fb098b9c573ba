"""The specification: read the tests' names with `python -m pytest --collect-only -q`."""
