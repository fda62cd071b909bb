"""Prompts padded on the right, and prompts that begin alike.

All of learning sees the bare prompts, each run as a whole.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.fake_task import Fake
from tests.flat_search import flat_search
from tests.noisy import add_noise
from tsd_jax.base.types import PromptForm
from tsd_jax.inference import scoring
from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.learning import iteration, methods
from tsd_jax.learning.config import LossConfig, OptimizerConfig
from tsd_jax.learning.update import FixedParams
from tsd_jax.models import transformer
from tsd_jax.rewards.reward import Score
from tsd_jax.run import evaluation
from tsd_jax.search import search as search_lib
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.task import as_prompts

V, T, EOS, PAD = 9, 3, 7, 8
S, B = 8, 4  # Prompts searched, and sampled on.
# The padding token also stands inside: only the end of a row is padding.
HEAD = [4, PAD]
BARE = np.array([[1, PAD, 3], [2, 0, 5], [PAD, PAD, 4], [6, 6, 6]] * 2)
BARE[4:, 0] = 3
BARE = np.concatenate([np.tile(HEAD, (S, 1)), BARE], axis=1)
# Tokens of padding, and how much of the common head is run once for all.
FORMS, PLAIN = [(2, 0), (0, 2), (3, 1)], (0, 0)


@dataclasses.dataclass(frozen=True)
class Sum(Fake):
  """Begin with the sum of the prompt's tokens, padding aside, modulo 6."""

  prompt_length: int
  prompt_pad_id: int | None
  shared_prefix_length: int

  name = "sum"
  vocab_size, response_length = V, T
  eos_id = pad_id = EOS  # As in many chat models.
  step_end_ids = (1,)

  def score(self, prompt_XP, response_XT):
    """Half a point for an answer, a whole one for the right one."""
    sum_X = jnp.sum(jnp.where(prompt_XP == PAD, 0, prompt_XP), axis=-1) % 6
    finished_X = jnp.any(response_XT == EOS, axis=-1)
    right_X = finished_X & (response_XT[..., 0] == sum_X)
    return Score(
      (0.5 * finished_X + 0.5 * right_X).astype(jnp.float32), right_X
    )


def posed(by: int, head: int):
  """The task and its prompts with so many tokens of padding."""
  prompt_BP = np.pad(BARE, ((0, 0), (0, by)), constant_values=PAD)
  task = Sum(prompt_BP.shape[1], PAD if by else None, head)
  return task, as_prompts(task, prompt_BP.astype(np.int32))


@functools.cache
def start():
  config = transformer.ModelConfig(
    vocab_size=V, d_model=16, num_layers=2, num_heads=2, num_kv_heads=1,
    head_dim=8, d_mlp=16, unroll_layers=2,
  )  # fmt: skip
  graphdef, params = transformer.create(config, 0)
  return graphdef, add_noise(params, scale=0.2, seed=1)


def assert_close(bare, other, atol=2e-5):
  """Whole numbers are equal, others close."""

  def check(path, a, b):
    name = jax.tree_util.keystr(path)
    if jnp.issubdtype(a.dtype, jnp.floating):
      np.testing.assert_allclose(a, b, atol=atol, err_msg=name)
    else:
      np.testing.assert_array_equal(a, b, err_msg=name)

  jax.tree_util.tree_map_with_path(check, bare, other)


@pytest.mark.parametrize(("by", "head"), [(1, 0), (4, 2)])
def test_given_responses_have_the_log_probs_of_a_plain_forward(by, head):
  """Prompts of any length in one batch, each against its bare self."""
  model, rng = nnx.merge(*start()), np.random.default_rng(by)
  length_B = rng.integers(1 + head, 5, B)
  prompt_BP = rng.integers(0, PAD, (B, 4 + by))
  prompt_BP[np.arange(4 + by)[None] >= length_B[:, None]] = PAD
  prompt_BP[:, :head] = HEAD[:head]
  tokens_BGT = rng.integers(0, V, (B, 2, T))

  @jax.jit
  def given(prompt_BP, tokens_BGT):
    task = Sum(prompt_BP.shape[1], PAD, head)
    prompts = as_prompts(task, prompt_BP)
    form = PromptForm(True, head)
    x_BGTD = scoring.hidden_states(model, prompts, tokens_BGT, form)
    return model.logits(x_BGTD)

  plain = jax.jit(model)  # What stands behind a row changes nothing in it.
  got_BGTV = given(prompt_BP, tokens_BGT)
  for b, n in enumerate(length_B):
    for g in range(2):
      row_1S = np.zeros((1, 4 + T), int)
      row_1S[0, : n + T] = [*prompt_BP[b, :n], *tokens_BGT[b, g]]
      np.testing.assert_allclose(
        got_BGTV[b, g], plain(row_1S)[0, n - 1 : n + T - 1], atol=2e-5
      )


RULES = {
  "best_first": dict(),
  "gumbel": dict(rule="gumbel", leaf="mix"),
  "steps": dict(step_tokens=2),
}


