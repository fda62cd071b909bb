"""Special tokens of a tokenizer's folder, which several files name.

`tokenizer.json` has the vocabulary. `tokenizer_config.json`, and beside it in
older folders `special_tokens_map.json` and `added_tokens.json`, say which token
has which role, and which tokens are never cut. They are read in the order in
which transformers reads them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from tsd_jax.base.errors import UserError

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Tokens without a role: today's name of their list, and an older one.
_MORE = ("extra_special_tokens", "additional_special_tokens")
_LISTED = "added_tokens_decoder"

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
    role: _content(f"{role}_token", token)
    for role, token in found.items()
    if token is not None
  }


def add(library: Any, backend: Any, said: Said, older: Said) -> None:
  """Tells a tokenizer which tokens the configs call special.

  Such a token is one wherever it stands in a text, whatever the merges would
  make of its characters.

  Args:
    library: the module `tokenizers`.
    backend: what it made of tokenizer.json; changed.
    said: what is said of tokens by name.
    older: added_tokens.json, which is read where the config lists none.

  Raises:
    UserError: a config has a token that the vocabulary has not, or has under
      another id: the model has another row for it, or none.
  """
  if said.get("split_special_tokens"):
    raise UserError(
      "tokenizer_config.json says split_special_tokens=true: tokenizers that "
      "cut special tokens are not supported"
    )
  special = {*by_role(said).values(), *_without_role(said)}
  ids = backend.get_vocab()
  known = {t.content: t for t in backend.get_added_tokens_decoder().values()}
  new: dict[str, Any] = {}
  for i, fields in _listed(said, older):
    content = fields["content"]
    if ids.get(content) != i:
      raise UserError(
        f"the token {content!r} has the id {i} in the config and "
        f"{ids.get(content, 'none')} in tokenizer.json: write the folder again "
        "with transformers (save_pretrained)"
      )
    # The config's word, but what is older is not heard where there is newer.
    if content not in known or _LISTED in said:
      new[content] = library.AddedToken(**fields)
      new[content].special |= content in special and content not in known
  for content in sorted(special - known.keys() - new.keys()):
    if content not in ids:
      raise UserError(
        f"the special token {content!r} is not in the vocabulary of "
        "tokenizer.json, so that the model has no row for it"
      )
    new[content] = library.AddedToken(content, special=True)
  backend.add_tokens(
    [t for name, t in new.items() if repr(t) != repr(known.get(name))]
  )


def _listed(said: Said, older: Said) -> Iterator[tuple[int, dict[str, Any]]]:
  """The added tokens that a config lists: their ids, and `AddedToken`'s words.

  Raises:
    UserError: an entry is no token.
  """
  if _LISTED not in said:
    said = {_LISTED: {i: {"content": token} for token, i in older.items()}}
  try:
    for i, fields in said[_LISTED].items():
      flags = {k: bool(v) for k, v in fields.items() if k in _FLAGS}
      content = _content(_LISTED, fields["content"])
      yield int(i), {"content": content, **flags}
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(f"{_LISTED} holds what is no token ({error!r})") from error


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


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
    raise UserError(f"{name}={token!r:.60} is no token")
  return content
