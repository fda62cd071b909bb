"""Rewards of tasks in text, for `TextConfig.reward`; no JAX in here."""
