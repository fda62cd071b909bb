"""Accuracy on held-out prompts, with the tokens that each mode spends.

  greedy    one answer, the likeliest token each time
  mean@K    mean over K samples: the model as it ships
  pass@K    unbiased probability that one of K samples is right, from as many
            samples as the largest K asked for
  best@K    the best of K samples, chosen by the task's reward
  vote@K    the most frequent of K samples; no reward is looked at
  search@N  the champion of a tree of N simulations, chosen by the reward

best, pass and search need the reward at test time; the others do not.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tsd_jax.base.errors import UserError
from tsd_jax.base.types import Array
from tsd_jax.inference import decode, scoring
from tsd_jax.learning import losses
from tsd_jax.rewards import callback
from tsd_jax.search import champions as champions_lib
from tsd_jax.search import tree as tree_lib
from tsd_jax.tasks.task import Task, chosen


@functools.partial(jax.jit, static_argnames=("graphdef", "task", "samples"))
def draw(
  graphdef,
  params,
  task: Task,
  prompt_BP: Array,
  key: Array,
  temperature: Array,
  *,
  samples: int,
):
  """Samples responses and scores them.

  Args:
    graphdef: structure of the model.
    params: its parameters.
    task: prompts' rewards.
    prompt_BP: prompts.
    key: random key, consumed.
    temperature: of sampling; ignored where samples is 0.
    samples: responses a prompt; 0 decodes one greedily.

  Returns:
    tokens_BGT, reward_BG, correct_BG, token forwards made.
  """
  model = nnx.merge(graphdef, params)
  B, P = prompt_BP.shape
  group = max(samples, 1)
  prefix = decode.prefill(
    model, prompt_BP, task.prompt_pad_id, task.shared_prefix_length
  )
  sampled = decode.sample(
    model,
    decode.repeat_rows(prefix, group),
    decode.row_keys(key, B, group) if samples else None,
    length=task.response_length,
    eos_id=task.eos_id,
    pad_id=task.pad_id,
    temperature=temperature if samples else 1.0,
    observe=decode.observer(task, prompt_BP),
  )
  tokens_BGT = sampled.tokens_RT.reshape(B, group, -1)
  prompt_BGP = jnp.broadcast_to(prompt_BP[:, None], (B, group, P))
  score = task.score(prompt_BGP, tokens_BGT)
  forwards = sampled.forwards + decode.prefill_tokens(
    B, P, task.shared_prefix_length
  )
  return tokens_BGT, score.reward_X, score.correct_X, forwards


def solved_by_k(correct_BN: np.ndarray, k: int) -> np.ndarray:
  """Each prompt's chance that k of its N samples, drawn at random, solve it."""
  n = correct_BN.shape[1]
  wrong_B = n - correct_BN.sum(axis=1)
  # C(n-c, k) / C(n, k) as a product that never overflows; 0 when n-c < k.
  ratio_Bk = (wrong_B[:, None] - np.arange(k)) / (n - np.arange(k))
  return 1.0 - np.prod(np.maximum(ratio_Bk, 0.0), axis=1)


def pass_at_k(correct_BN: np.ndarray, k: int) -> float:
  """Unbiased pass@k, 1 - C(n-c, k) / C(n, k) (arXiv:2107.03374)."""
  return float(solved_by_k(correct_BN, k).mean())


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
    elif kind in KINDS and k.isdigit() and int(k) > 0:
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


def vote(tokens_BGT: np.ndarray, eos_id: int) -> np.ndarray:
  """Index of each prompt's most frequent finished response, the first of it."""
  same_BGG = np.all(tokens_BGT[:, :, None] == tokens_BGT[:, None], axis=-1)
  finished_BG = np.any(tokens_BGT == eos_id, axis=-1)
  return np.argmax(same_BGG.sum(axis=2) * finished_BG, axis=1)


@functools.partial(jax.jit, static_argnames=("graphdef", "task", "config"))
def search_best(graphdef, params, task: Task, prompt_BP, key, *, config):
  """Searches once a prompt: reward_B, correct_B, token forwards made."""
  model = nnx.merge(graphdef, params)
  prefix = decode.prefill(
    model, prompt_BP, task.prompt_pad_id, task.shared_prefix_length
  )
  result = tree_lib.search(model, task, prompt_BP, prefix, key, config)
  best = champions_lib.champions(result.tree, 1)
  forwards = result.forwards + decode.prefill_tokens(
    *prompt_BP.shape, task.shared_prefix_length
  )
  return best.reward_BM[:, 0], best.correct_BM[:, 0], forwards


