"""Templates and tokenizers of downloads, run in a process with limits.

A chat template is a program, and a tokenizer may hold regular expressions and
rewriting rules that never end or fill the memory. Templates, and tokenizers
with parts that are not known to be harmless (`tokenizer_json.py`), run in one
process, which is started once and killed at its deadline.
"""

import atexit
import functools
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from typing import Any, NamedTuple

from tsd_jax.base.errors import UserError
from tsd_jax.base.paths import ROOT
from tsd_jax.models import text_worker

_START_SECONDS = 120
_KEPT = 4  # Tokenizers that it has at a time.


class TextProcess:
  """The process; safe to use from any thread."""

  def __init__(self, seconds: float = text_worker.SECONDS):
    """Nothing is started before the first request.

    Args:
      seconds: the time limit of a request.
    """
    self._seconds = seconds
    self._lock = threading.RLock()
    self._process: subprocess.Popen | None = None
    self._loaded: set[str] = set()  # Tokenizers that it has.
    atexit.register(self.close)

  def render(self, template: str, variables: Mapping[str, Any]) -> str:
    """The text that a template makes of a chat.

    Raises:
      UserError: saying why it does not.
    """
    with self._lock:
      return self._ask("render", template, variables)

  def load(self, text: str) -> dict[str, Any]:
    """Gives the process a tokenizer.json; returns what is in it.

    Raises:
      UserError: it cannot be read.
    """
    with self._lock:
      if len(self._loaded) >= _KEPT:
        self.close()
      found = self._ask("load", _digest(text), text)
      self._loaded.add(_digest(text))
      return found

  def run(self, operation: str, text: str, *arguments: Any) -> Any:
    """Encodes or decodes.

    Args:
      operation: of `text_worker`.
      text: the tokenizer.json.
      *arguments: of the operation.

    Raises:
      UserError: saying why it does not.
    """
    with self._lock:
      if _digest(text) not in self._loaded:  # It was killed, or has others.
        self.load(text)
      return self._ask(operation, _digest(text), *arguments)

  def close(self) -> None:
    """Ends the process."""
    if self._process is None:
      return
    self._process.kill()
    self._process.wait()
    self._process = None
    self._pipe.close()
    self._loaded.clear()

  def _ask(self, operation: str, *arguments: Any) -> Any:
    try:
      request = json.dumps([operation, arguments]).encode()
    except (TypeError, ValueError, RecursionError) as error:
      raise UserError(f"{error}: give it only what JSON can say") from None
    try:
      if self._process is None:
        self._start()
      self._pipe.send_bytes(request)
      if not self._pipe.poll(self._seconds):
        raise UserError(f"it takes more than {self._seconds:g} s")
      value, wrong = json.loads(self._pipe.recv_bytes(text_worker.ANSWER_BYTES))
    except (EOFError, OSError):
      self.close()
      raise UserError("it needs too much memory, or ends its process") from None
    # A signal, too: nobody would read the answer.
    except BaseException:
      self.close()
      raise
    if wrong is not None:
      raise UserError(wrong)
    return value

  def _start(self) -> None:
    self._pipe, theirs = Pipe()
    # Nothing beside the user's script: it may have a name of the library's.
    command = [sys.executable, "-P", "-m", text_worker.__name__]
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
      self._process = subprocess.Popen(
        [*command, str(theirs.fileno())],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is the parent's.
      )
    finally:
      theirs.close()
    # Its imports are no part of the first request's time.
    self._pipe.send_bytes(json.dumps(["ready", []]).encode())
    try:
      if self._pipe.poll(_START_SECONDS):
        self._pipe.recv_bytes(text_worker.ANSWER_BYTES)
        return
    except (EOFError, OSError):
      pass
    raise UserError(f"no process could be started for it: {' '.join(command)}")


@functools.lru_cache(maxsize=_KEPT)
def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def shared() -> TextProcess:
  """The process of this program, started at its first use."""
  return TextProcess()


# A fork has the parent's pipe, and must not talk on it.
os.register_at_fork(after_in_child=shared.cache_clear)


class Encoding(NamedTuple):
  """A text's tokens, as `tokenizers` gives them."""

  ids: list[int]


class Added(NamedTuple):
  """A token that was added to a vocabulary, as `tokenizers` gives it."""

  special: bool


class LimitedTokenizer:
  """Takes the place of a `tokenizers.Tokenizer`; runs in the process."""

  def __init__(self, text: str):
    """Reads the content of a tokenizer.json.

    Raises:
      UserError: it cannot be read.
    """
    self._text = text
    said = shared().load(text)
    self._vocab: dict[str, int] = said["vocab"]
    self._added = {i: Added(special) for i, special in said["added"]}
    self._token_texts: dict[bool, dict[int, str]] = {}
    self.decoder = True if said["decoder"] else None

  def encode(self, text: str, *, add_special_tokens: bool) -> Encoding:
    """Tokens of a text."""
    ids = shared().run("encode", self._text, text, add_special_tokens)
    return Encoding(ids)

  def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
    """Text of tokens."""
    if len(ids) != 1:
      return self._decode([ids], skip_special_tokens)[0]
    # Who asks for one token's text asks for every token's.
    texts = self._token_texts
    if skip_special_tokens not in texts:
      every = sorted(self._vocab.values())
      found = self._decode([[i] for i in every], skip_special_tokens)
      texts[skip_special_tokens] = dict(zip(every, found, strict=True))
    return texts[skip_special_tokens].get(ids[0], "")

  def _decode(self, rows: Sequence[Sequence[int]], skip: bool) -> list[str]:
    return shared().run("decode", self._text, [*map(list, rows)], skip)

  def get_vocab(self) -> dict[str, int]:
    """Ids of all tokens."""
    return self._vocab

  def token_to_id(self, token: str) -> int | None:
    """The id of a token; None where there is no such token."""
    return self._vocab.get(token)

  def get_added_tokens_decoder(self) -> dict[int, Added]:
    """Tokens that were added to the vocabulary, by id."""
    return self._added
