"""Prints what a published or exported model replies to a prompt.

python -m launch.generate --model=FOLDER --prompt="What is 2 + 3?"
python -m launch.generate --model=FILE.gguf --prompt=... --temperature=0.7
python -m launch.generate --model=FOLDER --raw --prompt="3 * 4 12 ="
"""

from absl import flags

from tsd_jax.base import config as config_lib
from tsd_jax.base.temperature import ALLOWED, is_allowed

_MODEL = config_lib.path_flag(
  "model", None, "Hugging Face folder or .gguf file."
)
_PROMPT = flags.DEFINE_multi_string(
  "prompt", None, "The user's words; several run as one batch."
)
_SYSTEM = flags.DEFINE_string("system", None, "The system's message.")
_REPLY = flags.DEFINE_string("reply", "", "How the reply begins.")
_RAW = flags.DEFINE_bool("raw", False, "Continue the prompt: no chat template.")
_MAX_TOKENS = flags.DEFINE_integer(
  "max_tokens", None, "Most tokens of a reply; 128, if the model can so many."
)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 decodes greedily.")
_SEED = config_lib.seed_flag(0, "Of sampling.")


def main(overrides):
  """Reads the model, prints one reply a prompt."""
  del overrides
  path = config_lib.required(_MODEL)
  if not _PROMPT.value:
    raise config_lib.UserError("--prompt=TEXT is missing")
  temperature = _TEMPERATURE.value
  if temperature and not is_allowed(temperature):
    raise config_lib.UserError(
      f"--temperature={temperature} must be 0 (greedy), or {ALLOWED}"
    )
  if _MAX_TOKENS.value is not None and _MAX_TOKENS.value < 1:
    raise config_lib.UserError(
      f"--max_tokens={_MAX_TOKENS.value} must be at least 1"
    )
  # Imported late: a bad flag is refused before JAX starts.
  from tsd_jax.base import compilation_cache, progress
  from tsd_jax.inference import generate
  from tsd_jax.models import text_tokenizer

  progress.quiet_libraries()
  compilation_cache.enable()
  tokenizer = text_tokenizer.load(path)
  prompts = []
  for text in _PROMPT.value:
    if _RAW.value:
      prompts.append(tokenizer.encode(text + _REPLY.value, add_special=True))
      continue
    system = [] if _SYSTEM.value is None else [("system", _SYSTEM.value)]
    messages = [
      {"role": role, "content": content}
      for role, content in [*system, ("user", text)]
    ]
    prompts.append(tokenizer.encode_chat(messages, reply=_REPLY.value))
  replies = generate.generate(
    path,
    tokenizer,
    prompts,
    max_tokens=_MAX_TOKENS.value,
    temperature=temperature,
    seed=_SEED.value,
  )
  for reply in replies:
    print(_REPLY.value + reply)


if __name__ == "__main__":
  config_lib.run(main)