@pytest.mark.parametrize(
  ("rule", "form"),
  [*(("best_first", f) for f in FORMS), ("gumbel", FORMS[2])]
  + [("steps", FORMS[2])],
  ids=str,
)
def test_trees_are_those_of_the_bare_prompts(rule, form):
  config = flat_search(
    num_simulations=10, num_candidates=8, stop_when_solved=False, **RULES[rule]
  )

  def grow(form):
    task, prompts = posed(*form)

    @jax.jit
    def run(prompts):
      model, key = nnx.merge(*start()), jax.random.key(5)
      return search_lib.search(model, task, prompts, key, config)

    return jax.device_get(run(prompts))

  bare = grow(PLAIN)
  assert bare.tree.embeddings.has_answer.sum() > S // 2
  assert_close(bare, grow(form))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_measured_responses_are_those_to_the_bare_prompts(form):
  def draw(form):
    task, asked = posed(*form)
    tokens, reward, correct, forwards = evaluation.draw(
      *start(), task, asked, jax.random.key(2),
      jnp.float32(0.8), samples=5,
    )  # fmt: skip
    ends = np.asarray(tokens) != EOS
    prompts = task.shared_prefix_length + S * (
      task.prompt_length - task.shared_prefix_length
    )
    return tokens, reward, correct, ends, forwards - prompts

  bare = draw(PLAIN)
  assert bare[3].any()
  assert_close(bare, draw(form))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_an_update_is_that_of_the_bare_prompts(form):
  """Search, samples, forks and all terms of the loss, the KL too."""

  def train(form):
    task, asked = posed(*form)
    config = methods.resolve(
      "tsd",
      task,
      rollout=RolloutConfig(prompts=B, samples=2, forks=1),
      search=SearchConfig(
        num_simulations=8, num_candidates=4, width=2, trees=4
      ),
      loss=LossConfig(
        distilled_prompts=B, champion_gate="better",
        soft_weight=0.5, value_weight=0.5,
        kl_weight=0.1, entropy_weight=0.01,
      ),
      # Larger steps than gradients: Adam divides tiny ones by themselves.
      optimizer=OptimizerConfig(learning_rate=1e-3, minibatches=2, eps=1.0),
      refresh_every=1,
      iterations=1,
    )  # fmt: skip
    run = iteration.make_train_loop(start()[0], task, config)
    params = jax.tree.map(jnp.copy, start()[1])
    reference = jax.tree.map(lambda a: a * 1.1, params)
    hyper = {k: jnp.float32(v) for k, v in config.hyper.items()}
    state, metrics = run(
      iteration.init_state(config, params),
      jax.tree.map(lambda a: a[None], asked), FixedParams(reference), hyper,
      jax.random.key(3),
    )  # fmt: skip
    return jax.device_get((state, metrics)), config.update_tokens(task)

  ((bare, told), tokens), ((other, told_too), fewer) = map(train, (PLAIN, form))
  assert_close(bare.params, other.params, atol=2e-6)
  # Padding is run, and counted; a head counts once in a call: two minibatches
  # of samples and of champions, the samples' rollouts, two searches of 4 trees.
  by, head = form
  assert fewer - tokens == by * 2 * B - head * (2 * B - 4)
  counted = told.pop("tokens"), told_too.pop("tokens")
  prefilled = [int(t.prefill[0]) for t in counted]
  assert prefilled[1] - prefilled[0] == by * (S + B) - head * (S + B - 3)
  rescored = [int(t.rescore[0]) for t in counted]
  assert rescored[1] - rescored[0] == by * B - head * (B - 2)
  assert [int(t.update[0]) for t in counted] == [tokens, fewer]
  told.pop("search_wasted", None), told_too.pop("search_wasted", None)
  assert told["kl_reference"][0] > 1e-3 and told["reward"][0] > 0
  assert_close(told, told_too, atol=1e-4)


@pytest.mark.parametrize("algorithm", methods.ALGORITHMS)
def test_methods_read_as_much_of_prompts_that_begin_alike(algorithm):
  def read(algorithm):
    config = methods.resolve(
      algorithm,
      task,
      rollout=RolloutConfig(prompts=32, baseline_prompts=16),
      search=SearchConfig(width=8),
      loss=LossConfig(distilled_prompts=64),
      optimizer=OptimizerConfig(minibatches=4),
      refresh_every=1,
      iterations=1,
    )
    samples = config.loss.trains_on_samples * config.rollout.prompts
    expected = 0
    for prompts, rows in (
      (samples, config.rollout.group),
      (config.distilled_prompts, config.loss.champions),
    ):
      for _ in range(
        4 if prompts else 0
      ):  # Each minibatch: its head, the rest.
        own = task.prompt_length - task.shared_prefix_length
        expected += task.shared_prefix_length + prompts // 4 * (
          own + rows * (T - 1)
        )
    assert config.update_tokens(task) == expected
    return expected

  task = Sum(40, None, 32)
  assert read(algorithm) == pytest.approx(read("tsd"), rel=0.1)


def test_full_prompts_need_no_mask():
  """A task whose prompts are full reads no lengths, and pays for no mask."""

  def drawn(by, length):
    task, prompts = posed(by, 0)
    length_B = jnp.full_like(prompts.length_B, length)
    prompts = dataclasses.replace(prompts, length_B=length_B)
    return evaluation.draw(
      *start(), task, prompts, jax.random.key(0), jnp.float32(1), samples=2
    )

  def same(by):
    return jax.tree.all(
      jax.tree.map(np.array_equal, drawn(by, 1), drawn(by, 3))
    )

  assert same(0) and not same(1)
