"""The compiled loop on a task that it can learn in seconds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.fake_task import Fake
from tsd_jax.base.types import Responses
from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.learning import iteration, methods
from tsd_jax.learning.config import LossConfig, OptimizerConfig
from tsd_jax.learning.update import FixedParams
from tsd_jax.models import transformer
from tsd_jax.parallel import sharding
from tsd_jax.rewards.reward import Score
from tsd_jax.search.best_first import BestFirst
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.task import as_prompts

V, P, T, EOS, PAD = 8, 2, 4, 6, 7
S, B, C = 64, 32, 32  # Prompts searched, sampled on, distilled.


@dataclasses.dataclass(frozen=True)
class Copy(Fake):
  """Begin with the prompt's last token, and end."""

  name = "copy"
  vocab_size, prompt_length, response_length = V, P, T
  eos_id, pad_id = EOS, PAD

  def score(self, prompt_XP, response_XT):
    """Counts what is right."""
    finished_X = jnp.any(response_XT == EOS, axis=-1)
    right_X = finished_X & (response_XT[..., 0] == prompt_XP[..., -1])
    return Score(right_X.astype(jnp.float32), right_X)


TASK = Copy()
MODEL = transformer.ModelConfig(
  vocab_size=V, d_model=32, num_layers=1, num_heads=2, num_kv_heads=2,
  head_dim=16, d_mlp=32,
)  # fmt: skip


ROLLOUT = RolloutConfig(prompts=B, samples=4, forks=2, baseline_prompts=S)
SEARCH = SearchConfig(
  num_simulations=12, num_candidates=4, width=S // B, trees=16
)


def configure(algorithm="tsd", **parts):
  options = dict(
    rollout=ROLLOUT,
    search=SEARCH,
    loss=LossConfig(distilled_prompts=C),
    optimizer=OptimizerConfig(learning_rate=3e-3, minibatches=4),
    refresh_every=1,
    iterations=4,
  )
  return methods.resolve(algorithm, TASK, **options | parts)


@functools.cache
def start():
  return transformer.create(MODEL, 0)


def prompts(iterations, seed=0):
  """Batches of Q prompts; leaves lead with the iterations."""
  rng = np.random.default_rng(seed)
  tokens_IQP = rng.integers(0, 6, (iterations, S, P)).astype(np.int32)
  return stacked([as_prompts(TASK, tokens_QP) for tokens_QP in tokens_IQP])


def stacked(trees):
  return jax.tree.map(lambda *a: np.stack(a), *trees)


def fresh(config):
  """A state of its own: the loop donates what it is given."""
  return iteration.init_state(config, jax.tree.map(jnp.copy, start()[1]))


def run(config, prompts, per_call=1, state=None, mesh=None, seed=0, task=TASK):
  train_loop = iteration.make_train_loop(start()[0], task, config, mesh)
  key = jax.random.key(seed)
  state = fresh(config) if state is None else state
  fixed = FixedParams(jax.tree.map(jnp.copy, start()[1]))
  hyper = {k: jnp.float32(v) for k, v in config.hyper.items()}
  all_metrics = []
  for i in range(0, len(prompts), per_call):
    piece = prompts[i : i + per_call]
    if mesh is not None:
      state, fixed = sharding.place((state, fixed), mesh)
      piece = jax.device_put(piece, sharding.over_prompts(mesh, leading=1))
    state, metrics = train_loop(state, piece, fixed, hyper, key)
    all_metrics.append(jax.device_get(metrics))
  metrics = jax.tree.map(lambda *a: np.concatenate(a), *all_metrics)
  return jax.device_get(state), metrics


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("algorithm", methods.ALGORITHMS)
def test_every_method_learns(algorithm):
  config = configure(
    algorithm, optimizer=OptimizerConfig(learning_rate=1e-3, minibatches=4)
  )
  _, metrics = run(config, prompts(150), per_call=150)
  for name, values in metrics.items():
    if name != "tokens":
      assert np.all(np.isfinite(values)), name
  assert metrics["correct"][0] < 0.2
  assert metrics["correct"][-50:].mean() > 0.5


def test_a_call_of_four_is_four_calls_of_one_bit_for_bit():
  config = configure()
  four, metrics_four = run(config, prompts(4), per_call=4)
  ones, metrics_ones = run(config, prompts(4), per_call=1)
  assert_equal(four, ones)
  assert_equal(metrics_four, metrics_ones)
  assert int(four.iteration) == 4


