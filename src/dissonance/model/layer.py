"""The pre-norm transformer layer that CLIP, Whisper and the heads share."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["quick_gelu", "gelu"]

# Added to the score of a key that may not be seen. Far below any real score, so that its softmax weight is exactly 0 in
# every precision, and finite, so that a row without a single valid key gives numbers (which are dropped), not NaN.
MASKED_SCORE = -1e4


def score_bias(mask: Tensor) -> Tensor:
    """What attention adds to its scores so that padding is never seen.

    `mask` (windows, tokens) bool, True = valid -> (windows, 1, 1, tokens) float32: 0 or MASKED_SCORE.
    """
    return torch.where(mask, 0.0, MASKED_SCORE)[:, None, None, :]


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, *, scaled: bool = False) -> Tensor:
    """softmax(Q K^T / sqrt(d) + bias) V, for (batch, heads, tokens, d); `scaled`: Q has its 1 / sqrt(d) already.

    Written out, it exports as two MatMuls around a Softmax, the form that TensorRT fuses, and is twice as fast as the fused call on a
    CPU; on a GPU, outside an export, it is PyTorch's fused attention.
    """
    if query.is_cuda and not torch.compiler.is_exporting():
        mask = None if bias is None else bias.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0 if scaled else None)
    scores = (query if scaled else query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    return torch.softmax(scores, dim=-1) @ value


def activate(inner: Tensor, activation: Activation) -> Tensor:
    """The activation of a layer's MLP; CLIP's `quick_gelu` is x sigmoid(1.702 x)."""
    return inner * torch.sigmoid(1.702 * inner) if activation == "quick_gelu" else F.gelu(inner)


class SelfAttention(nn.Module):
    """Multi-head self-attention with separate query, key and value matrices. Whisper's keys have no bias."""

    def __init__(self, size: int, heads: int, *, key_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(size, size, bias=key_bias)
        self.v_proj = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, size)

    def forward(self, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
        """`hidden` (batch, tokens, size), `bias` as `score_bias` gives it -> (batch, tokens, size)."""
        query, key, value = (
            projection(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        out: Tensor = self.out_proj(attend(query, key, value, bias).transpose(1, 2).flatten(2))
        return out


class TransformerLayer(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x))."""

    def __init__(
        self, size: int, heads: int, intermediate_size: int, *, activation: Activation = "gelu", key_bias: bool = True, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.activation = activation
        self.layer_norm1 = nn.LayerNorm(size, eps=eps)
        self.self_attn = SelfAttention(size, heads, key_bias=key_bias)
        self.layer_norm2 = nn.LayerNorm(size, eps=eps)
        self.fc1 = nn.Linear(size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, size)

    def start_from_scratch(self) -> None:
        """Every matrix keeps the variance of what it is given (LeCun et al., Efficient BackProp, 1998); torch's own start divides it by three."""
        attention = self.self_attn
        for matrix in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, self.fc1, self.fc2):
            nn.init.normal_(matrix.weight, std=matrix.in_features**-0.5)
            if matrix.bias is not None:
                nn.init.zeros_(matrix.bias)

    def forward(self, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
        """`hidden` (batch, tokens, size), `bias` as `score_bias` gives it -> (batch, tokens, size)."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden), bias)
        out: Tensor = hidden + self.fc2(activate(self.fc1(self.layer_norm2(hidden)), self.activation))
        return out
