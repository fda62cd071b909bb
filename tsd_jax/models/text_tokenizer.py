"""Tokenizers and chat templates of published models.

A thin wrapper over Hugging Face's `tokenizers`, read from a folder or built
from the metadata of a GGUF file. Needs the extra `text`.

Prompts are padded on the right to a fixed length. The model counts positions
from a prompt's first token and a response's from the prompt's own length
(`decode.prefill`), so that a padded prompt gives the very logits of the bare
one; padding on the left would shift all of its positions.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from tsd_jax.base import outside_files
from tsd_jax.base.errors import UserError
from tsd_jax.models import (
  gguf,
  hf,
  pretrained,
  special_tokens,
  text_limits,
  tokenizer_json,
)
from tsd_jax.models.tokenizer import Tokenizer

# Files of a tokenizer that an export copies as they are.
_FILES = (
  "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
  "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
  "chat_template.json",
)  # fmt: skip
_EXTRA = "needs the extra `text`: pip install -e '.[text]'"


@dataclasses.dataclass(frozen=True, eq=False)
class TextTokenizer:
  """Text to token ids and back, and chats to prompts."""

  backend: Any  # tokenizers.Tokenizer, or a text_limits.LimitedTokenizer.
  special: Mapping[str, str]  # Tokens by role, such as eos; others may lack.
  end_ids: tuple[int, ...]  # What ends a response, the eos token first.
  chat_template: str | None
  files: Mapping[str, str]  # What an export writes, by file name.

  @property
  def vocab_size(self) -> int:
    """Largest token id plus one; a model may have more rows."""
    return max(self.backend.get_vocab().values()) + 1

  @property
  def bos_id(self) -> int | None:
    """The token that starts a text, where the model has one."""
    bos = self.special.get("bos")
    return None if bos is None else self.backend.token_to_id(bos)

  @property
  def eos_id(self) -> int:
    """The token that is written where a response is to end."""
    return self.backend.token_to_id(self.special["eos"])

  @property
  def pad_id(self) -> int:
    """The token that fills a row; the end token where none is kept for it."""
    return self.backend.token_to_id(self._pad_token)

  @property
  def _pad_token(self) -> str:
    return self.special.get("pad", self.special["eos"])

  @property
  def joiner(self) -> str:
    """What `decode` puts between two tokens, which are words without one."""
    return " " if self.backend.decoder is None else ""

  @property
  def special_ids(self) -> list[int]:
    """Tokens that are no text."""
    added = self.backend.get_added_tokens_decoder()
    return sorted(i for i, token in added.items() if token.special)

  def encode(self, text: str, *, add_special: bool = False) -> list[int]:
    """Returns token ids.

    Args:
      text: special tokens in it are read as such.
      add_special: add what the model expects around a bare text, such as its
        start token; a rendered chat holds these already.

    Raises:
      UserError: the text holds what this vocabulary has no tokens for.
    """
    try:
      return self.backend.encode(text, add_special_tokens=add_special).ids
    except BaseException as error:
      _explain(error, f"encode {text[:60]!r}")

  def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
    """Returns the text of token ids, an array of one axis or a list.

    Raises:
      UserError: it takes too much time or memory.
    """
    ids = [int(i) for i in ids]
    try:
      return self.backend.decode(ids, skip_special_tokens=skip_special)
    except BaseException as error:
      _explain(error, f"decode {ids[:8]}")

  def render(
    self,
    messages: Sequence[Mapping[str, str]],
    *,
    reply: str = "",
    **variables: Any,
  ) -> str:
    """Renders a chat with the model's own template, up to its next reply.

    Args:
      messages: `{"role": "user", "content": "..."}`, in their order.
      reply: how the assistant's reply begins; the model continues it.
      **variables: further ones of the template, such as
        `enable_thinking=False`.

    Raises:
      UserError: the model has no template, or it refuses the messages.
    """
    if self.chat_template is None:
      raise UserError(
        "this model has no chat template: give it plain text to continue "
        "(launch.generate --raw)"
      )
    for message in messages:
      wrong = not isinstance(message, Mapping) or not all(
        isinstance(message.get(key), str) for key in ("role", "content")
      )
      if wrong:
        raise UserError(
          f"a chat message is {message!r}; it must be "
          '{"role": TEXT, "content": TEXT}'
        )
    named = {f"{role}_token": token for role, token in self.special.items()}
    given = {
      "messages": [dict(message) for message in messages],
      "add_generation_prompt": True,
    }
    return _render(self.chat_template, **given | named | variables) + reply

  def encode_chat(
    self,
    messages: Sequence[Mapping[str, str]],
    *,
    reply: str = "",
    **variables: Any,
  ) -> list[int]:
    """Token ids of `render`."""
    return self.encode(self.render(messages, reply=reply, **variables))

  def pad(self, prompts: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Pads prompts on the right to one array; `decode.prefill` masks it.

    Args:
      prompts: token ids of each.
      length: P.

    Returns:
      int32 tokens_BP.

    Raises:
      UserError: naming a prompt that is empty, does not fit, or ends with the
        padding token, from which it could not be told.
    """
    rows = np.full((len(prompts), length), self.pad_id, np.int32)
    for i, ids in enumerate(prompts):
      name = f"prompt {i} ({self.decode(ids, skip_special=False)[:60]!r})"
      if not ids:
        raise UserError(f"prompt {i} is empty")
      if len(ids) > length:
        raise UserError(
          f"{name} has {len(ids)} tokens, more than the prompt length "
          f"{length}: shorten it or raise the length"
        )
      if ids[-1] == self.pad_id:
        raise UserError(
          f"{name} ends with the padding token {self._pad_token!r}"
        )
      rows[i, : len(ids)] = ids
    return rows

  def huggingface_files(self) -> dict[str, str]:
    """Returns the text of every tokenizer file of an exported folder."""
    return dict(self.files)


