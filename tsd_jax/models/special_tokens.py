"""Special tokens of a tokenizer's folder, which several files name.

`tokenizer.json` has the vocabulary. `tokenizer_config.json`, and beside it in
older folders `special_tokens_map.json` and `added_tokens.json`, say which token
has which role, and which tokens are never cut. They are read in the order in
which transformers reads them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from tsd_jax.base import outside_files
from tsd_jax.base.errors import UserError

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Tokens without a role: today's name of their list, and an older one.
_MORE = ("extra_special_tokens", "additional_special_tokens")
_LISTED = "added_tokens_decoder"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

Said = Mapping[str, Any]  # Content of a JSON file.


def named(config: Said, older: Said) -> Said:
  """What is said of tokens by name.

  Args:
    config: tokenizer_config.json.
    older: special_tokens_map.json; it is not read where the config lists added
      tokens, and comes first where it does not.
  """
  return config if _LISTED in config else {**config, **older}


def by_role(said: Said) -> dict[str, str]:
  """Tokens by their roles, those that have one.

  Raises:
    UserError: one is no text.
  """
  found = {role: said.get(f"{role}_token") for role in ROLES}
  return {
    role: content
    for role, token in found.items()
    if token is not None and (content := _content(f"{role}_token", token))
  }


def completed(tokenizer: Said, said: Said, older: Said) -> Said:
  """A tokenizer that knows which of its tokens the configs call special.

  Such a token is one wherever it stands in a text, whatever the merges would
  make of its characters.

  Args:
    tokenizer: tokenizer.json, checked.
    said: what is said of tokens by name.
    older: added_tokens.json, which is read where the config lists none.

  Returns:
    tokenizer.json: the very same where nothing is new.

  Raises:
    UserError: a config has a token that the vocabulary has not, or has under
      another id: the model has another row for it, or none.
  """
  if said.get("split_special_tokens"):
    raise UserError(
      "tokenizer_config.json says split_special_tokens=true: tokenizers that "
      "cut special tokens are not supported"
    )
  roles = {*by_role(said).values()}
  added = tokenizer.get("added_tokens") or []
  known = {token["content"]: token for token in added}
  ids = _ids(tokenizer["model"]["vocab"])
  ids |= {content: token["id"] for content, token in known.items()}
  new: dict[str, dict[str, Any]] = {}
  for i, content, flags in _listed(said, older):
    if ids.get(content) != i:
      raise UserError(
        f"the token {content!r} has the id {i} in the config and "
        f"{ids.get(content, 'none')} in tokenizer.json: write the folder again "
        "with transformers (save_pretrained)"
      )
    token = _token(i, content, flags)
    if token == known.get(content) or (
      content in known and _LISTED not in said
    ):
      continue  # Nothing new, or from a file that is older than the vocabulary.
    token["special"] |= content in roles
    new[content] = token
  special = roles.union(_without_role(said))
  for content in sorted(special - known.keys() - new.keys()):
    if content not in ids:
      raise UserError(
        f"the special token {content!r} is not in the vocabulary of "
        "tokenizer.json, so that the model has no row for it"
      )
    new[content] = _token(ids[content], content, {"special": True})
  if not new:
    return tokenizer
  tokens = sorted((known | new).values(), key=lambda token: token["id"])
  return {**tokenizer, "added_tokens": tokens}


def _ids(vocab: Any) -> dict[str, int]:
  """Ids by token; a list is of pairs, whose places are their ids."""
  if isinstance(vocab, list):
    return {pair[0]: i for i, pair in enumerate(vocab)}
  return dict(vocab)


def _token(i: int, content: str, flags: Said) -> dict[str, Any]:
  """An entry of `added_tokens`, with the library's defaults."""
  named = {name: bool(flags.get(name)) for name in _FLAGS}
  named["normalized"] = bool(flags.get("normalized", not named["special"]))
  return {"id": i, "content": content, **named}


def _listed(said: Said, older: Said) -> Iterator[tuple[int, str, Said]]:
  """The added tokens that a config lists: id, text and flags.

  Raises:
    UserError: an entry is no token.
  """
  if _LISTED not in said:
    said = {_LISTED: {i: {"content": token} for token, i in older.items()}}
  try:
    for i, flags in said[_LISTED].items():
      yield int(i), _content(_LISTED, flags["content"]), flags
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(f"{_LISTED} holds what is no token ({error!r})") from error


def _without_role(said: Said) -> Iterator[str]:
  """Special tokens that have a name of their own, or none."""
  for name in _MORE:
    more = said.get(name) or ()
    for token in more.values() if isinstance(more, Mapping) else more:
      yield _content(name, token)


def _content(name: str, token: Any) -> str:
  """A token's text.

  Raises:
    UserError: there is none.
  """
  content = token.get("content") if isinstance(token, Mapping) else token
  if not isinstance(content, str):
    raise UserError(
      f"{name} is {outside_files.shown(content)}, no text: mend it"
    )
  return content
