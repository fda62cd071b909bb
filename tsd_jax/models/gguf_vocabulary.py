"""A tokenizer in the words of GGUF metadata.

A published tokenizer has to be GPT-2's kind, and cut texts in a way that
llama.cpp has a name for. Symbols, words between spaces, are said in the kind of
SentencePiece: it makes `_12` of `_`, `1`, `2` by way of `_1`, a symbol as well.
"""

from collections.abc import Mapping
from typing import Any

from tsd_jax.base import outside_files
from tsd_jax.base.errors import UserError
from tsd_jax.models import text_tokenizer
from tsd_jax.models.text_limits import LimitedTokenizer
from tsd_jax.models.text_tokenizer import TextTokenizer
from tsd_jax.models.tokenizer import Tokenizer

_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
_ENDS = ("eos", "eot", "eom")  # Names of end tokens, the written one first.
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # ggml's kinds.
_SPACE = "\u2581"  # SentencePiece's.
# What says nothing of the ids: all bytes are tokens, so that none is unknown.
_IDLE = {"trim_offsets", "unk_token", "fuse_unk", "vocab", "merges", "dropout"}
_REMEDY = "export a Hugging Face folder instead (--format=huggingface)"


def metadata(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
  """Metadata that names every row of the embedding.

  Args:
    tokenizer: of symbols, or a published model's.
    rows: of the embedding; those without a token are marked as unused.

  Raises:
    UserError: naming what GGUF files cannot say of it.
  """
  if not isinstance(tokenizer, TextTokenizer):
    return _named(_symbols(tokenizer, rows))
  if isinstance(tokenizer.backend, LimitedTokenizer):
    raise _odd("has parts that llama.cpp has no name for")
  saved = _parts(tokenizer.backend)
  found = {
    "model": "gpt2",
    "pre": _pre(saved),
    "merges": [" ".join(merge) for merge in saved["model"]["merges"]],
    **_tokens(tokenizer, saved["added_tokens"], rows),
    **_special(tokenizer),
  }
  said = _named(found)
  if tokenizer.chat_template is not None:
    said["tokenizer.chat_template"] = tokenizer.chat_template
  return said


def _named(found: Mapping[str, Any]) -> dict[str, Any]:
  return {f"tokenizer.ggml.{name}": value for name, value in found.items()}


def _symbols(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
  """Words as SentencePiece has them, each with the space before it.

  Raises:
    UserError: a word does not grow out of shorter ones, letter by letter.
  """
  tokens, kinds = _unused(rows)
  for i in range(tokenizer.vocab_size):
    word = tokenizer.decode([i], skip_special=False)
    control = i in tokenizer.special_ids
    tokens[i] = word if control else _SPACE + word
    kinds[i] = _CONTROL if control else _NORMAL
  for token, kind in zip(tokens, kinds, strict=True):
    if kind == _NORMAL and len(token) > 2 and token[:-1] not in tokens:
      raise _odd(f"has the word {token[1:]!r}, and no {token[1:-1]!r}")
  return {
    "model": "llama",
    "tokens": tokens,
    "token_type": kinds,
    "scores": [0.0] * rows,
    "eos_token_id": tokenizer.eos_id,
    "padding_token_id": tokenizer.pad_id,
    "add_bos_token": False,
    "add_eos_token": False,
    "add_space_prefix": True,
  }


def _unused(rows: int) -> tuple[list[str], list[int]]:
  """Tokens and kinds of rows that have none."""
  return [f"[PAD{i}]" for i in range(rows)], [_UNUSED] * rows


def _parts(backend: Any) -> dict[str, Any]:
  """What tokenizer.json would hold."""
  return outside_files.parse_json(backend.to_str(), "the tokenizer")


def _pre(saved: Mapping[str, Any]) -> str:
  """llama.cpp's name of how a tokenizer cuts text.

  Raises:
    UserError: it has none.
  """
  for pre in text_tokenizer.GGUF_PRE:
    known = _parts(text_tokenizer.gguf_backend(pre, {}, []))
    if pre != "default" and _essence(known) == _essence(saved):
      return pre
  kind = saved["model"]["type"]
  raise _odd(f"is a {kind} that cuts text in a way without a name in llama.cpp")


def _essence(saved: Mapping[str, Any]) -> list[Any]:
  """What two tokenizers have in common that make the same ids."""
  parts = ("normalizer", "pre_tokenizer", "model")
  decoder = saved["decoder"] or {}
  return [*(_bare(saved[part]) for part in parts), decoder.get("type")]


def _bare(part: Any) -> Any:
  """A part without what is idle, off or empty, or a sequence of its own."""
  if isinstance(part, list):
    return [_bare(p) for p in part]
  if not isinstance(part, Mapping):
    return part
  if part.get("type") == "Sequence":
    (steps,) = (_bare(v) for k, v in part.items() if k != "type")
    return steps[0] if len(steps) == 1 else steps
  return {k: _bare(v) for k, v in part.items() if v and k not in _IDLE}


def _tokens(
  tokenizer: TextTokenizer, added: list[Mapping[str, Any]], rows: int
) -> dict[str, Any]:
  """The token of each row, and its kind.

  Raises:
    UserError: an added token takes white space, or stands for itself only
      between words.
  """
  tokens, kinds = _unused(rows)
  for token, i in tokenizer.backend.get_vocab().items():
    tokens[i], kinds[i] = token, _NORMAL
  for token in added:
    if odd := [k for k in ("lstrip", "rstrip", "single_word") if token[k]]:
      raise _odd(f"has the token {token['content']!r} with {odd[0]}=true")
    kinds[token["id"]] = _CONTROL if token["special"] else _USER_DEFINED
  return {"tokens": tokens, "token_type": kinds}


def _special(tokenizer: TextTokenizer) -> dict[str, Any]:
  """Ids by role, and whether a bare text gets a start token.

  Raises:
    UserError: there are more ends than names, or other tokens around a text.
  """
  ids = {
    name: tokenizer.backend.token_to_id(tokenizer.special[role])
    for role, name in _ROLES.items()
    if role in tokenizer.special
  }
  if len(tokenizer.end_ids) > len(_ENDS):
    raise _odd(
      f"ends replies with {len(tokenizer.end_ids)} tokens, not up to 3"
    )
  ids |= dict(zip(_ENDS, tokenizer.end_ids, strict=False))
  bare = tokenizer.encode("a")
  around = tokenizer.encode("a", add_special=True)
  if around not in (bare, [tokenizer.bos_id, *bare]):
    raise _odd("puts other tokens around a text than its start token")
  said = {f"{name}_token_id": i for name, i in ids.items()}
  return said | {"add_bos_token": around != bare}


def _odd(what: str) -> UserError:
  return UserError(f"the tokenizer {what}, so GGUF cannot say it: {_REMEDY}")
