"""The folds that an export knows, by name; `fold.py` does them. Needs no torch.

| fold | what it does |
| --- | --- |
| pixels | CLIP's mean and deviation go into the patch embedding, whose bias joins the positions of the patches |
| scale | attention's 1/sqrt(d) goes into the query's matrix and bias |
| prompts | a fresh prompt's LayerNorm, query, key and value become constants of its layer; where its output is thrown away, only key and value |
| sound | h + W [h ; p] becomes (I + W_h) h + W_p p: one matrix, and one constant row a token |
| rows | the last layer computes only the rows that are read out, at least two of them: with one, TensorRT does not fuse its attention |
"""

from collections.abc import Iterable
from typing import Literal, get_args

from dissonance.errors import UsageError

Fold = Literal["pixels", "scale", "prompts", "sound", "rows"]
FOLDS: frozenset[Fold] = frozenset(get_args(Fold))


def folds_without(names: Iterable[str]) -> frozenset[Fold]:
    """All folds but those that are named. Raises UsageError for a name that none has."""
    left_out = set(names)
    if unknown := left_out - FOLDS:
        raise UsageError(f"Invalid --no-fold '{min(unknown)}'. Supported values are {', '.join(sorted(FOLDS))}.")
    return frozenset(fold for fold in FOLDS if fold not in left_out)
