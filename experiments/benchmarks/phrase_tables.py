"""What the tables of forbidden phrases take, for a real vocabulary.

Random phrases of two English words, of the tokenizer's own tokens. Command (a
minute on one core; `experiments.recipes.fetch_smollm2` prints the file):

  python -m experiments.benchmarks.phrase_tables --model=FILE
"""

import time

import numpy as np
from absl import flags

from tsd_jax.base import config as config_lib
from tsd_jax.base.errors import UserError


def random_phrases(texts: list[bytes], count: int) -> tuple[str, ...]:
  """Two of the tokens that are words of at least five letters each."""
  words = sorted({x.decode() for x in texts if x.isalpha() and x.isascii()})
  long = [word for word in words if len(word) >= 5]
  rng = np.random.default_rng(0)
  return tuple(" ".join(rng.choice(long, 2)) for _ in range(count))


def main(overrides):
  """Prints a row for each number of phrases."""
  del overrides
  path = config_lib.required(_MODEL)
  # Imported late: a bad flag is refused before JAX starts.
  from tsd_jax.models import phrases, text_tokenizer

  tokenizer = text_tokenizer.load(path)
  texts = list(phrases.token_bytes(tokenizer))
  for count in _COUNTS.value:
    for anyhow in (False, True):
      rule = phrases.Phrases(
        random_phrases(texts, int(count)),
        ignore_case=anyhow,
        whole_words=anyhow,
      )
      start = time.perf_counter()
      try:
        automaton = phrases.compiled(rule, tokenizer)
      except UserError as error:
        print(f"{count} phrases, {anyhow=}: {error}", flush=True)
        continue
      seconds = time.perf_counter() - start
      states, kinds = automaton.next_XJ.shape
      size = sum(a.nbytes for a in automaton) / 1e6
      print(
        f"{count} phrases, any case and whole words {anyhow}: {states} states, "
        f"{kinds} kinds of tokens, {size:.2f} MB, {seconds:.1f} s",
        flush=True,
      )


if __name__ == "__main__":  # Others import it: no flags for them.
  _MODEL = flags.DEFINE_string("model", None, "Folder or GGUF file.")
  _COUNTS = flags.DEFINE_list("counts", ["1", "10", "100", "1000"], "Phrases.")
  config_lib.run(main)
