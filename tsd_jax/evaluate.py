"""Accuracy on held-out prompts: greedy, mean@k, unbiased pass@k.

The model is evaluated as it ships: no search. Tokens spent are counted.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tsd_jax import decode
from tsd_jax.config import UserError
from tsd_jax.tasks.task import Task
from tsd_jax.types import Array


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
  sampled = decode.sample(
    model,
    decode.repeat_rows(decode.prefill(model, prompt_BP), group),
    decode.row_keys(key, B, group) if samples else None,
    length=task.response_length,
    eos_id=task.eos_id,
    pad_id=task.pad_id,
    temperature=temperature if samples else 1.0,
  )
  tokens_BGT = sampled.tokens_RT.reshape(B, group, -1)
  prompt_BGP = jnp.broadcast_to(prompt_BP[:, None], (B, group, P))
  score = task.score(prompt_BGP, tokens_BGT)
  forwards = sampled.forwards + B * P
  return tokens_BGT, score.reward_X, score.correct_X, forwards


def pass_at_k(correct_BN: np.ndarray, k: int) -> float:
  """Unbiased pass@k, 1 - C(n-c, k) / C(n, k) (arXiv:2107.03374)."""
  n = correct_BN.shape[1]
  wrong_B = n - correct_BN.sum(axis=1)
  # C(n-c, k) / C(n, k) as a product that never overflows; 0 when n-c < k.
  ratio_Bk = (wrong_B[:, None] - np.arange(k)) / (n - np.arange(k))
  return float(1.0 - np.prod(np.maximum(ratio_Bk, 0.0), axis=1).mean())


def parse_modes(modes: str) -> list[tuple[str, int]]:
  """Reads "greedy,mean@16,pass@8".

  Args:
    modes: names separated by commas.

  Returns:
    (kind, k) pairs; k is 0 for greedy.

  Raises:
    UserError: for a mode that does not exist.
  """
  parsed = []
  for mode in modes.split(","):
    kind, _, k = mode.strip().partition("@")
    if kind == "greedy" and not k:
      parsed.append((kind, 0))
    elif kind in ("mean", "pass") and k.isdigit() and int(k) > 0:
      parsed.append((kind, int(k)))
    else:
      raise UserError(
        f"mode {mode!r} is unknown: use greedy, mean@K or pass@K, "
        "for instance --mode=greedy,mean@16,pass@8"
      )
  return parsed


def headline(modes: str) -> str:
  """The mode that plots and tables show: the first mean@K, else the first."""
  names = [mode.strip() for mode in modes.split(",")]
  return next((name for name in names if name.startswith("mean@")), names[0])


def evaluate(
  graphdef,
  params,
  task: Task,
  prompt_NP: np.ndarray,
  modes: str,
  *,
  seed: int,
  temperature: float = 1.0,
) -> dict[str, dict[str, Any]]:
  """Measures a model on a set of prompts.

  Args:
    graphdef: structure of the model.
    params: its parameters.
    task: the task.
    prompt_NP: prompts.
    modes: as `parse_modes` reads them.
    seed: of sampling.
    temperature: of sampling.

  Returns:
    mode -> accuracy, its standard error over prompts, n, tokens, reward.
  """
  parsed = parse_modes(modes)
  prompt_NP = jnp.asarray(prompt_NP)
  call = functools.partial(draw, graphdef, params, task, prompt_NP)
  key = jax.random.key(seed)
  results = {}
  # One set of samples serves all modes that ask for samples.
  most = max((k for _, k in parsed), default=0)
  drawn = {}
  if any(kind == "greedy" for kind, _ in parsed):
    drawn[0] = jax.device_get(call(key, 1.0, samples=0)[1:])
  if most:
    drawn[most] = jax.device_get(
      call(key, jnp.float32(temperature), samples=most)[1:]
    )
  for kind, k in parsed:
    reward_NK, correct_NK, tokens = drawn[most if k else 0]
    used = slice(None) if kind == "pass" else slice(0, max(k, 1))
    per_prompt_N = correct_NK[:, used].mean(axis=1)
    accuracy = (
      pass_at_k(correct_NK, k) if kind == "pass" else per_prompt_N.mean()
    )
    results[f"{kind}@{k}" if k else kind] = {
      "accuracy": float(accuracy),
      "stderr": float(per_prompt_N.std() / np.sqrt(len(per_prompt_N))),
      "n": len(per_prompt_N),
      "tokens": int(tokens),
      "reward": float(reward_NK[:, used].mean()),
    }
  return results


def table(results: dict[str, dict[str, Any]]) -> str:
  """Lines of text, one a mode."""
  width = max(map(len, results))
  return "\n".join(
    f"{mode:>{width}}  {r['accuracy']:.3f} ± {r['stderr']:.3f}"
    f"  reward {r['reward']:.3f}  {r['n']} prompts  {r['tokens']:,} tokens"
    for mode, r in results.items()
  )