def load(path: str | pathlib.Path) -> TextTokenizer:
  """Reads the tokenizer of a Hugging Face folder or of a GGUF file.

  A model that is not supported is named as such, whatever its tokenizer is.

  Raises:
    UserError: naming what is missing, damaged or not supported.
  """
  path = pretrained.checked(path)
  if not path.is_dir() or outside_files.is_there(path / "config.json"):
    pretrained.read_any_card(path)
  with outside_files.library(path):
    return _from_folder(path) if path.is_dir() else _from_gguf(path)


def vocabulary(tokenizer: Tokenizer) -> str:
  """Names a tokenizer's tokens: two of one vocabulary read each other's."""
  return _vocabulary(tokenizer.huggingface_files()["tokenizer.json"])


@functools.lru_cache(maxsize=4)
def _vocabulary(text: str) -> str:
  saved = json.loads(text)
  added = {token["content"]: token["id"] for token in saved["added_tokens"]}
  tokens = saved["model"]["vocab"]
  # Where they are numbered by their places, a list.
  tokens = tokens | added if isinstance(tokens, dict) else [tokens, added]
  listed = json.dumps(tokens, sort_keys=True, ensure_ascii=False)
  return hashlib.blake2b(listed.encode(), digest_size=16).hexdigest()


def _from_folder(folder: pathlib.Path) -> TextTokenizer:
  files = {
    name: outside_files.read_text(folder / name, tokenizer_json.BYTES)
    for name in _FILES
    if outside_files.is_there(folder / name)
  }
  if "tokenizer.json" not in files:
    raise UserError(
      f"{folder} has no tokenizer.json; write one with transformers: "
      "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )
  where = f"{folder}/tokenizer.json"
  saved = outside_files.parse_json(files["tokenizer.json"], where)
  tokenizer_json.check(saved, where)
  config, older, added = (
    hf.read_json(folder / name) or {}
    for name in (
      "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    )
  )  # fmt: skip
  said = special_tokens.named(config, older)
  try:
    special = special_tokens.by_role(said)
    complete = special_tokens.completed(saved, said, added)
  except UserError as error:
    raise UserError(f"{folder}: {error}") from error
  text = files["tokenizer.json"] if complete is saved else json.dumps(complete)
  backend = _backend(text, complete, where)
  # A file of its own comes before what stands in the config.
  template: Any = files.get("chat_template.jinja", config.get("chat_template"))
  if isinstance(template, list):  # Several by name.
    template = {t["name"]: t["template"] for t in template}.get("default")
  _check_template(template, folder)
  if "eos" not in special:
    raise UserError(f"{folder}: the tokenizer names no end token (eos_token)")
  eos_id, (source, ends) = backend.token_to_id(special["eos"]), hf.ends(folder)
  if ends and eos_id not in ends:
    raise UserError(
      f"{source} ends replies with the tokens {', '.join(map(str, ends))}, the "
      f"tokenizer with {eos_id} ({special['eos']!r}): a text that ends with it "
      "would go on; name all tokens that end a reply in eos_token_id of "
      f"{folder}/generation_config.json"
    )
  return TextTokenizer(
    backend, special, _ends([eos_id, *ends]), template, files
  )


# llama.cpp's names of how text is cut before merging -> (regular expression or
# None for GPT-2's, single digits, whether whole words skip the merges).
_PRE = {
  "default": (None, False, False),
  "gpt-2": (None, False, False),
  "smollm": (None, True, False),
  "qwen2": (tokenizer_json.QWEN2, False, False),
  "llama-bpe": (tokenizer_json.LLAMA3, False, True),
}
GGUF_PRE = tuple(_PRE)
_CONTROL, _USER_DEFINED = 3, 4  # ggml's kinds of tokens.
# Roles of tokens -> ggml's names of them, and those that a folder can name.
_GGUF_ROLES = {
  "bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown", "eot": "eot",
  "eom": "eom",
}  # fmt: skip
_WRITTEN = ("bos", "eos", "pad", "unk")


def _from_gguf(path: pathlib.Path) -> TextTokenizer:
  said = gguf.open_file(path).metadata
  kind = said.get("tokenizer.ggml.model")
  pre = said.get("tokenizer.ggml.pre", "default")
  if kind != "gpt2" or pre not in _PRE:
    raise UserError(
      f"{path}: tokenizer.ggml.model={kind} with tokenizer.ggml.pre={pre} is "
      f"not supported: use gpt2 with {', '.join(_PRE)}"
    )
  try:
    tokens = said["tokenizer.ggml.tokens"]
    merges = said["tokenizer.ggml.merges"]
    kinds = said["tokenizer.ggml.token_type"]
  except KeyError as error:
    raise UserError(f"{path}: the tokenizer lacks {error}") from error
  ids = _gguf_roles(path, said, len(tokens))
  special = {role: tokens[i] for role, i in ids.items() if role in _WRITTEN}
  special.setdefault("pad", special["eos"])
  vocab = {token: i for i, token in enumerate(tokens)}
  backend = gguf_backend(pre, vocab, [tuple(m.split(" ", 1)) for m in merges])
  lib = _library()
  added = {
    kind: [
      lib.AddedToken(token, special=kind == _CONTROL, normalized=False)
      for token, its in zip(tokens, kinds, strict=True)
      if its == kind
    ]
    for kind in (_CONTROL, _USER_DEFINED)
  }
  # All at once: each call goes through all that were added before.
  backend.add_special_tokens(added[_CONTROL])
  backend.add_tokens(added[_USER_DEFINED])
  # Without a word about it llama.cpp adds it to Llama 3's texts only.
  adds_bos = said.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe")
  if adds_bos and "bos" in special:
    bos = special["bos"]
    backend.post_processor = lib.processors.TemplateProcessing(
      single=f"{bos} $A", special_tokens=[(bos, ids["bos"])]
    )
  template = said.get("tokenizer.chat_template")
  _check_template(template, path)
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    **{f"{role}_token": token for role, token in special.items()},
    "clean_up_tokenization_spaces": False,
    **({} if template is None else {"chat_template": template}),
  }
  files = {
    "tokenizer.json": backend.to_str(pretty=True) + "\n",
    "tokenizer_config.json": hf.to_json(config),
  }
  ends = [ids[role] for role in ("eos", "eot", "eom") if role in ids]
  return TextTokenizer(backend, special, _ends(ends), template, files)


def gguf_backend(
  pre: str, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]
) -> Any:
  """A `tokenizers.Tokenizer` of GPT-2's kind, without added tokens.

  Args:
    pre: llama.cpp's name of how text is cut, one of `GGUF_PRE`.
    vocab: ids by token.
    merges: pairs of tokens, in their order.
  """
  lib = _library()
  pattern, digits, ignore_merges = _PRE[pre]
  backend = lib.Tokenizer(
    lib.models.BPE(
      vocab=dict(vocab), merges=[*merges], ignore_merges=ignore_merges
    )
  )
  cut = lib.pre_tokenizers
  steps = [cut.ByteLevel(add_prefix_space=False, use_regex=pattern is None)]
  if pattern is not None:
    steps.insert(0, cut.Split(lib.Regex(pattern), "isolated"))
  if digits:
    steps.insert(0, cut.Digits(individual_digits=True))
  if pre == "qwen2":
    backend.normalizer = lib.normalizers.NFC()
  backend.pre_tokenizer = cut.Sequence(steps)
  backend.decoder = lib.decoders.ByteLevel()
  return backend


