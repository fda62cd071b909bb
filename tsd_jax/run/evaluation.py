"""Accuracy on held-out prompts, with the tokens that each mode spends.

  greedy    one answer, the likeliest token each time
  mean@K    mean over K samples: the model as it ships
  pass@K    unbiased probability that one of K samples is right, from as many
            samples as the largest K asked for
  best@K    the best of K samples, chosen by the task's reward
  vote@K    the most frequent of K samples; no reward is looked at
  search@N  the champion of a tree of N simulations, chosen by the reward

best, pass and search need the reward at test time; the others do not. Where
nobody knows what is right, accuracy is the reward from 0 to 1, and pass@K what
the best of K samples is worth. Where the reward pays for "I don't know"
(`rewards/abstention.py`), how often that is said is given as well: what is left
of accuracy and that is confidently wrong. Where the reward forbids phrases
(`rewards/constrained.py`), `violation` is how often one is said, and where a
judge guards it (`rewards/guarded.py`), `refused` how often it lets none pass.
"""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tsd_jax.base.errors import UserError
from tsd_jax.base.types import Array, Prompts
from tsd_jax.inference import prefill, sampling, scoring
from tsd_jax.learning import losses, memory
from tsd_jax.models import weights
from tsd_jax.models.phrases import Automaton
from tsd_jax.models.tokenizer import is_end, one_end
from tsd_jax.parallel.sharding import HERE, Layout
from tsd_jax.rewards import callback
from tsd_jax.rewards.reward import Score, Scorer
from tsd_jax.search import champions as champions_lib
from tsd_jax.search import search as search_lib
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.task import Task, chosen, prompt_form


@functools.partial(
  jax.jit, static_argnames=("graphdef", "task", "samples", "layout")
)
def draw(
  graphdef,
  params,
  task: Task,
  prompts: Prompts,
  key: Array,
  temperature: Array,
  reward_params: Any = (),
  *,
  samples: int,
  layout: Layout = HERE,
):
  """Samples responses and scores them.

  Args:
    graphdef: structure of the model.
    params: its parameters.
    task: prompts' rewards.
    prompts: B prompts.
    key: random key, consumed.
    temperature: of sampling; ignored where samples is 0.
    reward_params: the reward's parameters.
    samples: responses a prompt; 0 decodes one greedily.
    layout: the devices that share the prompts.

  Returns:
    tokens_BGT, reward_BG, correct_BG, token forwards made. Without ground truth
    what is correct is how high the reward is, from 0 to 1.
  """

  def drawing(params, prompts, key):
    params, temperature, reward_params = params
    model = nnx.merge(graphdef, params)
    B, P = prompts.tokens_BP.shape
    group, form = max(samples, 1), prompt_form(task)
    sampled = sampling.sample(
      model,
      prefill.repeat_rows(prefill.prefill(model, prompts, form), group),
      sampling.row_keys(key, B, group) if samples else None,
      length=task.response_length,
      end_ids=task.end_ids,
      pad_id=task.pad_id,
      temperature=temperature if samples else 1.0,
      observe=sampling.observer(task, prompts),
    )
    tokens_BGT = sampled.tokens_RT.reshape(B, group, -1)
    scorer = Scorer(task.reward, task.end_ids, reward_params)
    score = scorer(prompts, tokens_BGT)
    correct_BG = truly_correct(scorer, prompts, tokens_BGT, score)
    forwards = sampled.forwards + prefill.prefill_tokens(B, P, form)
    return (tokens_BGT, score.reward_X, correct_BG), forwards

  params = layout.served(graphdef, params), temperature, reward_params
  drawn, forwards = layout.map_prompts(drawing, params, prompts, key)
  return *drawn, forwards


def truly_correct(
  scorer: Scorer, prompts: Prompts, tokens_BGT: Array, score: Score
) -> Array:
  """What is correct of responses, whatever a verifier that errs says of them.

  Args:
    scorer: of the task's reward.
    prompts: B prompts.
    tokens_BGT: responses.
    score: what the scorer says of them.

  Returns:
    bool BG; without ground truth how high the reward is, from 0 to 1.
  """
  truth = scorer.reward.truth()
  if truth != scorer.reward:
    score = dataclasses.replace(scorer, reward=truth)(prompts, tokens_BGT)
  if score.correct_X is not None:
    return score.correct_X
  return scorer.unit(score.reward_X)