def test_prompts_over_eight_devices_train_the_same():
  config = configure()
  mesh = sharding.make_mesh(sharding.MeshConfig(data=8))
  one, metrics_one = run(config, prompts(3))
  eight, metrics_eight = run(config, prompts(3), mesh=mesh)
  # The first iteration samples with equal parameters: the same tokens.
  for name in ("reward", "correct", "search_reward", "response_length"):
    np.testing.assert_allclose(
      metrics_one[name][0], metrics_eight[name][0], rtol=1e-6
    )
  # Sums run in another order: close, not equal.
  for a, b in zip(
    jax.tree.leaves(one.params), jax.tree.leaves(eight.params), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=2e-3)


@pytest.mark.parametrize("every", [0, 1, 2])
def test_the_search_model_is_refreshed_when_told(every):
  config = configure(refresh_every=every)
  state, history = fresh(config), [jax.device_get(start()[1])]
  for i in range(4):
    state, _ = run(config, prompts(1, seed=i), state=state)
    # The search of iteration i ran with what the policy was before it.
    seen = {0: 0, 1: i, 2: i - i % 2}[every]
    assert_equal(state.search_params, history[seen])
    history.append(state.params)
    state = jax.tree.map(jnp.asarray, state)
  leaves = [jax.tree.leaves(h)[0] for h in history]
  assert not np.array_equal(leaves[0], leaves[1])


def test_a_seed_decides_everything():
  config = configure()
  first, again = run(config, prompts(2)), run(config, prompts(2))
  assert_equal(first, again)
  _, metrics = run(config, prompts(2), seed=1)
  assert not np.array_equal(metrics["loss"], first[1]["loss"])


def test_a_tighter_clip_acts_more_and_changes_the_update():
  def one(clip):
    loss = LossConfig(distilled_prompts=C, clip_low=clip, clip_high=clip)
    steps = OptimizerConfig(learning_rate=3e-3, minibatches=4, epochs=2)
    return run(configure(loss=loss, optimizer=steps), prompts(1))

  (tight, m_tight), (loose, m_loose) = one(0.01), one(0.9)
  assert m_tight["clip_fraction"][0] > 0.1 > m_loose["clip_fraction"][0]
  assert not np.array_equal(
    jax.tree.leaves(tight.params)[0], jax.tree.leaves(loose.params)[0]
  )


def test_the_first_minibatch_is_on_policy():
  """Stored log-probabilities are the learner's own at equal parameters."""
  steps = OptimizerConfig(learning_rate=1e-9, minibatches=4)
  for temperature in (1.0, 0.7):
    sampling = dataclasses.replace(ROLLOUT, temperature=temperature)
    config = configure(optimizer=steps, rollout=sampling)
    _, metrics = run(config, prompts(1))
    assert metrics["approx_kl"][0] < 1e-9
    assert metrics["ratio"][0] == pytest.approx(1, abs=1e-5)


def lengths(mask_BGT):
  return np.asarray(mask_BGT).sum(-1)


