"""The ledger against XLA: its tokens x FLOPs a token are what XLA counts.

XLA counts the body of a loop once, so each part of an iteration is one call of
the body, and the ledger says how many tokens went through it.
"""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from experiments import compare_countdown
from tsd_jax.base.ledger import BACKWARD_COST, Ledger, Tokens
from tsd_jax.comparison import judge
from tsd_jax.inference import prefill as prefill_lib
from tsd_jax.inference import sampling
from tsd_jax.learning import iteration
from tsd_jax.learning import update as update_lib
from tsd_jax.models import presets, transformer
from tsd_jax.models.flops import flops_per_token
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
  config = judge.config_lib.override(config, small)
  return config.run(method, "3e-4", 0, "test").learner_config()


def test_a_prompt():
  # Logits are made at its last token alone: 6 % of a token's FLOPs are spared.
  got = ratio(prefill, PARAMS, PROMPT, tokens=B * P)
  assert 0.9 < got < 1.0


def test_a_step_of_sampling():
  def sample(params, prefix, key):
    return sampling.sample(
      nnx.merge(GRAPHDEF, params), prefix, sampling.row_keys(key, B, 1),
      length=T, eos_id=TASK.eos_id, pad_id=TASK.pad_id,
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
  B, G = config.rollout.prompts, config.rollout.group
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


@pytest.mark.parametrize("method", judge.METHODS)
def test_an_update_is_as_much_for_every_method(method):
  config = configure(method)
  state = shape_of(lambda params: iteration.init_state(config, params), PARAMS)
  hyper = {k: jnp.float32(v) for k, v in config.hyper.items()}

  def update(params, opt_state, reads, key):
    return update_lib.update(
      GRAPHDEF,
      (params, opt_state),
      update_lib.Frozen(PARAMS),
      reads,
      key,
      hyper,
      config,
    )

  # What iteration.py books, about the same number for every method.
  tokens = config.update_tokens(TASK)
  ours = configure("tsd").update_tokens(TASK)
  assert abs(tokens / ours - 1) < judge.TOLERANCE
  got = ratio(
    update, state.params, state.opt_state, batch(config), KEY,
    tokens=BACKWARD_COST * tokens,
  )  # fmt: skip
  assert 0.9 < got < 1.2


def test_totals_count_an_update_three_times():
  ledger = Ledger()
  ledger.add(
    Tokens(
      prefill=1, search=20, rollout=300, rescore=4000, update=5, reward=60_000
    )
  )
  ledger.add(
    Tokens(prefill=1, search=0, rollout=0, rescore=0, update=0, reward=0)
  )
  assert ledger.total == 2 + 20 + 300 + 4000 + 60_000 + 15
  assert ledger.to_dict()["update"] == 5
