"""How large the passes of a GGUF embedding model are: the sizes that its engine and its estimate agree on."""

from __future__ import annotations


def pass_tokens(gpu_layers: int) -> int:
    """Tokens of a pass, where one input is not longer.

    Attention of a pass runs over all its tokens, whosever they are, so on a CPU short passes are the faster ones
    (all-MiniLM on two cores: 512 tokens in passes of 128 take 0.9 of what one pass takes).
    """
    return 512 if gpu_layers else 128


def input_limit(context: int, n_ctx_train: int) -> int:
    """Tokens one input may have: absolute positions end where the training did."""
    return min(context, n_ctx_train) if n_ctx_train > 0 else context


def batch_tokens(limit: int, tokens: int, *, in_pieces: bool) -> int:
    """Tokens of the largest pass: a whole input, unless a causal model can read it in pieces for its last token."""
    return tokens if in_pieces else max(limit, tokens)
