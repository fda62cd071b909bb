"""Tree Search Distillation of language models in JAX."""

__version__ = "0.2.0"
