"""Mutations of JSON documents that leave them JSON, so that they pass the parser and reach the checks behind it."""

import json
import random
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 64, 255, 2**31 - 1, 2**31, 2**32, -(2**63), 2**63, 2**64, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308, -1e308,
    float("nan"), float("inf"), float("-inf"), "", "0", "-1", "1e999", "nan", "1_000", "\u0661", "a", "\0", "/", "..", "\ud800", "\udc80",
    "\u00e9\U0001f600", "x" * 5000, "0" * 64, [], {}, [[]], [None], {"": None}, {"\ud800": 1}, [0, 0, 0], [[[[[[[[0]]]]]]]], [1, "a", None],
)  # fmt: skip


def mutate_tree(tree: Any, rng: random.Random) -> Any:
    """One change somewhere in a document of dicts, lists and scalars, which may be changed in place."""
    places = list(_places(tree))
    if not places or rng.random() < 0.01:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    match rng.randrange(9):
        case 0 | 1 | 2:
            holder[key] = _fresh(rng)
        case 3:
            del holder[key]
        case 4:
            holder[key] = _nudged(holder[key], rng)
        case 5:  # another part of the document in this place
            other, other_key = rng.choice(places)
            holder[key] = _copy(other[other_key])
        case 6:
            other, other_key = rng.choice(places)
            holder[key], other[other_key] = _copy(other[other_key]), _copy(holder[key])  # copies: one may lie inside the other
        case 7 if isinstance(holder, dict):
            name = rng.choice([str(_fresh(rng))[:40], str(key) + "_", str(key)[1:], *(str(k) for _, k in places)])
            holder[name] = holder[key] if rng.random() < 0.5 else holder.pop(key)
        case 7:
            holder.insert(key, holder[key])
        case _:
            holder[key] = [holder[key]] if rng.random() < 0.5 else {rng.choice(["", "a", str(key)]): holder[key]}
    return tree


def mutate_json(data: bytes, rng: random.Random) -> bytes | None:
    """A JSON text after one to three changes; None where `data` is not JSON or too deep to write."""
    try:
        tree = json.loads(data)
        for _ in range(rng.randint(1, 3)):
            tree = mutate_tree(tree, rng)
        return json.dumps(tree).encode()
    except (ValueError, OverflowError, RecursionError):
        return None


def _places(tree: Any) -> Any:
    pending = [tree]
    while pending:
        holder = pending.pop()
        for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()):
            yield holder, key
            pending.append(value)


def _fresh(rng: random.Random) -> Any:
    return _copy(rng.choice(VALUES))  # documents are changed in place


def _copy(tree: Any) -> Any:
    return json.loads(json.dumps(tree))


def _nudged(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float) and value == value:
        return rng.choice([value + 1, value - 1, -value, value * 2, value * 1000, value // 3, str(value)[:40], 1e999])
    if isinstance(value, str):
        at = rng.randint(0, len(value))
        return rng.choice([value[:at] + rng.choice("\0 \n\ud800\u00e90/.") + value[at:], value[:at], value * 2, value.upper(), [value]])
    if isinstance(value, float):
        return 0.0
    return list(value) if isinstance(value, dict) else {str(index): part for index, part in enumerate(value)}
