"""tokenizer.json: what is refused of it, and what is known to be harmless.

The file holds a program: rules that rewrite text, regular expressions that cut
it. The parts below take time and room in proportion to their text, and leave
ordinary tokenizers as quick as they are; one with any other part runs in the
process of `text_limits.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tsd_jax.base import outside_files
from tsd_jax.base.errors import UserError

BYTES = 100 * outside_files.MIB
_PARTS = 16  # Of a sequence.
_AFFIX = 16  # Characters of what is put before, or between, words.

QWEN2 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
  r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
GPT2 = (
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|"
  r"\s+(?!\S)|\s+"
)
_PATTERNS = {QWEN2, LLAMA3, GPT2}

_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip"}
_CUTS = {
  "ByteLevel", "Digits", "Whitespace", "WhitespaceSplit", "BertPreTokenizer",
  "Punctuation", "UnicodeScripts",
}  # fmt: skip
_DECODERS = {"ByteLevel", "ByteFallback", "Fuse", "WordPiece", "Strip"}

Part = Mapping[str, Any]


def check(saved: Any, where: str) -> None:
  """Refuses a vocabulary that is none, before a library sees it.

  Args:
    saved: the file's content.
    where: what an error calls it.

  Raises:
    UserError: naming what is odd.
  """
  model = saved.get("model") if isinstance(saved, dict) else None
  vocab = model.get("vocab") if isinstance(model, dict) else None
  if not isinstance(vocab, dict | list):
    raise UserError(f"{where} is damaged (no vocabulary): fetch it again")
  added = saved.get("added_tokens") or []
  if not isinstance(added, list):
    raise UserError(
      f"{where} is damaged (added_tokens is no list): fetch it again"
    )
  # A list is of pairs, whose places are their ids.
  ids: dict[str, Any] = dict(vocab) if isinstance(vocab, dict) else {}
  for token in added:
    content = token.get("content") if isinstance(token, dict) else None
    if not isinstance(content, str):
      raise UserError(
        f"{where} is damaged (an added token has the content "
        f"{outside_files.shown(content)}, no text): fetch it again"
      )
    ids[content] = token.get("id")
  # Ids may have gaps, but arrays of their number are made.
  most = 2 * (len(vocab) + len(added)) + 1_000
  for token, i in ids.items():
    outside_files.integer(i, f"{where}: the id of {token!r:.60}", high=most)


def is_plain(saved: Part) -> bool:
  """Whether all parts of a checked tokenizer are known to be harmless."""
  parts: dict[str, Callable[[Part], bool]] = {
    "normalizer": _plain_normalizer,
    "pre_tokenizer": _plain_cut,
    "post_processor": _plain_processor,
    "decoder": _plain_decoder,
    "model": _plain_model,
  }
  return all(_each(saved.get(name), is_so) for name, is_so in parts.items())


def _each(part: Any, is_so: Callable[[Part], bool]) -> bool:
  """Whether a part, or all those of a sequence, are so."""
  if part is None:
    return True
  if not isinstance(part, Mapping):
    return False
  if part.get("type") != "Sequence":
    return is_so(part)
  lists = [parts for name, parts in part.items() if name != "type"]
  return all(
    isinstance(parts, list)
    and len(parts) <= _PARTS
    and all(isinstance(p, Mapping) and is_so(p) for p in parts)
    for parts in lists
  )


def _plain_normalizer(part: Part) -> bool:
  if part.get("type") == "Prepend":
    return _is_short(part.get("prepend"))
  return _is_one_of(part.get("type"), _NORMALIZERS) or _plain_replace(part)


def _plain_cut(part: Part) -> bool:
  kind, pattern = part.get("type"), part.get("pattern")
  if kind == "Split" and isinstance(pattern, Mapping):
    return _is_one_of(pattern.get("Regex"), _PATTERNS) or bool(
      pattern.get("String")
    )
  if kind == "Metaspace":
    return _is_short(part.get("replacement"), 1)
  return _is_one_of(kind, _CUTS)


def _plain_processor(part: Part) -> bool:
  """One text, and a few tokens around it."""
  if part.get("type") != "TemplateProcessing":
    return part.get("type") == "ByteLevel"
  single = part.get("single")
  if not isinstance(single, list) or len(single) > _PARTS:
    return False
  return sum("SpecialToken" not in str(piece) for piece in single) <= 1


def _plain_decoder(part: Part) -> bool:
  if part.get("type") == "Metaspace":
    return _is_short(part.get("replacement"), 1)
  return _is_one_of(part.get("type"), _DECODERS) or _plain_replace(part)


def _plain_model(part: Part) -> bool:
  affixes = ("continuing_subword_prefix", "end_of_word_suffix")
  return part.get("type") in ("BPE", "WordLevel") and all(
    part.get(affix) is None or _is_short(part[affix]) for affix in affixes
  )


def _plain_replace(part: Part) -> bool:
  """A text in place of one that is at least as long."""
  pattern, content = part.get("pattern"), part.get("content")
  old = pattern.get("String") if isinstance(pattern, Mapping) else None
  return (
    part.get("type") == "Replace"
    and isinstance(old, str)
    and isinstance(content, str)
    and 0 < len(old) >= len(content)
  )


def _is_one_of(value: Any, known: set[str]) -> bool:
  return isinstance(value, str) and value in known


def _is_short(value: Any, most: int = _AFFIX) -> bool:
  return isinstance(value, str) and len(value) <= most