def solved_by_k(correct_BN: np.ndarray, k: int) -> np.ndarray:
  """How far the best of k of each prompt's N samples, drawn at random, gets.

  Args:
    correct_BN: whether each sample solves the prompt, or how far, from 0 to 1.
    k: at most N.

  Returns:
    Its expectation: where samples are right or wrong, the chance that one of k
    is right.
  """
  n = correct_BN.shape[1]
  # All of k are among the i least with C(i, k) / C(n, k), here as a product
  # that never overflows; 0 when i < k.
  at_N1 = np.arange(1, n)[:, None]
  ratio_Nk = (at_N1 - np.arange(k)) / (n - np.arange(k))
  among_N = np.prod(np.maximum(ratio_Nk, 0.0), axis=1)
  least_BN = np.sort(correct_BN.astype(np.float64), axis=1)
  return least_BN[:, -1] - np.diff(least_BN, axis=1) @ among_N


def pass_at_k(correct_BN: np.ndarray, k: int) -> float:
  """Unbiased pass@k, 1 - C(n-c, k) / C(n, k) (arXiv:2107.03374).

  Without ground truth, the reward of the best of k, from 0 to 1.
  """
  return float(solved_by_k(correct_BN, k).mean())


# Shares of responses, where they are given.
_SAID = ("abstains", "violation", "refused")
_violations = jax.jit(Automaton.said)
SAMPLED = ("mean", "pass", "best", "vote")
KINDS = (*SAMPLED, "search")


def parse_modes(modes: str) -> list[tuple[str, int]]:
  """Reads "greedy,mean@16,search@64".

  Args:
    modes: names separated by commas.

  Returns:
    (kind, K) pairs; K is 0 for greedy.

  Raises:
    UserError: for a mode that does not exist.
  """
  parsed = []
  for mode in modes.split(","):
    kind, _, k = mode.strip().partition("@")
    if kind == "greedy" and not k:
      parsed.append((kind, 0))
    elif kind in KINDS and re.fullmatch(r"[1-9]\d{0,6}", k, re.ASCII):
      parsed.append((kind, int(k)))
    else:
      raise UserError(
        f"mode {mode!r} is unknown: use greedy, {'@K, '.join(KINDS)}@N, "
        "for instance --mode=greedy,mean@16,pass@8"
      )
  return parsed


def headline(modes: str) -> str:
  """The mode that plots and tables show: the first mean@K, else the first."""
  names = [mode.strip() for mode in modes.split(",")]
  return next((name for name in names if name.startswith("mean@")), names[0])


def vote(tokens_BGT: np.ndarray, end_ids: tuple[int, ...]) -> np.ndarray:
  """Index of each prompt's most frequent finished response, the first of it."""
  finished_BG = np.any(is_end(tokens_BGT, end_ids), axis=-1)
  votes_BG = np.zeros(finished_BG.shape, int)
  for b, tokens_GT in enumerate(one_end(tokens_BGT, end_ids)):
    _, answer_G, count_A = np.unique(
      tokens_GT, axis=0, return_inverse=True, return_counts=True
    )
    votes_BG[b] = count_A[answer_G.reshape(-1)]
  return np.argmax(votes_BG * finished_BG, axis=1)


@functools.partial(
  jax.jit, static_argnames=("graphdef", "task", "config", "layout")
)
def search_best(
  graphdef, params, task: Task, prompts, key, reward_params=(), *, config,
  layout: Layout = HERE,
):  # fmt: skip
  """Searches once a prompt, for its champion, as training does.

  Returns:
    tokens_BT, reward_B, correct_B, token forwards made.
  """

  def searching(params, prompts, key):
    params, reward_params = params
    model = nnx.merge(graphdef, params).without(task.reward.never)
    scorer = Scorer(task.reward, task.end_ids, reward_params)
    result = search_lib.search(model, task, prompts, key, config, scorer=scorer)
    best = champions_lib.champions(result.tree, 1)
    B, P = prompts.tokens_BP.shape
    forwards = result.forwards + prefill.prefill_tokens(B, P, prompt_form(task))
    score = Score(scorer.from_unit(best.reward_BM), best.correct_BM)
    if not task.reward.knows_correct:
      score = score._replace(correct_X=None)
    correct_BM = truly_correct(scorer, prompts, best.tokens_BMT, score)
    correct_BM = best.valid_BM * correct_BM  # Bool, or how far.
    champion = best.tokens_BMT, score.reward_X, correct_BM
    return tuple(a[:, 0] for a in champion), forwards

  params = layout.served(graphdef, params), reward_params
  champion, forwards = layout.map_prompts(searching, params, prompts, key)
  return *champion, forwards


