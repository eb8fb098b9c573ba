"""A clock that goes when it is told to."""


class HandClock:
    """Seconds; a call tells them, `pass_` lets them pass."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds
