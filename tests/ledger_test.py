"""The ledger against XLA: its tokens x FLOPs a token are what XLA counts.

XLA counts the body of a loop once, so each part of an iteration is one call of
the body, and the ledger says how many tokens went through it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import compare_countdown
from tests import few_iterations, small_game
from tsd_jax.base import config as config_lib
from tsd_jax.base.ledger import BACKWARD_COST, Ledger, Tokens
from tsd_jax.comparison import entrants
from tsd_jax.inference import prefill as prefill_lib
from tsd_jax.inference import sampling
from tsd_jax.learning import iteration
from tsd_jax.learning import update as update_lib
from tsd_jax.models import presets, transformer
from tsd_jax.models.flops import flops_per_token
from tsd_jax.rewards.reward import Reward
from tsd_jax.run import costs, train
from tsd_jax.search import search as search_lib
from tsd_jax.tasks.countdown import Countdown
from tsd_jax.tasks.task import as_prompts

TASK, MODEL = Countdown(), presets.TINY
P, T = TASK.prompt_length, TASK.response_length
GRAPHDEF, PARAMS = transformer.create(MODEL, 0)
B = 16


def ratio(function, *shapes, tokens):
  """XLA's FLOPs of a program over the ledger's, for what it says it ran.

  The program is counted as it is handed to XLA, layers unrolled: compiling it
  changes the count by less than 1 % and takes a minute.
  """
  cost = jax.jit(function).lower(*shapes).cost_analysis()
  return cost["flops"] / (tokens * flops_per_token(MODEL))


def shape_of(function, *arguments):
  return jax.eval_shape(function, *arguments)


KEY = shape_of(lambda: jax.random.key(0))
PROMPT = jax.ShapeDtypeStruct((B, P), jnp.int32)


def prefill(params, prompt_BP):
  prompts = as_prompts(TASK, prompt_BP)
  return prefill_lib.prefill(nnx.merge(GRAPHDEF, params), prompts)


def configure(method):
  """The default experiment's learner with few prompts."""
  config = compare_countdown.get_config()
  small = {
    "rollout.prompts": B, "rollout.baseline_prompts": B,
    "loss.distilled_prompts": B,
    "search.width": 8, "search.trees": B, "optimizer.minibatches": 1,
  }  # fmt: skip
  small = {f"experiment.{name}": str(value) for name, value in small.items()}
  config = config_lib.override(config, small)
  run = config.run(
    method, config.recipe(method), 0, "validation", config.forecast
  )
  return run.learner_config()


def test_a_prompt():
  # Logits are made at its last token alone: 6 % of a token's FLOPs are spared.
  got = ratio(prefill, PARAMS, PROMPT, tokens=B * P)
  assert 0.9 < got < 1.0


def test_a_step_of_sampling():
  def sample(params, prefix, key):
    return sampling.sample(
      nnx.merge(GRAPHDEF, params), prefix, sampling.row_keys(key, B, 1),
      length=T, end_ids=TASK.end_ids, pad_id=TASK.pad_id,
    )  # fmt: skip

  # Beyond the weights: V_pi and V_search (7 %), attention, and the draw, whose
  # running sum XLA counts as a window over the vocabulary.
  prefix = shape_of(prefill, PARAMS, PROMPT)
  got = ratio(sample, PARAMS, prefix, KEY, tokens=B)
  assert 1.0 < got < 1.4


def test_a_simulation():
  config = configure("tsd").search

  def search(params, prefix, prompt_BP, key):
    model = nnx.merge(GRAPHDEF, params)
    prompts = as_prompts(TASK, prompt_BP)
    result = search_lib.search(model, TASK, prompts, key, config, prefix=prefix)
    return result.tree.embeddings

  # One simulation, and the moves at the root before the first one.
  prefix = shape_of(prefill, PARAMS, PROMPT)
  got = ratio(search, PARAMS, prefix, PROMPT, KEY, tokens=B)
  assert 1.0 < got < 1.4


