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
from tsd_jax.base.types import Array, Prompts
from tsd_jax.inference import scoring
from tsd_jax.learning import losses, memory
from tsd_jax.parallel.sharding import Layout
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
    if seen.rejected_reward is not None:
      found["reward_of_rejected"] = seen.rejected_reward
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
  layout: Layout,
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
    layout: the devices that share the problems; all their processes must call.

  Raises:
    UserError: a reward on the host cannot be computed.
  """
  prompts = jax.tree.map(jnp.asarray, prompts)
  key = jax.random.key(seed)
  asked = _Asked(graphdef, params, task, prompts, key, reward_params, layout)
  tokens_QGT, reward_QG = asked.samples(audit.samples)
  accepted_QG, apart, length = asked.judged(tokens_QGT)
  rejects_QG = accepted_QG < 0.5
  greedy_QGT, _ = asked.samples(0)
  greedy_Q = asked.judged(greedy_QGT)[0][:, 0]
  best_Q1 = np.take_along_axis(accepted_QG, reward_QG.argmax(1)[:, None], 1)
  seen = Seen(
    step,
    float(reward_QG.mean()),
    accepted_QG.mean(axis=1),
    best_Q1[:, 0],
    greedy_Q,
    None if search is None else asked.champions(search, greedy_Q),
    length,
    # An answer a problem is enough for a mean.
    asked.kl(start, tokens_QGT[:, :1]),
    apart,
    float(reward_QG[rejects_QG].mean()) if rejects_QG.any() else None,
  )
  callback.raise_errors()
  decode, prompt_QP = task.tokenizer.decode, np.asarray(prompts.tokens_BP)
  rejected = [
    {
      "prompt": decode(prompt_QP[q])[:TEXT],
      "text": decode(tokens_QGT[q, k])[:TEXT],
      "reward": round(float(reward_QG[q, k]), 4),
    }
    for q, k in best_rejected(reward_QG, accepted_QG, audit.listed)
  ]
  return Audited(seen, rejected)


class _Asked(NamedTuple):
  """A policy, and what it is asked."""

  graphdef: Any
  params: Any
  task: Task
  prompts: Prompts
  key: Array
  reward_params: Any
  layout: Layout

  @property
  def _shape(self):
    return nnx.merge(self.graphdef, self.params).config

  def samples(self, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Answers, and what they are paid; 0: one, greedily."""
    memory.check_samples(
      self._shape, self.task, len(self.prompts), count or 1, self.layout
    )
    tokens_QGT, reward_QG, *_ = evaluation.draw(
      *self[:5], jnp.float32(1), self.reward_params, samples=count,
      layout=self.layout,
    )  # fmt: skip
    return np.asarray(tokens_QGT), np.asarray(reward_QG)

  def judged(self, tokens_QGT) -> tuple[np.ndarray, float | None, float]:
    """Who is accepted, how far an ensemble is apart, tokens of an answer."""
    tokens_QGT = np.asarray(tokens_QGT)
    accepted_QG, apart_QG = jax.device_get(
      _judge(
        self.task, self.prompts, tokens_QGT, self.reward_params, self.layout
      )
    )
    apart = None if apart_QG is None else float(apart_QG.mean())
    length = (tokens_QGT != self.task.pad_id).sum(axis=-1).mean()
    return accepted_QG, apart, float(length)

  def champions(self, search: SearchConfig, greedy_Q: np.ndarray) -> np.ndarray:
    """Whether champions are accepted; a tree without an answer has none."""
    memory.check_trees(
      self._shape, self.task, search, len(self.prompts), self.layout
    )
    champion_QT, *_ = jax.device_get(
      evaluation.search_best(*self[:6], config=search, layout=self.layout)
    )
    accepted_Q = self.judged(champion_QT[:, None])[0][:, 0]
    none_Q = np.all(champion_QT == self.task.pad_id, axis=1)
    return np.where(none_Q, greedy_Q, accepted_Q)

  def kl(self, start: Any, tokens_QGT: np.ndarray) -> float:
    """Estimate of the KL divergence from the start, nats a token."""
    now, then = (
      _log_prob(
        self.graphdef, p, self.task, self.prompts, tokens_QGT, self.layout
      )
      for p in (self.params, start)
    )
    return float(now - then)


@functools.partial(jax.jit, static_argnames=("task", "layout"))
def _judge(
  task: Task, prompts: Prompts, tokens_QGT, reward_params, layout: Layout
):
  """Who is accepted, and how far an ensemble is apart on each; None without."""

  def judging(reward_params, asked, _):
    prompts, tokens_BGT = asked
    scorer = Scorer(task.reward, task.end_ids, reward_params)
    accepted_BG = scorer.accepted(prompts, tokens_BGT)
    assert accepted_BG is not None  # `Experiment.make_task` sees to it.
    if (part := task.reward.disagreement) is None:
      return (accepted_BG, None), ()
    return (accepted_BG, scorer(prompts, tokens_BGT).parts[part]), ()

  return layout.map_prompts(judging, reward_params, (prompts, tokens_QGT))[0]


@functools.partial(jax.jit, static_argnames=("graphdef", "task", "layout"))
def _log_prob(
  graphdef, params, task: Task, prompts: Prompts, tokens_QGT, layout: Layout
):
  """The mean log-probability of the tokens that a policy chose."""

  def reading(params, asked, _):
    prompts, tokens_BGT = asked
    model, form = nnx.merge(graphdef, params), prompt_form(task)
    x_BGTD = scoring.hidden_states(model, prompts, tokens_BGT, form)
    log_prob_BGT = scoring.read_log_probs(
      model, scoring.log_prob_of, x_BGTD, tokens_BGT
    )
    use_BGT = chosen(task, prompts, tokens_BGT, tokens_BGT != task.pad_id)
    return (log_prob_BGT, use_BGT), ()

  params = layout.served(graphdef, params)
  asked = prompts, tokens_QGT
  (log_prob_QGT, use_QGT), _ = layout.map_prompts(reading, params, asked)
  return losses.masked_mean(log_prob_QGT, use_QGT)


def best_rejected(
  reward_QG: np.ndarray, accepted_QG: np.ndarray, count: int
) -> list[tuple[int, int]]:
  """Where the best-paid answers are that the audit rejects, one a problem.

  Args:
    reward_QG: paid.
    accepted_QG: from 0 to 1; rejected below 1/2.
    count: at most so many, the best paid first.
  """
  paid_QG = np.where(accepted_QG < 0.5, reward_QG, -np.inf)
  best_Q = paid_QG.argmax(axis=1)
  paid_Q = paid_QG[np.arange(len(best_Q)), best_Q]
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