def test_the_ledger_is_a_hand_count():
  for algorithm in ("tsd", "ppo"):
    config = configure(
      algorithm,
      search=dataclasses.replace(
        SEARCH, rule=BestFirst(stop_when_solved=False)
      ),
      rollout=dataclasses.replace(ROLLOUT, choose="first"),
      loss=LossConfig(distilled_prompts=C, kl_weight=0.1),
      optimizer=OptimizerConfig(minibatches=4, epochs=3),
    )
    _, metrics = run(config, prompts(1))
    tokens = jax.tree.map(lambda a: int(a[0]), metrics["tokens"])
    # The baseline's 5 rows of 64 prompts are the fewest that reach tsd's count.
    ours = B * (P + 8 * (T - 1)) + C * (P + T - 1)
    assert S * (P + 4 * (T - 1)) < ours <= S * (P + 5 * (T - 1))
    G, b, searches = (8, B, True) if algorithm == "tsd" else (5, S, False)
    assert tokens.prefill == b * P + searches * S * P
    assert tokens.search == (12 * S if searches else 0)
    assert tokens.update == 3 * (ours if searches else b * (P + G * (T - 1)))
    assert tokens.rescore == 3 * b * (P + G * (T - 1))
    # Samples run until the longest row's last token, which is not fed back.
    model = nnx.merge(*start())
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 5)[3]
    sample = functools.partial(config.rollout, model, TASK)
    r, forwards = jax.jit(sample)(prompts(1)[0][:b], key)
    plain = config.rollout.samples
    expected = b * plain * (lengths(r.mask_BGT)[:, :plain].max() - 1)
    if searches:
      # A fork feeds its parent's last token again.
      tail = lengths(r.mask_BGT)[:, plain:].max()
      expected += b * (G - plain) * (1 + tail - 1)
    assert tokens.rollout == int(forwards) == expected


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (dict(refresh_every=-1), "refresh_every=-1"),
    (dict(optimizer=OptimizerConfig(minibatches=5)), "multiple of"),
    (
      dict(loss=LossConfig(distilled_prompts=6)),
      "loss.distilled_prompts=6 must be a multiple",
    ),
    (dict(loss=LossConfig(distilled_prompts=128)), "exceeds the 64 prompts"),
    (
      dict(loss=LossConfig(advantage="group", distilled_prompts=C)),
      "knows no forks",
    ),
    (
      dict(
        loss=LossConfig(advantage="gae", distilled_prompts=C),
        rollout=dataclasses.replace(ROLLOUT, forks=0),
      ),
      "set loss.value_weight > 0",
    ),
    (
      dict(rollout=dataclasses.replace(ROLLOUT, forks=0, samples=1)),
      "compares the rows of a prompt, of which there is 1",
    ),
  ],
)
def test_settings_that_do_not_fit_are_refused(change, words):
  with pytest.raises(ValueError, match=words):
    configure(**change)


def test_an_unknown_method_is_refused():
  with pytest.raises(ValueError, match="'dpo' is not one of tsd, ppo"):
    configure("dpo")


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "cispo", "best_of_n"])
@pytest.mark.parametrize("advantage", ["group", "centred", "gae", "prefix"])
def test_what_tsd_does_for_its_forks_holds_up_no_baseline(algorithm, advantage):
  """They have none; their update stays as large as with any advantage."""
  loss = LossConfig(advantage=advantage, distilled_prompts=C)
  config = configure(algorithm, loss=loss)
  usual = configure(algorithm)
  assert config.update_tokens(TASK) == usual.update_tokens(TASK)
  dr = advantage == "centred" and algorithm in ("grpo", "cispo")
  expected = "centred" if dr else usual.loss.advantage
  assert config.loss.advantage == expected


@pytest.mark.parametrize("data", [1, 2, 4])
def test_champions_alone_fill_whole_minibatches_of_every_device(data):
  """The number of prompts is worked out, so nobody could mend it."""
  config = configure("expert_iteration", mesh=sharding.MeshConfig(data=data))
  one = configure("expert_iteration")
  whole = config.optimizer.minibatches * data
  assert config.distilled_prompts % whole == 0
  assert 0 <= one.distilled_prompts - config.distilled_prompts < whole


@pytest.mark.parametrize("rows", [1, 3])
def test_prompts_that_fill_an_update_fit_the_mesh(rows):
  """Those of controls are worked out as well."""
  one = configure()
  tokens = one.update_tokens(TASK)
  many = configure(mesh=sharding.MeshConfig(data=2, fsdp=2))
  assert many.prompt_step == 4 * one.prompt_step
  most = one.prompts_of(TASK, tokens, rows)
  fewer = many.prompts_of(TASK, tokens, rows)
  assert fewer % many.prompt_step == 0 and most % one.prompt_step == 0
  assert 0 <= most - fewer < many.prompt_step


def test_a_response_of_one_token_is_refused():

  class Short(Copy):
    response_length = 1

  for algorithm in methods.ALGORITHMS:
    with pytest.raises(ValueError, match="have 1 token: give it 2 or more"):
      methods.resolve(
        algorithm, Short(), rollout=ROLLOUT, search=SEARCH,
        loss=LossConfig(distilled_prompts=C), optimizer=OptimizerConfig(),
        refresh_every=1, iterations=4,
      )  # fmt: skip


@pytest.mark.parametrize("champions", [1, 3])
@pytest.mark.parametrize("algorithm", methods.ALGORITHMS)
def test_every_method_updates_on_as_many_tokens(algorithm, champions):
  loss = LossConfig(distilled_prompts=C, champions=champions)
  ours = configure(loss=loss).update_tokens(TASK)
  config = configure(algorithm, loss=loss)
  count = config.update_tokens(TASK)
  # Baselines round up to a row of every prompt.
  assert ours <= count <= ours + S * T or algorithm == "expert_iteration"
  assert config.prompts == S


