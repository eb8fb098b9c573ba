"""What can go wrong with one attempt at reading stored bytes, and how long to go on trying.

Pauses between attempts grow exponentially with full jitter: each is drawn evenly from zero to a bound that doubles
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), so that many clients don't return at once.
"""

import random
from dataclasses import dataclass

# HTTP statuses that may pass
AGAIN = (408, 425, 429, 500, 502, 503, 504)
# After so many alike in a row, an answer that doesn't fit is no accident: no ranges, a name that doesn't resolve.
MISFITS = 5


class Fault(Exception):  # noqa: N818 (never leaves this layer)
    """An attempt failed in a way that another may not.

    Attributes:
        kind: What it is counted as.
        throttled: Whether the server asks for fewer requests.
        at_most: After how many such attempts in a row it is no accident; None where only the deadline ends them.
        at_once: Whether to try again without a pause, the first time.
        after_seconds: The least pause that the server asks for.
    """

    def __init__(
        self,
        kind: str,
        text: str,
        *,
        throttled: bool = False,
        at_most: int | None = None,
        at_once: bool = False,
        after_seconds: float = 0.0,
    ) -> None:
        super().__init__(text)
        self.kind, self.throttled, self.at_most = kind, throttled, at_most
        self.at_once, self.after_seconds = at_once, after_seconds


class Refused(Exception):  # noqa: N818 (never leaves this layer)
    """An attempt failed, and so would every other: a missing object, no permission, an object that has changed."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what.

    Attributes:
        deadline_seconds: For one range, all attempts and pauses together.
        stall_seconds: Without a byte, or with fewer than 64 KiB while more are to come: the attempt is given up.
        connect_seconds: For a connection.
        first_pause_seconds: The bound of the first pause.
        longest_pause_seconds: The bound that pauses grow to.
    """

    deadline_seconds: float = 300.0
    stall_seconds: float = 10.0
    connect_seconds: float = 5.0
    first_pause_seconds: float = 0.1
    longest_pause_seconds: float = 10.0

    def pause_seconds(self, attempts: int) -> float:
        """The pause after that many failed attempts, at random."""
        bound = min(self.longest_pause_seconds, self.first_pause_seconds * 2.0 ** min(attempts - 1, 30))
        return random.uniform(0.0, bound)  # noqa: S311 (no secret)