def _check_template(template: Any, path: pathlib.Path) -> None:
  if template is not None and not isinstance(template, str):
    raise UserError(
      f"{path}: chat_template is {outside_files.shown(template)}, no text: "
      "mend it"
    )


def _gguf_roles(path: Any, said: Mapping[str, Any], count: int):
  """Ids of the tokens that have a role.

  Raises:
    UserError: one is no token, there is no end, or texts are given one.
  """
  ids = {}
  for role, name in _GGUF_ROLES.items():
    token = said.get(f"tokenizer.ggml.{name}_token_id")
    if token is None:
      continue
    where = f"{path}: tokenizer.ggml.{name}_token_id"
    ids[role] = outside_files.integer(token, where, high=count - 1)
  if "eos" not in ids:
    raise UserError(f"{path}: tokenizer.ggml.eos_token_id is missing")
  if said.get("tokenizer.ggml.add_eos_token"):
    raise UserError(
      f"{path}: tokenizer.ggml.add_eos_token=true, which ends every prompt, is "
      "not supported"
    )
  return ids


def _ends(ids: Sequence[int]) -> tuple[int, ...]:
  """What ends a response: the token that is written, then the others."""
  return tuple(dict.fromkeys(ids))


def _library():
  try:
    import tokenizers
  except ImportError:
    raise UserError(f"a text tokenizer {_EXTRA}") from None
  return tokenizers


def _backend(text: str, saved: Mapping[str, Any], where: str) -> Any:
  """What reads and writes text; a file with odd parts has a process for it."""
  lib = _library()
  with outside_files.library(where):
    if not tokenizer_json.is_plain(saved):
      return _limited(text, where)
    backend = lib.Tokenizer.from_str(text)
    backend.no_padding()
    backend.no_truncation()
    return backend


def _limited(text: str, where: str) -> text_limits.LimitedTokenizer:
  try:
    return text_limits.LimitedTokenizer(text)
  except UserError as error:
    raise UserError(
      f"{where} cannot be used ({error}): fetch it again, or use another model"
    ) from error


def _explain(error: BaseException, what: str) -> NoReturn:
  """Says what a tokenizer was doing when it failed.

  Raises:
    UserError: of whatever it raised; the library has nothing narrower.
  """
  if isinstance(error, Exception) or outside_files.panicked(error):
    raise UserError(f"the tokenizer cannot {what}: {error}") from error
  raise error


def _render(template: str, **variables: Any) -> str:
  """Renders a template, which is a program, within limits."""
  if importlib.util.find_spec("jinja2") is None:
    raise UserError(f"a chat template {_EXTRA}")
  try:
    return text_limits.shared().render(template, variables)
  except UserError as error:
    raise UserError(f"the chat template gives no prompt: {error}") from error
