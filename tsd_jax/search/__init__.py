"""Batched tree search over a language model, on mctx."""
