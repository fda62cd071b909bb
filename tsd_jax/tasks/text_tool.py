"""A tool of a text task: what a Python function writes into responses.

It is called in worker processes, as graders are. What it said is kept: whoever
asks about the same text again, to tell a response's own tokens from the tool's,
gets the same answer at the price of a look-up, a call that failed included.
"""

import collections
import hashlib
import threading
from collections.abc import Collection, Sequence

from tsd_jax.base.errors import UserError
from tsd_jax.models.text_tokenizer import TextTokenizer
from tsd_jax.rewards import pool
from tsd_jax.tasks.text_lines import Line

# Why an answer is not written, beside `worker.KINDS`.
TOO_LONG = "too_long"  # It has more tokens than may be written.
UNWRITABLE = "unwritable"  # It would end the response, or has no tokens.

# Answers that are kept, a hash and a few integers each; the oldest go first.
KEPT = 2**18

Tokens = tuple[int, ...]


class Tool:
  """A tool's answers in tokens; safe to use from any thread."""

  def __init__(
    self,
    workers: pool.Pool,
    tokenizer: TextTokenizer,
    lines: Sequence[Line],
    most: int,
  ):
    """Remembers nothing yet.

    Args:
      workers: call the function.
      tokenizer: the model's own.
      lines: of the file of problems.
      most: O, the most tokens of an answer.
    """
    self._workers, self._tokenizer = workers, tokenizer
    self._lines, self._most = lines, most
    self._special = frozenset([*tokenizer.special_ids, *tokenizer.end_ids])
    self._lock = threading.Lock()
    self._kept: collections.OrderedDict[bytes, Tokens] = (
      collections.OrderedDict()
    )

  def answers(self, asked: Sequence[tuple[int, str]]) -> list[Tokens]:
    """What the tool writes after some texts, each asked once.

    Args:
      asked: the problem's place among the lines and the response so far.

    Returns:
      The tokens of each answer; none where the tool says nothing, where the
      call failed, and where the answer cannot be written.
    """
    keys = [_key(*one) for one in asked]
    with self._lock:
      known = {key: self._kept[key] for key in keys if key in self._kept}
    new = {k: one for k, one in zip(keys, asked, strict=True) if k not in known}
    known |= self._keep(dict(zip(new, self._ask(new.values()), strict=True)))
    return [known[key] for key in keys]

  def _keep(self, new: dict[bytes, Tokens]) -> dict[bytes, Tokens]:
    """Keeps new answers; where another thread was faster, its are right."""
    with self._lock:
      kept = {key: self._kept.setdefault(key, new[key]) for key in new}
      while len(self._kept) > KEPT:
        self._kept.popitem(last=False)
    return kept

  def _ask(self, asked: Collection[tuple[int, str]]) -> list[Tokens]:
    if not asked:  # No call, and none is counted.
      return []
    requests = [
      (self._lines[place].prompt, text, self._lines[place].example)
      for place, text in asked
    ]
    said = self._workers.ask(requests)
    return [
      self._tokens(r, text) for r, text in zip(requests, said, strict=True)
    ]

  def _tokens(self, request: pool.Request, text: str | None) -> Tokens:
    """An answer's tokens; what cannot be written is counted."""
    if not text:
      return ()
    try:
      ids = self._tokenizer.encode(text)
    except UserError as error:
      self._workers.report(request, UNWRITABLE, str(error))
      return ()
    if self._special.intersection(ids):
      self._workers.report(request, UNWRITABLE, f"a special token in {text!r}")
      return ()
    if len(ids) > self._most:
      detail = f"{len(ids)} tokens, more than {self._most}: {text!r}"
      self._workers.report(request, TOO_LONG, detail)
      return ()
    return tuple(ids)


def _key(place: int, text: str) -> bytes:
  return hashlib.blake2b(f"{place} {text}".encode(), digest_size=16).digest()