def found(used_S, success_prob_Q):
  """What a search of one champion a prompt found."""
  tokens_QMT = jnp.arange(len(used_S) * T, dtype=jnp.int32)
  return iteration.Found(
    tokens_QMT.reshape(-1, 1, T),
    jnp.asarray(used_S)[:, None],
    jnp.ones((len(used_S), 1)),
    jnp.asarray(success_prob_Q, jnp.float32),
    None,
  )


def test_prompts_with_a_champion_are_distilled_first():
  asked = as_prompts(TASK, jnp.arange(20).reshape(10, 2))
  config = configure()
  config = dataclasses.replace(
    config,
    loss=dataclasses.replace(config.loss, distilled_prompts=5),
    optimizer=OptimizerConfig(minibatches=1),
  )
  used_S = np.isin(np.arange(10), [2, 5, 7])
  search = found(used_S, np.zeros(10))
  seen = set()
  for seed in range(20):
    batch = iteration.choose_distillation_batch(
      jax.random.key(seed), asked, search, config
    )
    rows = np.asarray(batch.prompts.tokens_BP[:, 0]) // 2
    assert len(set(rows)) == 5 and {2, 5, 7} <= set(rows)
    np.testing.assert_array_equal(batch.used_CM[:, 0], used_S[rows])
    np.testing.assert_array_equal(batch.tokens_CMT[:, 0, 0], rows * T)
    seen |= set(rows)
  assert seen == set(range(10))  # The rest is drawn, not always the same.


def test_samples_go_where_success_is_least_certain():
  search = found(np.ones(6, bool), [0.0, 0.95, 0.4, 1.0, 0.7, 0.1])
  chosen_B = iteration.choose_prompts(jax.random.key(0), search, 3)
  assert sorted(np.asarray(chosen_B)) == [2, 4, 5]


def test_own_champions_need_no_search():
  config = configure(loss=LossConfig(champion_source="samples"))
  assert config.prompts == config.distilled_prompts == B
  assert not config.searches
  _, metrics = run(config, prompts(1)[:, :B])
  assert metrics["tokens"].search[0] == 0
  assert metrics["champion_ce"][0] > 0


@pytest.mark.parametrize("count", [2, 6])
def test_best_samples_are_distinct_and_best_first(count):
  rng = np.random.default_rng(0)
  shape = (16, 6)
  said_BG3 = rng.integers(0, 2, (*shape, 3))
  ended_BG = rng.random(shape) < 0.8
  # What has no end is no answer, whatever the reward says of it.
  end_BG1 = np.where(ended_BG, TASK.eos_id, TASK.pad_id)[..., None]
  tokens_BGT = np.concatenate([said_BG3, end_BG1], axis=-1)
  # The reward is a function of the tokens, as a task's is.
  reward_BG = (said_BG3 @ [4, 2, 1] / 7).astype(np.float32)
  fields = dict.fromkeys(Responses._fields)
  fields |= dict(
    tokens_BGT=jnp.asarray(tokens_BGT),
    reward_BG=jnp.asarray(reward_BG),
    correct_BG=jnp.asarray(reward_BG > 0.5),
  )
  loss = LossConfig(champions=count, champion_source="samples")
  config = configure(loss=loss, rollout=RolloutConfig(prompts=16, samples=6))
  program = iteration.Program(None, None, TASK, config, None)
  found = iteration.best_samples(program, Responses(**fields))
  np.testing.assert_allclose(
    found.success_prob_Q, (reward_BG > 0.5).mean(axis=1), rtol=1e-6
  )
  for b in range(16):
    distinct = sorted(
      {tuple(t) for t in said_BG3[b][ended_BG[b]]}, reverse=True
    )
    rows, used_M = np.asarray(found.tokens_QMT[b]), found.used_QM[b]
    right = [t for t in distinct if np.dot(t, [4, 2, 1]) / 7 > 0.5]
    assert [tuple(t[:3]) for t in rows[used_M]] == right[:count]
    assert np.all(rows[used_M, 3] == TASK.eos_id) and len(rows) == count
    best = [tuple(t[:3]) for t in rows[: len(distinct)]]
    assert best == distinct[:count]


