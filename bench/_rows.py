"""What every rung prints: rows of results, and progress beside them."""

import sys

Row = dict[str, object]


def tell(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def at_most(what: str, value: float, limit: float, how: str) -> Row:
    """One result whose value must not exceed `limit`."""
    return {"what": what, "value": value, "limit": f"<= {limit:g}", "holds": value <= limit, "how": how}
