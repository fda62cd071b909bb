"""Chat templates, rendered in jinja2's sandbox: they come with a download.

Imported by the process of `text_worker.py` alone: a template is a program,
which may not end.
"""

import functools
import json
from typing import Any

import jinja2
from jinja2 import ext, sandbox


def render(template: str, variables: dict[str, Any]) -> str:
  """The text that a template makes of a chat.

  `strftime_now` is left out on purpose: a prompt must not change from one day
  to the next. Templates that use it test for it first.

  Args:
    template: jinja2's.
    variables: messages, add_generation_prompt, special tokens, and more.

  Raises:
    Exception: of any kind; a template is a program.
  """
  return _compiled(template).render(**variables)


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
  def raise_exception(message):
    raise jinja2.TemplateError(message)

  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols]
  )
  # jinja2's own filter escapes for HTML.
  environment.filters["tojson"] = lambda x, indent=None: json.dumps(
    x, ensure_ascii=False, indent=indent
  )
  environment.globals["raise_exception"] = raise_exception
  return environment.from_string(template)
