"""What a second verifier says of held-out answers: audit.json and a row.

The rules that read it are in `hacking.py`.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tsd_jax.base import outside_files
from tsd_jax.base.errors import UserError
from tsd_jax.base.types import Prompts
from tsd_jax.inference import scoring
from tsd_jax.learning import losses, memory
from tsd_jax.rewards import callback
from tsd_jax.rewards.reward import Scorer
from tsd_jax.run import directory, evaluation
from tsd_jax.run.hacking import Audit, Seen
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.task import Task, chosen, prompt_form

TEXT = 300  # Characters of a prompt or an answer that are kept.


class Audited(NamedTuple):
  """What an evaluation of the audit found."""

  seen: Seen
  rejected: list[dict[str, Any]]  # The best paid: prompt, text, reward.

  def row(self, alarms: Mapping[str, str]) -> dict[str, Any]:
    """What a metrics row holds of it.

    Args:
      alarms: a line for each rule that speaks for hacking.
    """
    seen, a_Q = self.seen, self.seen.accepted_Q
    found = {
      "accepted": float(a_Q.mean()),
      "stderr": float(a_Q.std() / np.sqrt(len(a_Q))),
      "accepted_best_paid": float(seen.best_Q.mean()),
      "accepted_greedy": float(seen.greedy_Q.mean()),
      "reward": seen.reward,
      "length": seen.length,
      "kl": seen.kl,
    }
    if seen.champion_Q is not None:
      found["accepted_champion"] = float(seen.champion_Q.mean())
    if seen.disagreement is not None:
      found["disagreement"] = seen.disagreement
    return found | {"alarms": dict(alarms)}


def measure(
  graphdef: Any,
  params: Any,
  start: Any,
  task: Task,
  prompts: Prompts,
  audit: Audit,
  search: SearchConfig | None,
  *,
  step: int,
  seed: int,
  reward_params: Any,
) -> Audited:
  """Has the second verifier judge a policy's held-out answers.

  Args:
    graphdef: structure of the model.
    params: its parameters.
    start: those that training started from.
    task: its reward has an auditor.
    prompts: Q held-out problems.
    audit: how many answers each is given, how many are listed.
    search: what teaches the policy; None where nothing does.
    step: iterations made.
    seed: of sampling; the same draws at every evaluation.
    reward_params: of the reward and its auditor.

  Raises:
    UserError: a reward on the host cannot be computed.
  """
  prompts = jax.tree.map(jnp.asarray, prompts)
  shape = nnx.merge(graphdef, params).config
  memory.check_samples(shape, task, len(prompts), audit.samples)
  model, key = (graphdef, params, task, prompts), jax.random.key(seed)

  def drawn(samples):
    return evaluation.draw(
      *model, key, jnp.float32(1), reward_params, samples=samples
    )

  def judged(tokens_QKT):
    return _judge(task, prompts, tokens_QKT, reward_params)

  tokens_QKT, reward_QK, *_ = drawn(audit.samples)
  accepted_QK, apart, length = judged(tokens_QKT)
  greedy_Q = np.asarray(judged(drawn(0)[0])[0])[:, 0]
  one_Q1T = tokens_QKT[:, :1]  # An answer a problem is enough for a mean.
  now, then = (
    _log_prob(graphdef, p, task, prompts, one_Q1T) for p in (params, start)
  )
  tokens_QKT, reward_QK, accepted_QK = map(
    np.asarray, (tokens_QKT, reward_QK, accepted_QK)
  )
  best_Q1 = np.take_along_axis(accepted_QK, reward_QK.argmax(1)[:, None], 1)
  champion_Q = None
  if search is not None:
    memory.check_trees(shape, task, search, len(prompts))
    champion_QT, *_ = evaluation.search_best(
      *model, key, reward_params, config=search
    )
    champion_Q = np.asarray(judged(champion_QT[:, None])[0])[:, 0]
    # A tree without an answer teaches none.
    none_Q = np.all(np.asarray(champion_QT) == task.pad_id, axis=1)
    champion_Q = np.where(none_Q, greedy_Q, champion_Q)
  callback.raise_errors()
  seen = Seen(
    step,
    float(reward_QK.mean()),
    accepted_QK.mean(axis=1),
    best_Q1[:, 0],
    greedy_Q,
    champion_Q,
    float(length),
    float(now - then),
    None if apart is None else float(apart),
  )
  decode = task.tokenizer.decode
  prompt_QP = np.asarray(prompts.tokens_BP)
  rejected = [
    {
      "prompt": decode(prompt_QP[q])[:TEXT],
      "text": decode(tokens_QKT[q, k])[:TEXT],
      "reward": round(float(reward_QK[q, k]), 4),
    }
    for q, k in best_rejected(reward_QK, accepted_QK, audit.listed)
  ]
  return Audited(seen, rejected)


@functools.partial(jax.jit, static_argnames=("task",))
def _judge(task: Task, prompts: Prompts, tokens_QKT, reward_params):
  """Who is accepted, how far an ensemble is apart, and a response's tokens."""
  scorer = Scorer(task.reward, task.end_ids, reward_params)
  accepted_QK = scorer.accepted(prompts, tokens_QKT)
  assert accepted_QK is not None  # `Experiment.make_task` put an auditor there.
  apart = None
  if (part := task.reward.disagreement) is not None:
    apart = jnp.mean(scorer(prompts, tokens_QKT).parts[part])
  length = jnp.mean(jnp.sum(tokens_QKT != task.pad_id, axis=-1))
  return accepted_QK, apart, length