def test_solved_prompts_fill_an_update():
  """Filtered sampling: of many sampled prompts, those that have an answer."""
  asked = jax.tree.map(lambda a: jnp.asarray(a[0]), prompts(1))
  Q, C = len(asked), 4
  used_Q1 = np.zeros((Q, 1), bool)
  used_Q1[[1, 3, 5]] = True
  loss = LossConfig(champion_source="samples", distilled_prompts=C)
  config = configure(loss=loss, rollout=RolloutConfig(prompts=Q, forks=0))
  assert config.distilled_prompts == C
  found = iteration.Found(
    jnp.arange(Q)[:, None, None], jnp.asarray(used_Q1), jnp.ones((Q, 1)),
    jnp.ones(Q), None,
  )  # fmt: skip
  seen = set()
  for seed in range(8):
    batch = iteration.choose_distillation_batch(
      jax.random.key(seed), asked, found, config
    )
    rows_C = np.asarray(batch.tokens_CMT[:, 0, 0])
    assert len(set(rows_C)) == C and set(rows_C) >= {1, 3, 5}
    np.testing.assert_array_equal(batch.used_CM, used_Q1[rows_C])
    np.testing.assert_array_equal(
      batch.prompts.tokens_BP, asked.tokens_BP[rows_C]
    )
    seen |= set(rows_C)
  assert len(seen) > C


def test_groups_whose_rewards_differ_are_trained_on_first():
  reward_BG = np.zeros((8, 4), np.float32)
  reward_BG[2] = 1.0  # All right: nothing to tell apart.
  reward_BG[[0, 5, 7], 1] = 1.0
  fields = dict.fromkeys(Responses._fields) | dict(reward_BG=reward_BG)
  for count in (2, 3, 5):
    rows = iteration.choose_groups(
      jax.random.key(count), Responses(**fields), count
    ).tolist()
    assert len(set(rows)) == count
    assert len({0, 5, 7} & set(rows)) == min(count, 3)


def test_dynamic_sampling_trains_on_as_many_prompts_as_grpo():
  """And pays for the others; the update is not larger."""
  plain = configure("grpo")
  wide = configure("grpo", rollout=dataclasses.replace(ROLLOUT, oversample=2))
  assert wide.rollout.prompts == 2 * plain.rollout.prompts
  assert wide.trained_prompts == plain.trained_prompts == S
  assert wide.update_tokens(TASK) == plain.update_tokens(TASK)
  asked = jax.tree.map(
    lambda a: np.repeat(a, 2, axis=1)[:, : 2 * S], prompts(1)
  )
  state, metrics = run(wide, asked)
  _, alone = run(plain, asked[:, :S])
  tokens, fewer = metrics["tokens"], alone["tokens"]
  assert tokens.update == fewer.update
  assert tokens.prefill == 2 * fewer.prefill
  assert tokens.scored == 2 * fewer.scored
  assert np.all(np.isfinite(metrics["loss"]))


def test_the_learning_rate_falls_linearly_to_nothing():
  """An iteration moves as far as one with that part of the rate."""

  def after(iteration, **optimizer):
    optimizer = OptimizerConfig(minibatches=4, **optimizer)
    config = configure("grpo", optimizer=optimizer)
    state = fresh(config)._replace(iteration=jnp.int32(iteration))
    return run(config, prompts(1), state=state)[0].params

  for index, rate in enumerate([4e-3, 3e-3, 2e-3, 1e-3]):
    decayed = after(index, learning_rate=4e-3, linear_decay=True)
    # Of the 1e-2 that it moves; two programs round their gradients differently.
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
      decayed,
      after(index, learning_rate=rate),
    )
  for index in (4, 5):
    stays = after(index, learning_rate=4e-3, linear_decay=True)
    assert_equal(stays, start()[1])


def test_programs_are_shared_between_values_of_hyper():
  def program(algorithm, **parts):
    return iteration.make_train_loop(
      start()[0], TASK, configure(algorithm, **parts)
    )

  faster = OptimizerConfig(learning_rate=1e-4, minibatches=4)
  lighter = LossConfig(distilled_prompts=C, champion_weight=0.1, clip_high=0.3)
  first = program("tsd")
  assert program("tsd", optimizer=faster) is first
  falling = dataclasses.replace(faster, linear_decay=True)
  decaying = program("tsd", optimizer=falling)
  assert decaying is program("tsd", optimizer=falling, iterations=9)
  assert decaying is not first
  assert program("tsd", loss=lighter) is first
  assert (
    program("tsd", loss=LossConfig(champion_weight=0, distilled_prompts=C))
    is not first
  )
  assert program("ppo") is not first