def evaluate(
  graphdef,
  params,
  task: Task,
  prompt_QP: np.ndarray,
  modes: str,
  *,
  seed: int,
  temperature: float = 1.0,
  search: tree_lib.SearchConfig | None = None,
) -> dict[str, dict[str, Any]]:
  """Measures a model on a set of prompts.

  Args:
    graphdef: structure of the model.
    params: its parameters.
    task: the task.
    prompt_QP: prompts.
    modes: as `parse_modes` reads them.
    seed: of sampling. Sample k of a prompt is the same in every mode.
    temperature: of sampling.
    search: rule and leaves of search@N; the default search if None.

  Returns:
    mode -> accuracy, its standard error over prompts, n, tokens, reward.

  Raises:
    UserError: a mode is unknown, or a reward on the host cannot be computed.
  """
  parsed = parse_modes(modes)
  prompt_QP = jnp.asarray(prompt_QP)
  key, rows_Q = jax.random.key(seed), np.arange(len(prompt_QP))

  @functools.cache
  def drawn(samples: int):
    return jax.device_get(
      draw(
        graphdef,
        params,
        task,
        prompt_QP,
        key,
        jnp.float32(temperature),
        samples=samples,
      )
    )

  # An estimate of pass@K is the better, the more samples it is made from.
  most = max((k for kind, k in parsed if kind in SAMPLED), default=0)

  def measure(kind: str, k: int):
    """How far each prompt is solved, rewards, and tokens."""
    if kind == "search":
      # Every prompt gets its N simulations, whatever the others do.
      config = dataclasses.replace(
        search or tree_lib.SearchConfig(),
        num_simulations=k,
        stop_when_solved=False,
      )
      reward_Q, correct_Q, tokens = jax.device_get(
        search_best(graphdef, params, task, prompt_QP, key, config=config)
      )
      return correct_Q, reward_Q, tokens
    tokens_QGT, reward_QG, correct_QG, tokens = drawn(
      most if kind == "pass" else k
    )
    match kind:
      case "pass":
        return solved_by_k(correct_QG, k), reward_QG, tokens
      case "best":
        chosen_Q = reward_QG.argmax(axis=1)
      case "vote":
        chosen_Q = vote(tokens_QGT, task.eos_id)
      case _:
        return correct_QG.mean(axis=1), reward_QG, tokens
    return correct_QG[rows_Q, chosen_Q], reward_QG[rows_Q, chosen_Q], tokens

  results = {}
  for kind, k in parsed:
    solved_Q, reward, tokens = measure(kind, k)
    results[f"{kind}@{k}" if k else kind] = {
      "accuracy": float(solved_Q.mean()),
      "stderr": float(solved_Q.std() / np.sqrt(len(rows_Q))),
      "n": len(rows_Q),
      "tokens": int(tokens),
      "reward": float(reward.mean()),
    }
  callback.raise_errors()
  return results


@functools.partial(jax.jit, static_argnames=("graphdef", "task"))
def mean_loss(graphdef, params, task: Task, prompt_QP, response_QT):
  """Mean negative log-probability of what given responses choose, in nats."""
  model = nnx.merge(graphdef, params)
  tokens_Q1T = response_QT[:, None]
  x_Q1TD = scoring.hidden_states(
    model, prompt_QP, tokens_Q1T, task.prompt_pad_id, task.shared_prefix_length
  )
  log_prob_QT = scoring.read_log_probs(
    model, scoring.log_prob_of, x_Q1TD, tokens_Q1T
  )[:, 0]
  use_Q1T = chosen(task, prompt_QP, tokens_Q1T, tokens_Q1T != task.pad_id)
  return losses.cross_entropy(log_prob_QT, use_Q1T[:, 0])


def perplexity(
  graphdef, params, task: Task, prompt_QP: np.ndarray, response_QT: np.ndarray
) -> float:
  """Perplexity of given responses: exp of the mean of -log pi of a token.

  Args:
    graphdef: structure of the model.
    params: its parameters.
    task: whose padding and observations are left out.
    prompt_QP: prompts.
    response_QT: a response to each.
  """
  loss = mean_loss(
    graphdef, params, task, jnp.asarray(prompt_QP), jnp.asarray(response_QT)
  )
  return float(jnp.exp(loss))


def table(results: dict[str, dict[str, Any]]) -> str:
  """Lines of text, one a mode."""
  width = max(map(len, results))
  return "\n".join(
    f"{mode:>{width}}  {r['accuracy']:.3f} ± {r['stderr']:.3f}"
    f"  reward {r['reward']:.3f}  {r['n']} prompts  {r['tokens']:,} tokens"
    for mode, r in results.items()
  )
