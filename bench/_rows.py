"""What every rung prints: rows of results, and progress beside them."""

import sys

Row = dict[str, object]


def tell(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def at_most(what: str, value: float, limit: float, how: str) -> Row:
    """One result whose value must not exceed `limit`."""
    return {"what": what, "value": value, "limit": f"<= {limit:g}", "holds": value <= limit, "how": how}


def at_least(what: str, value: float, limit: float, how: str) -> Row:
    """One result whose value must reach `limit`."""
    return {"what": what, "value": value, "limit": f">= {limit:g}", "holds": value >= limit, "how": how}


def between(what: str, value: float, low: float, high: float, how: str) -> Row:
    """One result whose value must lie from `low` to `high`."""
    return {"what": what, "value": value, "limit": f"{low:g} to {high:g}", "holds": low <= value <= high, "how": how}


def measured(what: str, value: float, how: str) -> Row:
    """One result of which nothing was promised."""
    return {"what": what, "value": value, "limit": None, "holds": None, "how": how}
