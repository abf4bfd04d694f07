"""The folds that an export knows, by name; `fold.py` does them. Needs no torch.

| fold | what it does |
| --- | --- |
| pixels | CLIP's mean and deviation go into the patch embedding, whose bias joins the positions of the patches |
| scale | attention's 1/sqrt(d) goes into the query's matrix and bias |
| prompts | a fresh prompt's LayerNorm, query, key and value become constants of its layer; where its output is thrown away, only key and value |
| sound | h + W [h ; p] becomes (I + W_h) h + W_p p: one matrix, and one constant row a token |
| rows | the last layer computes only the rows that are read out, at least two of them: with one, TensorRT does not fuse its attention |
"""

from typing import Literal, get_args

Fold = Literal["pixels", "scale", "prompts", "sound", "rows"]
FOLDS: frozenset[Fold] = frozenset(get_args(Fold))