def evaluate(
  graphdef: Any,
  params: Any,
  task: Task,
  prompts: Prompts,
  modes: str,
  *,
  seed: int,
  temperature: float = 1.0,
  search: SearchConfig | None = None,
  reward_params: Any = (),
  layout: Layout = HERE,
) -> dict[str, dict[str, Any]]:
  """Measures a model on a set of prompts: `evaluate_each` without the each.

  Returns:
    mode -> accuracy, its standard error over prompts, n, tokens, reward, and
    the shares that abstain where the reward pays for it, and that say what it
    forbids.

  Raises:
    UserError: as `evaluate_each`.
  """
  return evaluate_each(
    graphdef, params, task, prompts, modes, seed=seed, temperature=temperature,
    search=search, reward_params=reward_params, layout=layout,
  )[0]  # fmt: skip


def evaluate_each(
  graphdef: Any,
  params: Any,
  task: Task,
  prompts: Prompts,
  modes: str,
  *,
  seed: int,
  temperature: float = 1.0,
  search: SearchConfig | None = None,
  reward_params: Any = (),
  layout: Layout = HERE,
) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
  """Measures a model on a set of prompts, and on each of them.

  Args:
    graphdef: structure of the model.
    params: its parameters.
    task: the task.
    prompts: Q prompts.
    modes: as `parse_modes` reads them.
    seed: of sampling. Sample k of a prompt is the same in every mode.
    temperature: of sampling.
    search: rule and leaves of search@N; the default search if None.
    reward_params: the reward's parameters.
    layout: the devices that share the prompts; all their processes must call.

  Returns:
    What `evaluate` gives, and mode -> how far each prompt is solved, 0 to 1.

  Raises:
    UserError: a mode is unknown, a search would value leaves by a V_search
      that was never trained, or a reward on the host cannot be computed.
  """
  parsed = parse_modes(modes)
  search = search or SearchConfig()
  if any(kind == "search" for kind, _ in parsed):
    _check_value(search, params)
  measure = _Measure(
    graphdef, params, task, jax.tree.map(jnp.asarray, prompts),
    key=jax.random.key(seed), temperature=temperature,
    search=search, reward_params=reward_params, layout=layout,
    # An estimate of pass@K is the better, the more samples it is made from.
    most=max((k for kind, k in parsed if kind in SAMPLED), default=0),
  )  # fmt: skip
  results, each = {}, {}
  for kind, k in parsed:
    solved_Q, reward, tokens, said = measure(kind, k)
    mode = f"{kind}@{k}" if k else kind
    each[mode] = np.asarray(solved_Q, float)
    results[mode] = {
      "accuracy": float(solved_Q.mean()),
      "stderr": float(solved_Q.std() / np.sqrt(len(prompts))),
      "n": len(prompts),
      "tokens": int(tokens),
      "reward": float(reward.mean()),
    } | {name: float(share.mean()) for name, share in said.items()}
  callback.raise_errors()
  return results, each


def _check_value(search: SearchConfig, params: Any) -> None:
  """Refuses a search that values leaves by what was never trained."""
  if search.needs_value and not weights.value_trained(params):
    raise UserError(
      f"search@N values leaves by V_search (search.leaf={search.leaf}), which "
      "this model never trained: leave the mode out"
    )


@functools.partial(jax.jit, static_argnames=("task", "layout"))
def _refused(task: Task, prompts, tokens_QGT, reward_params, layout: Layout):
  """Which responses a guard does not let pass, QG."""

  def judging(reward_params, asked, _):
    scorer = Scorer(task.reward, task.end_ids, reward_params)
    return ~scorer.passes(*asked), ()

  return layout.map_prompts(judging, reward_params, (prompts, tokens_QGT))[0]


