"""Flags of the commands that train on pairs."""

from typing import Any

from absl import flags

from tsd_jax.base import config as config_lib

_PAIRS = config_lib.path_flag(
  "pairs", None, "JSON lines, or a table: prompt, chosen, rejected."
)
_HELD_OUT = config_lib.path_flag(
  "held_out", None, "Pairs to measure on; a share of --pairs by default."
)
_SHARE = flags.DEFINE_float(
  "held_out_share", 0.1, "Of the prompts of --pairs, without --held_out."
)
_MODEL = config_lib.path_flag(
  "model", None, "Hugging Face folder or .gguf file to start from."
)
_WORKDIR = config_lib.path_flag(
  "workdir", None, "New folder: model/ and measured.json."
)
_EPOCHS = flags.DEFINE_integer("epochs", 1, "How often each pair is read.")
_BATCH = flags.DEFINE_integer("batch", 32, "Pairs a step.")
_PROMPT = flags.DEFINE_integer(
  "prompt_length", 512, "Most tokens of a prompt; longer ones lose their start."
)
_RESPONSE = flags.DEFINE_integer(
  "response_length", 512, "Most tokens of a response; else a pair is left out."
)
_MINUTES = flags.DEFINE_float(
  "checkpoint_minutes", 5.0, "From one checkpoint to the next."
)
_SEED = config_lib.seed_flag(0, "Of the order of pairs, and of heads.")


def read(learning_rate: float) -> tuple[Any, Any]:
  """What the flags say, checked: `preferences.Files` and `preference.Fit`.

  Raises:
    UserError: a flag is missing or has an impossible value.
  """
  pairs, model, workdir = map(config_lib.required, (_PAIRS, _MODEL, _WORKDIR))
  # Imported late: a missing flag is told before JAX starts.
  from tsd_jax.learning.preference import Fit
  from tsd_jax.run.preferences import Files
  from tsd_jax.tasks.pairs import Limits

  try:
    fit = Fit(learning_rate, _EPOCHS.value, _BATCH.value, _SEED.value)
  except ValueError as error:
    raise config_lib.UserError(f"--{error}") from None
  limits = Limits(_PROMPT.value, _RESPONSE.value)
  files = Files(
    pairs, model, workdir, _HELD_OUT.value, _SHARE.value, limits, _MINUTES.value
  )
  return files, fit
