"""Names like one that there isn't, for error texts."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def nearest(name: str, names: Iterable[str], shown: Sequence[str]) -> str:
    """The end of an error text: the names like this one, whatever their case, or else some of those that there are.

    Args:
        name: What was asked for.
        names: What may be meant, dotted paths among them.
        shown: What there is.

    >>> nearest("Lable", ["label", "text"], ["label", "text"]), nearest("q", ["label"], ["label"])
    (": did you mean 'label'?", "; there is 'label'")
    """
    by_folded = {known.casefold(): known for known in names}
    close = [by_folded[folded] for folded in get_close_matches(name.casefold(), by_folded, n=3)]
    # a field whose structs were left out
    close = close or [known for folded, known in by_folded.items() if folded.endswith(f".{name.casefold()}")][:3]
    if close:
        return f": did you mean {' or '.join(map(repr, close))}?"
    return f"; there is {listed(shown)}"


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names as text, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(map(repr, names[:most]))}{more}"