@dataclasses.dataclass(eq=False)
class _Measure:
  """Measures modes on one set of prompts; samples are drawn once."""

  graphdef: Any
  params: Any
  task: Task
  prompts: Prompts
  _: dataclasses.KW_ONLY
  key: Array
  temperature: float
  search: SearchConfig
  reward_params: Any
  layout: Layout
  most: int  # Samples that pass@K is estimated from.
  _draws: dict[int, Any] = dataclasses.field(default_factory=dict)

  def __call__(self, kind: str, k: int):
    """How far each prompt is solved, rewards, tokens, and who says what."""
    if kind == "search":
      return self._searched(k)
    tokens_QGT, reward_QG, correct_QG, tokens, said = self._drawn(
      self.most if kind == "pass" else k
    )
    rows_Q = np.arange(len(self.prompts))
    match kind:
      case "pass":
        return solved_by_k(correct_QG, k), reward_QG, tokens, said
      case "best":
        chosen_Q = reward_QG.argmax(axis=1)
      case "vote":
        chosen_Q = vote(tokens_QGT, self.task.end_ids)
      case _:
        return correct_QG.mean(axis=1), reward_QG, tokens, said
    at = rows_Q, chosen_Q
    said = {name: said_QG[at] for name, said_QG in said.items()}
    return correct_QG[at], reward_QG[at], tokens, said

  def _said(self, tokens_QGT) -> dict[str, np.ndarray]:
    """Which responses say what the reward has a word on, QG each."""
    reward, said = self.task.reward, {}
    if reward.abstention is not None:
      said["abstains"] = reward.abstention.said(tokens_QGT)
    if (rules := reward.rules(self.reward_params)) is not None:
      said["violation"] = np.asarray(_violations(rules, tokens_QGT))
    if reward.guards:
      said["refused"] = np.asarray(
        _refused(
          self.task, self.prompts, tokens_QGT, self.reward_params, self.layout
        )
      )
    return said

  @functools.cached_property
  def _shape(self):
    return nnx.merge(self.graphdef, self.params).config

  def _drawn(self, samples: int):
    if samples not in self._draws:
      drawn = self._draw(samples)
      self._draws[samples] = *drawn, self._said(drawn[0])
    return self._draws[samples]

  def _draw(self, samples: int):
    memory.check_samples(
      self._shape, self.task, len(self.prompts), samples, self.layout
    )
    return jax.device_get(
      draw(
        self.graphdef, self.params, self.task, self.prompts, self.key,
        jnp.float32(self.temperature), self.reward_params, samples=samples,
        layout=self.layout,
      )
    )  # fmt: skip

  def _searched(self, simulations: int):
    # Every prompt gets its N simulations, whatever the others do.
    config = self.search.exhaustive(simulations)
    memory.check_trees(
      self._shape, self.task, config, len(self.prompts), self.layout
    )
    _, reward_Q, correct_Q, tokens = jax.device_get(
      search_best(
        self.graphdef, self.params, self.task, self.prompts, self.key,
        self.reward_params, config=config, layout=self.layout,
      )
    )  # fmt: skip
    # No champion says what is forbidden, and trees answer (`Reward.never`).
    return correct_Q, reward_Q, tokens, {}


@functools.partial(jax.jit, static_argnames=("graphdef", "task"))
def mean_loss(graphdef, params, task: Task, prompts: Prompts, response_QT):
  """Mean negative log-probability of what given responses choose, in nats."""
  model = nnx.merge(graphdef, params)
  tokens_Q1T = response_QT[:, None]
  x_Q1TD = scoring.hidden_states(model, prompts, tokens_Q1T, prompt_form(task))
  log_prob_QT = scoring.read_log_probs(
    model, scoring.log_prob_of, x_Q1TD, tokens_Q1T
  )[:, 0]
  use_Q1T = chosen(task, prompts, tokens_Q1T, tokens_Q1T != task.pad_id)
  return losses.cross_entropy(log_prob_QT, use_Q1T[:, 0])


def perplexity(
  graphdef, params, task: Task, prompts: Prompts, response_QT: np.ndarray
) -> float:
  """Perplexity of given responses: exp of the mean of -log pi of a token.

  Args:
    graphdef: structure of the model.
    params: its parameters.
    task: whose padding and observations are left out.
    prompts: Q prompts.
    response_QT: a response to each.
  """
  loss = mean_loss(graphdef, params, task, prompts, jnp.asarray(response_QT))
  return float(jnp.exp(loss))


def table(results: dict[str, dict[str, Any]]) -> str:
  """Lines of text, one a mode."""
  width = max(map(len, results))
  return "\n".join(
    f"{mode:>{width}}  {r['accuracy']:.3f} ± {r['stderr']:.3f}"
    f"  reward {r['reward']:.3f}  {r['n']} prompts  {r['tokens']:,} tokens"
    + "".join(f"  {name} {r[name]:.3f}" for name in _SAID if name in r)
    for mode, r in results.items()
  )
