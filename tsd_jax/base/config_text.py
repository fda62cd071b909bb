"""A config as text: the flag of every field, under the comment of its code."""

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import typing
from collections.abc import Iterator
from typing import Any

from tsd_jax.base import config_values


def describe(config: Any) -> str:
  """Lists a config's fields as flags that would set them to what they are.

  Comments come from the code, with what a field may be; a field that no flag
  can set is a comment itself.

  Args:
    config: a dataclass, possibly of dataclasses.
  """
  return "\n".join(_lines(config, "config")) + "\n"


def _lines(config: Any, path: str) -> Iterator[str]:
  said = comments(type(config))
  hints = typing.get_type_hints(type(config))
  for field in dataclasses.fields(config):
    name, value = f"{path}.{field.name}", getattr(config, field.name)
    comment = said.get(field.name, "")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
      kind = config_values.snake_case(type(value).__name__)
      yield from _wrapped(f"{name} is {kind}. {comment}", before="\n# ")
      yield from _lines(value, name)
      continue
    flag, text = f"--{name}", config_values.unparse(value)
    if not field.init or not _reads(text, hints[field.name], value):
      flag, text = f"# {name}", str(value)
    notes = [comment, _choice(hints[field.name]), _default(field, value)]
    yield from _wrapped(" ".join(filter(None, notes)), before="# ")
    yield f"{flag}={text}"


def _wrapped(text: str, before: str) -> list[str]:
  """Lines of a comment; none of an empty one."""
  first, *others = textwrap.wrap(text.strip(), 76) or [""]
  lines = [before + first, *(f"# {line}" for line in others)]
  return lines if first else []


def _reads(text: str, annotation: Any, value: Any) -> bool:
  """Whether a flag can say a value."""
  try:
    return config_values.parse(text, annotation) == value
  except (TypeError, ValueError):
    return False


def _choice(annotation: Any) -> str:
  """What a field may be, where it is one of a few words or may be none."""
  args = typing.get_args(annotation)
  if typing.get_origin(annotation) is typing.Literal:
    return f"({config_values.type_name(annotation)})"
  return "(may be none)" if type(None) in args else ""


def _default(field: dataclasses.Field, value: Any) -> str:
  """The class's default, where the config has another value."""
  default = field.default
  if default is dataclasses.MISSING or default == value:
    return ""
  return f"(default {config_values.unparse(default)})"


def comments(cls: type) -> dict[str, str]:
  """Comments of a class's fields, those of its bases included."""
  found: dict[str, str] = {}
  for base in reversed(cls.__mro__):
    try:
      source = textwrap.dedent(inspect.getsource(base))
    except (OSError, TypeError):  # Of no file, or built in.
      continue
    found |= _comments_in(source)
  return found


def _comments_in(source: str) -> dict[str, str]:
  """Comments that stand before and beside the fields of a class."""
  tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
  said = {
    token.start[0]: token.string.lstrip("# ")
    for token in tokens
    if token.type == tokenize.COMMENT
  }
  alone = {n for n in said if source.splitlines()[n - 1].lstrip()[0] == "#"}
  (definition,) = ast.parse(source).body
  found = {}
  for node in getattr(definition, "body", ()):
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
      first, last = node.lineno, node.end_lineno or node.lineno
      while first - 1 in alone:
        first -= 1
      lines = [said[n] for n in range(first, last + 1) if n in said]
      found[node.target.id] = " ".join(lines)
  return found
