"""Whether a response's last answer equals the example's, by math-verify.

  pip install math-verify

then `TextConfig(file=..., reward=math.reward)`, with lines such as
{"prompt": "What is 1/2 + 1/4?", "answer": "3/4"}.
"""

from typing import Any

from tsd_jax.base.errors import UserError

try:
  import math_verify
except ImportError as error:
  raise UserError(
    f"rewards.verifiers.math needs math-verify ({error}): pip install "
    "math-verify"
  ) from None

_NO_LIMIT = 0  # The worker has its own, and kills what does not keep it.


def reward(prompt: str, response: str, example: dict[str, Any]) -> float:
  r"""1 where the response's answer equals the example's, else 0.

  Args:
    prompt: what the model saw.
    response: what it wrote: LaTeX, best in \boxed{}, or a plain number.
    example: a line of the file; its `answer` is text, with or without dollars,
      or a number.
  """
  del prompt
  wanted = _parsed(f"${str(example['answer']).strip().strip('$')}$")
  if not wanted:
    raise ValueError(f"no mathematics in the answer {example['answer']!r}")
  given = _parsed(response)
  return float(math_verify.verify(wanted, given, timeout_seconds=_NO_LIMIT))


def _parsed(text: str) -> list:
  return math_verify.parse(text, parsing_timeout=_NO_LIMIT)
