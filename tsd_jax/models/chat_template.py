"""Chat templates, rendered as transformers renders them.

They come with a download and run in jinja2's sandbox. Imported by the process
of `text_worker.py` alone: a template is a program, which may not end.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2 import ext, nodes, sandbox

# Names under which a message may hold what was thought before it was written.
_THOUGHT = ("reasoning_content", "thinking", "reasoning")
# What a template may ask for: None where nobody gave it, not undefined.
_NOT_GIVEN = {"tools": None, "documents": None}


class Refusal(jinja2.TemplateError):
  """What a template says itself against a chat."""


class Generation(ext.Extension):
  """`{% generation %}` marks what a model is trained on, and prints it."""

  tags = {"generation"}

  def parse(self, parser):
    """Reads the statements inside, in a scope of their own."""
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    call = self.call_method("_inside")
    return nodes.CallBlock(call, [], [], body).set_lineno(line)

  def _inside(self, caller):
    return caller()


def render(template: str, variables: dict[str, Any]) -> str:
  """The text that a template makes of a chat.

  `strftime_now` is left out on purpose: a prompt must not change from one day
  to the next. Templates that use it test for it first.

  Args:
    template: jinja2's.
    variables: messages, add_generation_prompt, special tokens, and more; those
      that are not given are undefined, but for tools and documents.

  Raises:
    ValueError: the template refuses the chat, is damaged, or fails.
    MemoryError: it needs too much.
  """
  messages = [_aliased(message) for message in variables.get("messages", ())]
  given = _NOT_GIVEN | variables | {"messages": messages}
  try:
    return _compiled(template).render(**given)
  except MemoryError:
    raise
  except Refusal as error:
    raise ValueError(f"it refuses this chat: {error}") from error
  except jinja2.TemplateSyntaxError as error:
    raise ValueError(
      f"it is damaged, line {error.lineno}: {error.message}"
    ) from error
  except Exception as error:  # A template is a program: it may raise anything.
    raise ValueError(f"it fails ({type(error).__name__}: {error})") from error


def _aliased(message: Mapping[str, Any]) -> dict[str, Any]:
  """A message under all names of its parts; what is None is left out."""
  said = {name: value for name, value in message.items() if value is not None}
  thought = [said[name] for name in _THOUGHT if name in said]
  if thought:
    said = {"thinking": thought[0], **said, "reasoning_content": thought[0]}
  return said


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Generation, ext.loopcontrols],
  )
  environment.filters["tojson"] = _to_json
  environment.globals["raise_exception"] = _refuse
  return environment.from_string(template)


def _refuse(message: Any) -> None:
  raise Refusal(str(message))


def _to_json(
  x, ensure_ascii=False, indent=None, separators=None, sort_keys=False
) -> str:
  """JSON as it is; jinja2's own filter escapes for HTML."""
  return json.dumps(
    x,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )
