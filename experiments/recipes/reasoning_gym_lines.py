"""reasoning_gym's tasks as text tasks: its problems in a file, its verifiers.

  pip install -e '.[text]' reasoning-gym==0.1.25
  python -m experiments.recipes.reasoning_gym_lines --dataset=chain_sum \
    --count=2000 \
    --options='{"max_terms": 2, "max_digits": 2}' --output=chain_sum.jsonl

then TextConfig(file="chain_sum.jsonl", reward=reasoning_gym_lines.reward, ...).
The answer is what stands between <answer> tags, or else the whole response.

Some verifiers run the answer as Python. They are handed nothing but harmless
text, such as short sums, or, where that would not do, are not offered.
"""

import functools
import hashlib
import importlib.metadata
import json
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

try:  # Here, for what is imported in a call is imported in every call.
  import reasoning_gym
except ImportError:
  reasoning_gym = None

from tsd_jax.base import config as config_lib
from tsd_jax.base import output_files, paths
from tsd_jax.base.errors import UserError
from tsd_jax.run import directory
from tsd_jax.tasks import data

VERSION = "0.1.25"  # Of reasoning_gym: what follows was read in its code.
# Verifiers that call `eval` or sympy's parser, and all that they
# may see of an answer. No list is multiplied and nothing is raised to a power.
_SUM = r"(?!.*\*\*)(?!.*[0-9]{10})[0-9+\-*/() ]*"
_MATRIX = r"[0-9,\[\]\s-]*"
HARMLESS = {
  "binary_matrix": _MATRIX,
  "countdown": _SUM,
  "n_queens": r"[Q_\s]*",
  "puzzle24": _SUM,
  "spiral_matrix": _MATRIX,
  "string_insertion": r"[A-E]*",
}
# Their answers are formulas, for which that is too little.
_REFUSED = {
  "intermediate_integration", "polynomial_multiplication", "simple_integration",
}  # fmt: skip
LONGEST = 1000  # Characters of an answer that a verifier sees.
# Answers that no verifier may like on most of a few problems.
WRONG = (
  "", "x", "I do not know", "NaN", "inf", "0", "1", "-1", "0.5", "None", "True",
  "False", "yes", "no", "[]", "{}", "()", "\\boxed{}", "?",
)  # fmt: skip
_VETTED = 10


def reward(prompt: str, response: str, example: dict[str, Any]) -> float:
  """The verifier's score of the response's answer.

  Args:
    prompt: what the model saw.
    response: what it wrote.
    example: a line of the file.

  Returns:
    What the verifier says, from 0 to 1; 0 for an answer that it may not see or
    cannot read.
  """
  del prompt
  found = re.findall(r"<answer>(.*?)</answer>", response, re.DOTALL)
  answer = (found[-1] if found else response).strip()
  name = example["dataset"]
  if len(answer) > LONGEST or name in _REFUSED:
    return 0.0
  if name in HARMLESS and not re.fullmatch(HARMLESS[name], answer, re.DOTALL):
    return 0.0
  verifier = _verifier(name)
  try:
    score = float(verifier(answer, example["entry"]))
  except Exception:  # Some raise at what they cannot read: that is no answer.
    return 0.0
  return min(1.0, max(0.0, score))  # One gives 1.0000000000000002; NaN is 0.


def lines(
  name: str,
  options: dict[str, Any],
  count: int,
  seed: int,
  system: str,
  shots: int = 0,
) -> Iterator[dict[str, Any]]:
  """Problems as lines of a text task; one that is drawn again is left out.

  Args:
    name: of the dataset.
    options: its settings.
    count: how many problems are drawn.
    seed: what they are drawn by.
    system: the system's message, or none.
    shots: how many of the first problems are worked examples of the others.

  Raises:
    UserError: there is no such dataset or setting, its verifier may not see
      answers, or does not recognise a right one that went through JSON.
  """
  if name in _REFUSED:
    raise UserError(
      f"dataset={name}: its verifier runs the answer as code, and no harmless "
      "part of the language would do"
    )
  try:
    problems = _library().create_dataset(name, size=count, seed=seed, **options)
  except (AssertionError, TypeError, ValueError) as error:
    raise UserError(f"dataset={name}, options={options}: {error}") from error
  _check_verifier(name, options)
  opening = [{"role": "system", "content": system}] if system else []
  seen: set[str] = set()
  for number, entry in enumerate(problems):
    if entry["question"] in seen:
      continue
    seen.add(entry["question"])
    question = {"role": "user", "content": entry["question"]}
    if len(seen) <= shots:
      answer = {"role": "assistant", "content": str(entry["answer"])}
      opening += [question, answer]
      continue
    example = _example(name, number, entry)
    right = reward("", str(entry["answer"]), example)
    if right != 1.0:
      raise UserError(
        f"dataset={name}, problem {number}: its verifier gives its own answer "
        f"{right} after a way through JSON, so it cannot grade"
      )
    yield {"messages": [*opening, question], **example}


def _example(name: str, number: int, entry: dict[str, Any]) -> dict[str, Any]:
  try:
    return json.loads(json.dumps({"dataset": name, "entry": entry}))
  except (TypeError, ValueError) as error:
    raise UserError(
      f"dataset={name}, problem {number}: {type(error).__name__}: {error}"
    ) from error


def _check_verifier(name: str, options: dict[str, Any]) -> None:
  """Refuses a verifier that one and the same wrong answer satisfies.

  Raises:
    UserError: naming it and the answer.
  """
  drawn = _library().create_dataset(name, size=_VETTED, seed=0, **options)
  examples = [_example(name, number, e) for number, e in enumerate(drawn)]
  for constant in WRONG:
    earned = [
      reward("", constant, example)
      for example in examples
      # Where it is no wrong one.
      if constant.lower() != str(example["entry"]["answer"]).strip().lower()
    ]
    if 2 * sum(score == 1.0 for score in earned) > len(earned):
      raise UserError(
        f"dataset={name}: its verifier gives {constant!r} 1 on most problems "
        "where that is not the answer, so it cannot grade; choose another one"
      )


def problems_file(
  name: str, options: dict[str, Any], count: int, system: str, shots: int = 0
) -> pathlib.Path:
  """Writes problems into the folder of datasets, once.

  Args:
    name: of the dataset.
    options: its settings.
    count: how many problems are drawn, with seed 0.
    system: the system's message, or none.
    shots: how many of them are worked examples.

  Returns:
    The file, for `TextConfig.file`.

  Raises:
    UserError: as `lines`.
  """
  made_of = json.dumps([VERSION, name, options, count, system, shots])
  digest = hashlib.sha256(made_of.encode()).hexdigest()[:8]
  file = data.default_data_dir() / f"{name}_{count}_{digest}.jsonl"
  if not file.is_file():
    text = "".join(
      json.dumps(line) + "\n"
      for line in lines(name, options, count, 0, system, shots)
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    directory.write_whole(file, text)
  return file


@functools.cache
def _verifier(name: str) -> Callable[[str, dict[str, Any]], float]:
  return _library().get_score_answer_fn(name)


def _library():
  try:
    found = importlib.metadata.version("reasoning-gym")
  except importlib.metadata.PackageNotFoundError:
    found = "missing"
  if found != VERSION:
    raise UserError(
      f"reasoning_gym is {found}, and only {VERSION} was looked through: pip "
      f"install reasoning-gym=={VERSION}"
    )
  return reasoning_gym


def main(overrides):
  """Writes the file."""
  del overrides  # There is no --config.
  name, output = map(config_lib.required, (_DATASET, _OUTPUT))
  output = paths.named(output)
  if output.exists():
    raise UserError(f"--output={output} exists: name a new file")
  if _COUNT.value < 1:
    raise UserError(f"--count={_COUNT.value} must be at least 1")
  try:
    options = json.loads(_OPTIONS.value)
  except json.JSONDecodeError as error:
    raise UserError(f"--options={_OPTIONS.value} is no JSON: {error}") from None
  if not isinstance(options, dict):
    raise UserError(f"--options={_OPTIONS.value} is no object of settings")
  found = lines(
    name, options, _COUNT.value, _SEED.value, _SYSTEM.value, _SHOTS.value
  )
  text = "".join(json.dumps(line) + "\n" for line in found)
  output_files.write_whole(output, text)
  print(f"{text.count(chr(10))} problems of {name}: {output}")


if __name__ == "__main__":  # Runs import the reward: no flags for them.
  _DATASET = flags.DEFINE_string("dataset", None, "Its name in reasoning_gym.")
  _OPTIONS = flags.DEFINE_string("options", "{}", "Its settings, as JSON.")
  _COUNT = flags.DEFINE_integer("count", 2000, "How many problems are drawn.")
  _SEED = flags.DEFINE_integer("seed", 0, "What they are drawn by.")
  _SYSTEM = flags.DEFINE_string(
    "system",
    "Give your final answer between <answer> and </answer> tags.",
    "The system's message; empty for the chat template's own.",
  )
  _SHOTS = flags.DEFINE_integer(
    "shots", 0, "Problems that become worked examples of the others.", 0
  )
  _OUTPUT = config_lib.path_flag("output", None, "JSON lines, a new file.")
  config_lib.run(main)
