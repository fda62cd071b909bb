"""The process that runs what came with a download: templates and tokenizers.

  python -m tsd_jax.models.text_worker FILE_DESCRIPTOR

It is started by `text_limits.py` and talks JSON over one pipe. A request is
[operation, arguments]; the answer [value, None] or [None, what went wrong].
JAX is never imported here: the process starts in a fraction of a second.
"""

import json
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

MEMORY_BYTES = 3 * 2**29  # Address space.
CHARACTERS = 4_000_000  # Of a rendered chat, or a decoded text.
TOKENS = 2_000_000  # Of an encoded text.
ANSWER_BYTES = 2**27
SECONDS = 5.0  # Of a request; the parent ends this process then.

_backends: dict[str, Any] = {}


def load(key: str, text: str) -> dict[str, Any]:
  """Reads a tokenizer.json; says what the parent needs to know of it."""
  import tokenizers

  backend = tokenizers.Tokenizer.from_str(text)
  backend.no_padding()
  backend.no_truncation()
  added = backend.get_added_tokens_decoder()
  _backends[key] = backend
  return {
    "vocab": backend.get_vocab(),
    "added": [[i, token.special] for i, token in added.items()],
    "decoder": backend.decoder is not None,
  }


def encode(key: str, text: str, add_special: bool) -> list[int]:
  """Token ids of a text."""
  ids = _backends[key].encode(text, add_special_tokens=add_special).ids
  return _bounded(ids, TOKENS, "tokens")


def decode(key: str, rows: list[list[int]], skip_special: bool) -> list[str]:
  """Texts of rows of token ids."""
  texts, total = [], 0
  for ids in rows:
    text = _backends[key].decode(ids, skip_special_tokens=skip_special)
    total += len(_bounded(text, CHARACTERS - total, "characters"))
    texts.append(text)
  return texts


def render(template: str, variables: dict[str, Any]) -> str:
  """The text of a chat."""
  from tsd_jax.models import chat_template

  text = chat_template.render(template, variables)
  return _bounded(text, CHARACTERS, "characters")


def ready() -> None:
  """Nothing: the answer says that the process is there."""


OPERATIONS: dict[str, Callable[..., Any]] = {
  f.__name__: f for f in (ready, load, encode, decode, render)
}


def _bounded(value: Any, most: int, what: str) -> Any:
  if len(value) > most:
    raise ValueError(f"it makes {len(value):,} {what} of it")
  return value


def answer(request: bytes) -> bytes:
  """Does what is asked; whatever goes wrong is an answer too."""
  try:
    operation, arguments = json.loads(request)
    found = [OPERATIONS[operation](*arguments), None]
    return json.dumps(found).encode()
  except MemoryError:
    return json.dumps([None, "it needs too much memory"]).encode()
  # A library in Rust panics with what is no Exception.
  except BaseException as error:
    text = " ".join(str(error).split())[:300]
    return json.dumps([None, text or type(error).__name__]).encode()


def main(pipe: Connection) -> None:
  """Answers requests until the pipe closes."""
  _confine()
  while True:
    try:
      request = pipe.recv_bytes()
    except EOFError:  # The parent has closed the pipe, or is gone.
      return
    # Should the parent be gone, or stopped, an alarm ends this process.
    signal.setitimer(signal.ITIMER_REAL, 2 * SECONDS + 1)
    pipe.send_bytes(answer(request))
    signal.setitimer(signal.ITIMER_REAL, 0)


def _confine() -> None:
  """Limits memory; forbids files of any size, and cores."""
  for limit, most in (
    (resource.RLIMIT_AS, MEMORY_BYTES),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_CORE, 0),
  ):
    _, hard = resource.getrlimit(limit)
    if hard == resource.RLIM_INFINITY or most < hard:
      resource.setrlimit(limit, (most, most))


if __name__ == "__main__":
  main(Connection(int(sys.argv[1])))
