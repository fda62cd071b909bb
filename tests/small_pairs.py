"""Pairs that a tiny model tells apart in seconds, and the model."""

import json

import numpy as np

from tests import small_text
from tsd_jax.models import hf

WORDS = ("sure", "done", "12", "345", "add", "and")


def write(file, count, seed=0):
  """Sums; the chosen answer says "it's", the rejected one "isn't"."""
  rng = np.random.default_rng(seed)
  lines = []
  for _ in range(count):
    a, b = rng.integers(100, size=2)
    word, other = rng.choice(WORDS, size=2)
    lines.append(
      {
        "prompt": f"add {a} and {b}:",
        "chosen": f" it's {word}",
        "rejected": f" isn't {other}{other if rng.random() < 0.5 else ''}",
      }
    )
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return str(file)


def language_model(folder):
  """A random model's folder with a tokenizer and a chat template."""
  tokenizer, config, params = small_text.random_model(folder)
  hf.save(folder / "start", config, params, tokenizer, max_length=64)
  return str(folder / "start")