@functools.partial(jax.jit, static_argnames=("graphdef", "task"))
def _log_prob(graphdef, params, task: Task, prompts: Prompts, tokens_Q1T):
  """The mean log-probability of the tokens that a policy chose."""
  model = nnx.merge(graphdef, params)
  x_Q1TD = scoring.hidden_states(model, prompts, tokens_Q1T, prompt_form(task))
  log_prob_Q1T = scoring.read_log_probs(
    model, scoring.log_prob_of, x_Q1TD, tokens_Q1T
  )
  use_Q1T = chosen(task, prompts, tokens_Q1T, tokens_Q1T != task.pad_id)
  return losses.masked_mean(log_prob_Q1T, use_Q1T)


def best_rejected(
  reward_QK: np.ndarray, accepted_QK: np.ndarray, count: int
) -> list[tuple[int, int]]:
  """Where the best-paid answers are that the audit rejects, one a problem.

  Args:
    reward_QK: paid.
    accepted_QK: from 0 to 1; rejected below 1/2.
    count: at most so many, the best paid first.
  """
  paid_QK = np.where(accepted_QK < 0.5, reward_QK, -np.inf)
  best_Q = paid_QK.argmax(axis=1)
  paid_Q = paid_QK[np.arange(len(best_Q)), best_Q]
  order = np.argsort(-paid_Q, kind="stable")[:count]
  return [(int(q), int(best_Q[q])) for q in order if np.isfinite(paid_Q[q])]


def write(folder: pathlib.Path, audited: Audited) -> None:
  """Writes a run's audit.json.

  Raises:
    UserError: it cannot be written.
  """
  content = {"step": audited.seen.step, "rejected": audited.rejected}
  file = folder / directory.AUDIT
  directory.write_whole(file, json.dumps(content, indent=2) + "\n")


def read_rejected(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The best-paid answers that a run's audit rejects; none where none is kept.

  Raises:
    UserError: audit.json is damaged.
  """
  file = folder / directory.AUDIT
  try:
    found = outside_files.read_object(file).get("rejected")
  except outside_files.MissingFile:
    return []
  if not (isinstance(found, list) and all(map(_is_answer, found))):
    raise UserError(f"{file} is damaged (it holds no answers): delete it")
  return found


def _is_answer(answer: Any) -> bool:
  if not isinstance(answer, dict):
    return False
  texts = answer.get("prompt"), answer.get("text")
  number = outside_files.is_number(answer.get("reward"))
  return number and all(isinstance(text, str) for text in texts)
