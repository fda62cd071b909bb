"""Chat templates, rendered as transformers renders them.

A template came with a download and is a program: it runs in jinja2's sandbox.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tsd_jax.base.errors import UserError

# Names under which a message may hold what was thought before it was written.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def render(
  template: str, messages: Sequence[Mapping[str, Any]], **variables: Any
) -> str:
  """Renders a chat, up to the reply that comes next.

  Args:
    template: the model's.
    messages: the chat's.
    **variables: what else the template may read. Those that it asks for and
      that are not given are undefined, but for `tools` and `documents`, which
      are None.

  Raises:
    UserError: it is no template, fails, or refuses the messages.
  """
  try:
    import jinja2
  except ImportError:
    raise UserError(
      "a chat template needs the extra `text`: pip install -e '.[text]'"
    ) from None
  refused: list[str] = []

  def raise_exception(message: Any) -> None:
    refused.append(str(message))
    raise jinja2.TemplateError(str(message))

  chat = [_aliased(message) for message in messages]
  given = {"tools": None, "documents": None, "add_generation_prompt": True}
  try:
    environment = _environment(raise_exception)
    return environment.from_string(template).render(
      messages=chat, **(given | variables)
    )
  except jinja2.TemplateSyntaxError as error:
    raise UserError(
      f"the chat template is damaged, line {error.lineno}: {error.message}"
    ) from error
  except Exception as error:  # A template is a program: it may raise anything.
    if refused:
      raise UserError(
        f"the chat template refuses this chat: {refused[-1]}"
      ) from error
    raise UserError(
      f"the model's chat template fails ({type(error).__name__}: {error}): "
      "mend it, or use plain text"
    ) from error


def _aliased(message: Mapping[str, Any]) -> dict[str, Any]:
  """A message under all names of its parts; what is None is left out."""
  said = {name: value for name, value in message.items() if value is not None}
  thought = [said[name] for name in _REASONING if name in said]
  if thought:
    said = {"thinking": thought[0], **said, "reasoning_content": thought[0]}
  return said


def _environment(raise_exception) -> Any:
  """What a template finds: jinja2's own, and what transformers adds.

  `strftime_now` is left out on purpose: a prompt must not change from one day
  to the next. Templates that use it test for it first.
  """
  from jinja2 import ext, nodes, sandbox

  class Generation(ext.Extension):
    """`{% generation %}` marks what a model is trained on; it prints it."""

    tags = {"generation"}

    def parse(self, parser):
      """The statements inside, in a scope of their own."""
      line = next(parser.stream).lineno
      body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
      return nodes.CallBlock(
        self.call_method("_inside"), [], [], body
      ).set_lineno(line)

    def _inside(self, caller):
      return caller()

  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Generation, ext.loopcontrols],
  )
  environment.filters["tojson"] = _to_json
  environment.globals["raise_exception"] = raise_exception
  return environment


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
