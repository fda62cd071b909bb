"""Tokenizers and chat templates of published models.

A thin wrapper over Hugging Face's `tokenizers`, read from a folder or built
from the metadata of a GGUF file. Needs the extra `text`.

Prompts are padded on the right to a fixed length. The model counts positions
from a prompt's first token and a response's from the prompt's own length
(`decode.prefill`), so that a padded prompt gives the very logits of the bare
one; padding on the left would shift all of its positions.
"""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from tsd_jax.base import outside_files
from tsd_jax.base.errors import UserError
from tsd_jax.models import gguf, hf, pretrained, text_limits, tokenizer_json

# Files of a tokenizer that an export copies as they are.
_FILES = (
  "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
  "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
  "chat_template.json",
)  # fmt: skip
_ROLES = ("bos", "eos", "pad")
_EXTRA = "needs the extra `text`: pip install -e '.[text]'"


@dataclasses.dataclass(frozen=True, eq=False)
class TextTokenizer:
  """Text to token ids and back, and chats to prompts."""

  backend: Any  # tokenizers.Tokenizer, or a text_limits.LimitedTokenizer.
  special: Mapping[str, str]  # Tokens by role: bos, eos, pad; bos may lack.
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
    """The token that ends a response."""
    return self.backend.token_to_id(self.special["eos"])

  @property
  def pad_id(self) -> int:
    """The token that fills a row; often the end token again."""
    return self.backend.token_to_id(self.special["pad"])

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
      raise UserError("this model has no chat template: encode plain text")
    for message in messages:
      wrong = not isinstance(message, Mapping) or not all(
        isinstance(message.get(key), str) for key in ("role", "content")
      )
      if wrong:
        raise UserError(
          f"a chat message is {message!r}; it must be "
          '{"role": TEXT, "content": TEXT}'
        )
    text = _render(
      self.chat_template,
      messages=[dict(message) for message in messages],
      add_generation_prompt=True,
      **{f"{role}_token": token for role, token in self.special.items()},
      **variables,
    )
    return text + reply

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
          f"{name} ends with the padding token {self.special['pad']!r}"
        )
      rows[i, : len(ids)] = ids
    return rows

  def huggingface_files(self) -> dict[str, str]:
    """Returns the text of every tokenizer file of an exported folder."""
    return dict(self.files)


def load(path: str | pathlib.Path) -> TextTokenizer:
  """Reads the tokenizer of a Hugging Face folder or of a GGUF file.

  Raises:
    UserError: naming what is missing, damaged or not supported.
  """
  path = pretrained.checked(path)
  with outside_files.library(path):
    return _from_folder(path) if path.is_dir() else _from_gguf(path)


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
  backend = _backend(files["tokenizer.json"], f"{folder}/tokenizer.json")
  config = hf.read_json(folder / "tokenizer_config.json") or {}
  named = (hf.read_json(folder / "special_tokens_map.json") or {}) | config
  special = {}
  for role in _ROLES:
    token = named.get(f"{role}_token")
    special[role] = token["content"] if isinstance(token, Mapping) else token
  template = files.get("chat_template.jinja") or config.get("chat_template")
  if template is None and "chat_template.json" in files:
    saved = hf.read_json(folder / "chat_template.json") or {}
    template = saved.get("chat_template")
  if isinstance(template, list):  # Several by name.
    template = {t["name"]: t["template"] for t in template}.get("default")
  return _checked(backend, special, template, files, folder)


# llama.cpp's names of how text is cut before merging -> (regular expression or
# None for GPT-2's, single digits, whether whole words skip the merges).
_PRE = {
  "default": (None, False, False),
  "gpt-2": (None, False, False),
  "smollm": (None, True, False),
  "qwen2": (tokenizer_json.QWEN2, False, False),
  "llama-bpe": (tokenizer_json.LLAMA3, False, True),
}
_CONTROL, _USER_DEFINED = 3, 4  # ggml's kinds of tokens.


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
    ids = {
      role: said.get(f"tokenizer.ggml.{name}_token_id")
      for role, name in zip(_ROLES, ("bos", "eos", "padding"), strict=True)
    }
  except KeyError as error:
    raise UserError(f"{path}: the tokenizer lacks {error}") from error
  last = len(tokens) - 1
  special = {
    role: tokens[outside_files.integer(i, f"{path}: {role}_token", high=last)]
    for role, i in ids.items()
    if i is not None
  }
  if "eos" in special:
    special.setdefault("pad", special["eos"])
  pattern, digits, ignore_merges = _PRE[pre]
  lib = _library()
  backend = lib.Tokenizer(
    lib.models.BPE(
      vocab={token: i for i, token in enumerate(tokens)},
      merges=[tuple(merge.split(" ", 1)) for merge in merges],
      ignore_merges=ignore_merges,
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
  if said.get("tokenizer.ggml.add_bos_token") and "bos" in special:
    bos = special["bos"]
    backend.post_processor = lib.processors.TemplateProcessing(
      single=f"{bos} $A", special_tokens=[(bos, ids["bos"])]
    )
  template = said.get("tokenizer.chat_template")
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
  return _checked(backend, special, template, files, path)


def _checked(backend, special, template, files, path) -> TextTokenizer:
  """Refuses a tokenizer without an end, or with roles that it lacks."""
  texts = {f"{role}_token": token for role, token in special.items()}
  for name, text in (texts | {"chat_template": template}).items():
    if text is not None and not isinstance(text, str):
      raise UserError(
        f"{path}: {name} is {outside_files.shown(text)}, no text: mend it"
      )
  special = {role: token for role, token in special.items() if token}
  if "eos" not in special:
    raise UserError(f"{path}: the tokenizer names no end token (eos_token)")
  # Where no token is kept for padding, masks make any one do.
  special.setdefault("pad", special["eos"])
  for role, token in special.items():
    if backend.token_to_id(token) is None:
      raise UserError(
        f"{path}: {role}_token {token!r} is not in the vocabulary"
      )
  return TextTokenizer(backend, special, template, files)


def _library():
  try:
    import tokenizers
  except ImportError:
    raise UserError(f"a text tokenizer {_EXTRA}") from None
  return tokenizers


def _backend(text: str, where: str) -> Any:
  """What reads and writes text; a file with odd parts has a process for it."""
  lib, saved = _library(), outside_files.parse_json(text, where)
  tokenizer_json.check(saved, where)
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
    raise UserError(f"the chat template refuses this chat: {error}") from error