def batch(config):
  """Shapes of what an update of these prompts reads."""
  B, G = config.trained_prompts, config.rollout.group
  C, M = config.distilled_prompts, config.loss.champions

  def make():
    rows = {n: jnp.zeros((B, G, T)) for n in ("log_prob", "value", "entropy")}
    rows |= {"tokens": jnp.zeros((B, G, T), jnp.int32)}
    rows |= {"mask": jnp.ones((B, G, T), bool)}
    responses = iteration.Responses(
      **{f"{name}_BGT": row for name, row in rows.items()},
      parent_BG=jnp.zeros((B, G), jnp.int32),
      fork_BG=jnp.zeros((B, G), jnp.int32),
      reward_BG=jnp.zeros((B, G)),
      correct_BG=jnp.zeros((B, G), bool),
    )
    distillation = update_lib.DistillationBatch(
      as_prompts(TASK, jnp.zeros((C, P), jnp.int32)),
      jnp.zeros((C, M, T), jnp.int32),
      jnp.ones((C, M), bool),
      None,
    )
    return update_lib.Batch(
      as_prompts(TASK, jnp.zeros((B, P), jnp.int32)),
      responses,
      rows["log_prob"],
      rows["value"],
      jnp.zeros((B, G)),
      distillation if config.loss.distils else None,
    )

  return shape_of(make)


@pytest.mark.parametrize("method", entrants.METHODS)
def test_an_update_is_as_much_for_every_method(method):
  config = configure(method)
  state = shape_of(lambda params: iteration.init_state(config, params), PARAMS)
  hyper = {k: jnp.float32(v) for k, v in config.hyper.items()}

  def update(params, opt_state, reads, key):
    return update_lib.update(
      GRAPHDEF,
      (params, opt_state),
      update_lib.FixedParams(PARAMS),
      reads,
      key,
      hyper,
      config,
    )

  # What iteration.py books, about the same number for every method.
  tokens = config.update_tokens(TASK)
  ours = configure("tsd").update_tokens(TASK)
  alike = abs(tokens / ours - 1) < 0.15
  # As many lessons alone.
  assert alike or method in ("filtered_best_of_n", "stopped_best_of_n")
  got = ratio(
    update, state.params, state.opt_state, batch(config), KEY,
    tokens=BACKWARD_COST * tokens,
  )  # fmt: skip
  assert 0.9 < got < 1.2


def test_totals_count_an_update_three_times():
  ledger = Ledger()
  counts = dict(prefill=1, search=20, rollout=300, rescore=4000, update=5)
  ledger.add(Tokens(**counts, scored=6), reward_tokens=10_000)
  ledger.add(Tokens(**dict.fromkeys(counts, 0) | {"prefill": 1}, scored=0))
  assert ledger.total == 2 + 20 + 300 + 4000 + 60_000 + 15
  assert ledger.to_dict()["update"] == 5
  assert ledger.to_dict()["reward"] == 60_000
  assert Ledger(**dataclasses.asdict(ledger)) == ledger


@dataclasses.dataclass(frozen=True)
class Dear(Reward):
  """A reward of a model that is so many tokens of the policy."""

  tokens: float

  def flops(self, prompt_length, response_length):
    assert (prompt_length, response_length) == (2, 3)
    return self.tokens * flops_per_token(small_game.get_config().model)

  def __call__(self, params, prompts, tokens_BGT, mask_BGT):
    return small_game.Backwards().reward(params, prompts, tokens_BGT, mask_BGT)


def test_a_rewards_operations_are_counted_in_tokens_of_the_policy():
  """Of every response that it scores, in samples and in trees."""
  base = small_game.get_config()
  rule = dataclasses.replace(base.search.rule, stop_when_solved=False)
  base = dataclasses.replace(
    base, search=dataclasses.replace(base.search, rule=rule)
  )
  metrics = few_iterations.run(base, 2).metrics
  # 8 prompts of 4 samples; 16 trees of 12 nodes below their roots.
  scored = 8 * 4 + 16 * (12 + 1)
  np.testing.assert_array_equal(metrics["tokens"].scored, scored)
  # No int32 holds what the largest one takes.
  for tokens, expected in ((0, 0), (0.25, 1), (2.5, 3), (2.0**30, 2**30)):
    config = dataclasses.replace(base, reward=Dear(tokens))
    each = config.learner_config().reward_tokens
    assert each == expected
    ledger = Ledger()
    rows = train.to_rows(dict(metrics), 0, ledger, each)
    assert [r["ledger"]["reward"] for r in rows] == [
      scored * each, 2 * scored * each
    ]  # fmt: skip
    free = rows[-1]["ledger"]["total"] - 2 * scored * each
    assert (
      free
      == train.to_rows(dict(metrics), 0, Ledger(), 0)[-1]["ledger"]["total"]
    )
    # What is planned before a run counts the same.
    planned = costs.iteration_tokens(config) - costs.iteration_tokens(base)
    assert planned == scored * each
