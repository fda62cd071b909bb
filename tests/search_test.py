"""Trees against plain full forwards, a heap, and brute force."""

import collections
import dataclasses
import functools
import heapq
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from tests.fake_task import Fake
from tests.flat_search import flat_search
from tests.noisy import add_noise
from tsd_jax.base.types import UNVISITED
from tsd_jax.models import transformer
from tsd_jax.parallel import sharding
from tsd_jax.rewards.reward import Score
from tsd_jax.search import champions as champions_lib
from tsd_jax.search import kv_pool, metrics
from tsd_jax.search import search as search_lib
from tsd_jax.search.best_first import BestFirst
from tsd_jax.search.rules import PUCT, Gumbel
from tsd_jax.tasks.task import as_prompts

V, P, T, B, EOS, PAD = 12, 3, 4, 8, 11, 10


@dataclasses.dataclass(frozen=True)
class Hash(Fake):
  """A reward with no structure: a hash of prompt and response."""

  name = "hash"
  vocab_size, prompt_length, response_length = V, P, T
  eos_id, pad_id = EOS, PAD

  ends: tuple[int, ...] = (EOS,)

  @property
  def end_ids(self):
    return self.ends

  def score(self, prompt_XP, response_XT):
    """Reward in [0, 1] of finished responses; two thirds are correct."""
    mixed_X = jnp.sum(response_XT * jnp.array([7, 13, 29, 31]), axis=-1)
    mixed_X += jnp.sum(prompt_XP * jnp.array([3, 5, 11]), axis=-1)
    finished_X = jnp.any(response_XT == EOS, axis=-1)
    reward_X = jnp.where(finished_X, (mixed_X * 37 % 97) / 96.0, 0.0)
    return Score(reward_X, finished_X & (reward_X > 1 / 3))


TASK = Hash()


@functools.cache
def model():
  config = transformer.ModelConfig(
    vocab_size=V, d_model=16, num_layers=2, num_heads=2, num_kv_heads=1,
    head_dim=8, d_mlp=16,
  )  # fmt: skip
  # Tests trace this inside jit: the arrays must not be tracers.
  with jax.ensure_compile_time_eval():
    graphdef, params = transformer.create(config, 27)  # The end is likely.
    noisy = add_noise(params, scale=0.3, seed=5)
  return nnx.merge(graphdef, noisy)


PROMPTS = np.random.default_rng(1).integers(0, 10, (B, P), np.int32)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _search(prompt_BP, config, task=TASK):
  prompts = as_prompts(task, prompt_BP)
  return search_lib.search(model(), task, prompts, jax.random.key(0), config)


def configure(**settings):
  return flat_search(
    **{"num_simulations": 24, "num_candidates": 3, "stop_when_solved": False}
    | settings
  )


@functools.cache
def search(**settings):
  return jax.device_get(_search(PROMPTS, configure(**settings)))


@jax.jit
def _plain(tokens_1S):
  positions_1S = jnp.arange(tokens_1S.shape[1])[None]
  x_1D = model().trunk(tokens_1S, positions_1S).x_RTD[:, -1]
  return jax.nn.log_softmax(model().logits(x_1D))[0], model().values(x_1D)[1]


@functools.cache
def next_log_prob(tokens):
  """Plain full forward: log pi over the vocabulary, and V_search's logit."""
  log_prob_V, logit_1 = _plain(np.array([tokens]))
  return np.asarray(log_prob_V), float(logit_1[0])


best_answers = jax.jit(champions_lib.champions, static_argnums=1)
targets_of = jax.jit(
  functools.partial(champions_lib.path_targets, min_visits=3)
)
ALL = [
  dict(rule="best_first"),
  dict(rule="best_first", leaf="value"),
  dict(rule="best_first", leaf="mix"),
  dict(rule="puct", leaf="rollout"),
  dict(rule="puct", leaf="value"),
  dict(rule="gumbel", leaf="rollout"),
]


def ends_at_once(settings):
  """Whether end tokens are judged with their node instead of being moves."""
  rolls_out = settings.get("leaf") in ("rollout", "mix")
  return settings["rule"] == "best_first" and not rolls_out


def name(settings):
  return "-".join(settings.values())


def tried(tree, row):
  """(parent, action, child) of every expanded edge."""
  for parent, action in np.argwhere(tree.children_index[row] != UNVISITED):
    yield parent, action, tree.children_index[row, parent, action]


def log_prob_of(row, answer):
  """Of an answer to a prompt, by plain forwards."""
  total, tokens = 0.0, tuple(map(int, PROMPTS[row]))
  for token in answer:
    total += next_log_prob(tokens)[0][token]
    tokens += (int(token),)
  return total


@pytest.mark.parametrize("settings", ALL, ids=name)
def test_every_node_is_what_a_plain_forward_says(settings):
  result = search(**settings)
  tree, nodes = result.tree, result.tree.embeddings
  at_once = ends_at_once(settings)
  for row in range(B):
    edges = list(tried(tree, row))
    assert len(edges) > 10
    for parent, action, child in edges:
      token = nodes.candidate_A[row, parent, action]
      depth = nodes.depth[row, parent]
      if nodes.finished[row, parent] or nodes.cut_off[row, parent]:
        continue
      path = nodes.path_tokens[row, child]
      assert path[depth] == token
      np.testing.assert_array_equal(
        path[:depth], nodes.path_tokens[row, parent][:depth]
      )
      assert np.all(path[depth + 1 :] == PAD)
      assert nodes.finished[row, child] == (token == EOS)
      assert not (at_once and token == EOS)
      full = depth + 1 == (T - 1 if at_once else T)
      assert nodes.cut_off[row, child] == (token != EOS and full)
      before = (*PROMPTS[row], *path[:depth])
      log_prob, _ = next_log_prob(tuple(map(int, before)))
      assert nodes.log_prob_A[row, parent, action] == pytest.approx(
        log_prob[token], abs=2e-5
      )
      log_prob, logit = next_log_prob((*map(int, before), int(token)))
      top = np.sort(log_prob)[::-1][:3]
      np.testing.assert_allclose(nodes.log_prob_A[row, child], top, atol=2e-5)
      np.testing.assert_allclose(
        log_prob[nodes.candidate_A[row, child]], top, atol=2e-5
      )
      assert nodes.value_logit[row, child] == pytest.approx(logit, abs=2e-5)


@pytest.mark.parametrize("settings", ALL, ids=name)
def test_every_answer_is_finished_scored_and_priced(settings):
  nodes = search(**settings).tree.embeddings
  found = np.argwhere(nodes.has_answer)
  assert len(found) > 8
  for row, n in found:
    answer = nodes.answer_tokens[row, n]
    (end,) = np.flatnonzero(answer == EOS)
    assert np.all(answer[end + 1 :] == PAD)
    depth = nodes.depth[row, n]
    np.testing.assert_array_equal(
      answer[:depth], nodes.path_tokens[row, n][:depth]
    )
    score = TASK.score(PROMPTS[row], answer)
    assert nodes.reward[row, n] == pytest.approx(float(score.reward_X))
    assert nodes.correct[row, n] == bool(score.correct_X)
    total = log_prob_of(row, answer[: end + 1])
    assert nodes.answer_log_prob[row, n] == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_a_rollout_s_answer_has_the_log_probability_of_the_model(temperature):
  """Whatever temperature it was drawn at."""
  result = search(rule="puct", leaf="rollout", rollout_temperature=temperature)
  nodes, rolled = result.tree.embeddings, 0
  for row, n in np.argwhere(nodes.has_answer):
    answer = nodes.answer_tokens[row, n]
    (end,) = np.flatnonzero(answer == EOS)
    total = log_prob_of(row, answer[: end + 1])
    assert nodes.answer_log_prob[row, n] == pytest.approx(total, abs=1e-4)
    rolled += end >= nodes.depth[row, n]
  assert rolled > 8


@pytest.mark.parametrize("settings", [ALL[0], ALL[3]], ids=name)
def test_each_of_several_end_tokens_ends_a_response(settings):
  ends, last = (EOS, 9), set()
  tree = jax.device_get(
    _search(PROMPTS, configure(**settings), Hash(ends)).tree
  )
  nodes = tree.embeddings
  for row, n in np.argwhere(tree.node_visits > 0):
    above = max(tree.parents[row, n], 0)
    if nodes.finished[row, above] or nodes.cut_off[row, above]:
      continue  # Visited again: nothing is below it.
    path = nodes.path_tokens[row, n][: nodes.depth[row, n]]
    assert not np.isin(path[:-1], ends).any()
    assert nodes.finished[row, n] == np.isin(path[-1:], ends).any()
    if not nodes.has_answer[row, n]:
      continue
    answer = nodes.answer_tokens[row, n]
    (end,) = np.flatnonzero(np.isin(answer, ends))
    assert np.all(answer[end + 1 :] == PAD)
    last.add(int(answer[end]))
    total = log_prob_of(row, answer[: end + 1])
    assert nodes.answer_log_prob[row, n] == pytest.approx(total, abs=1e-4)
  assert last == set(ends)
  # An answer is the same one, whichever token ends it.
  found = champions_lib.champions(jax.tree.map(jnp.asarray, tree), 6, ends)
  for row in range(B):
    answers = [
      tuple(itertools.takewhile(lambda t: t not in ends, map(int, tokens)))
      for tokens in found.tokens_BMT[row][found.valid_BM[row]]
    ]
    assert len(answers) > 1 and len(set(answers)) == len(answers)


@pytest.mark.parametrize("settings", ALL, ids=name)
def test_gathered_and_read_in_place_a_tree_is_the_same(settings, monkeypatch):
  gathered = search(**settings)  # Of so many nodes they are.
  monkeypatch.setattr(kv_pool, "IN_PLACE", 24)
  config = configure(**settings)
  # A function of its own: what was compiled before gathers.
  whole = jax.jit(lambda prompt_BP: _search.__wrapped__(prompt_BP, config))
  for a, b in zip(
    jax.tree.leaves(gathered), jax.tree.leaves(whole(PROMPTS)), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("settings", [ALL[0], ALL[3]], ids=name)
def test_a_short_search_is_the_beginning_of_a_long_one(settings):
  """Fewer simulations than a response has tokens: shorter paths are read."""
  nodes = T - 2
  short, long = (
    jax.tree.leaves(search(**settings, **changes).tree.embeddings)
    for changes in (dict(num_simulations=nodes), {})
  )
  for a, b in zip(short, long, strict=True):
    np.testing.assert_allclose(a, b[:, : nodes + 1], atol=2e-5)


@pytest.mark.parametrize("settings", ALL[:1] + ALL[3:4], ids=name)
def test_a_sharded_search_finds_the_same(settings):
  mesh = sharding.make_mesh(sharding.MeshConfig(data=8))
  config = flat_search(
    num_simulations=24, num_candidates=3, stop_when_solved=False, **settings
  )
  prompts = jax.device_put(PROMPTS, sharding.over_prompts(mesh))
  sharded, whole = _search(prompts, config), search(**settings)
  assert not sharded.tree.node_visits.sharding.is_fully_replicated
  for a, b in zip(
    jax.tree.leaves(sharded), jax.tree.leaves(whole), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_best_first_expands_in_the_order_of_a_heap(beta):
  settings = dict(leaf="value", beta=beta) if beta else {}
  result = search(rule="best_first", **settings)
  epsilon = BestFirst().epsilon
  for row in range(B):
    ticket = itertools.count()  # Ties never reach the tuple of tokens.
    heap, expected = [], []

    def push(path, discrepancy, heap=heap, ticket=ticket, row=row):
      log_prob, logit = next_log_prob((*map(int, PROMPTS[row]), *path))
      for token in np.argsort(-log_prob, kind="stable")[:3]:
        if token == EOS:
          continue  # Judged with the path, which it needs no forward for.
        step = log_prob[token] - log_prob.max()
        key = discrepancy + step + epsilon * len(path)
        key -= beta * np.log1p(np.exp(-logit))
        entry = (*path, int(token)), discrepancy + step
        heapq.heappush(heap, (-key, next(ticket), entry))

    push((), 0.0)
    while heap and len(expected) < 24:
      path, discrepancy = heapq.heappop(heap)[2]
      expected.append(path)
      if len(path) < T - 1:
        push(path, discrepancy)
    nodes = result.tree.embeddings
    got = [
      tuple(int(t) for t in nodes.path_tokens[row, n][: nodes.depth[row, n]])
      for n in range(1, 25)
      if result.tree.node_visits[row, n] > 0
    ]
    assert len(got) > 10 and got == expected


def test_every_end_among_the_candidates_is_an_answer():
  nodes = search(rule="best_first").tree.embeddings
  visits = search(rule="best_first").tree.node_visits
  likely = 0
  for row, n in np.argwhere(visits > 0):
    path = tuple(map(int, nodes.path_tokens[row, n][: nodes.depth[row, n]]))
    log_prob, _ = next_log_prob((*map(int, PROMPTS[row]), *path))
    offered = EOS in np.argsort(-log_prob)[:3]
    assert nodes.has_answer[row, n] == offered
    if offered:
      assert tuple(nodes.answer_tokens[row, n]) == (
        *path, EOS, *[PAD] * (T - len(path) - 1),
      )  # fmt: skip
    likely += log_prob.argmax() == EOS
  assert likely > B


def reachable(row, prefix=()):
  """Every response through the three likeliest tokens of each state."""
  log_prob, _ = next_log_prob((*map(int, PROMPTS[row]), *prefix))
  for token in np.argsort(-log_prob)[:3]:
    path = (*prefix, int(token))
    if token == EOS:
      yield path
    elif len(path) < T:
      yield from reachable(row, path)


def test_an_exhausted_tree_finds_the_best_answers_in_order():
  full = 3 + 9 + 27 + 81
  tree = search(rule="best_first", num_simulations=full).tree
  best = jax.device_get(best_answers(tree, 4))
  seen = 0
  for row in range(B):
    answers = [(*path, *[PAD] * (T - len(path))) for path in reachable(row)]
    rewards = [
      float(TASK.score(PROMPTS[row], jnp.array(a)).reward_X) for a in answers
    ]
    count = min(4, len(answers))
    seen += count
    assert best.valid_BM[row].sum() == count
    np.testing.assert_allclose(
      best.reward_BM[row], sorted([*rewards, 0, 0, 0, 0])[::-1][:4], atol=1e-6
    )
    found = {tuple(map(int, t)) for t in best.tokens_BMT[row][:count]}
    assert len(found) == count and found <= set(answers)
    if count:
      top = best.tokens_BMT[row, 0]
      assert tuple(map(int, top)) in {
        a for a, r in zip(answers, rewards, strict=True) if r == max(rewards)
      }
  assert seen > B


@pytest.mark.parametrize("settings", ALL[:3], ids=name)
def test_visits_and_values_by_counting(settings):
  """Visits and means, from the edges and what each new node was worth."""
  tree = search(**settings).tree
  for row in range(B):
    edges = list(tried(tree, row))
    edge_of = {n: (parent, action) for parent, action, n in edges}
    visits, worth = collections.Counter({0: 1}), {0: [tree.raw_values[row, 0]]}
    for child in sorted(edge_of):
      visits[child] += 1
      worth[child] = [tree.raw_values[row, child]]
      value, n = tree.raw_values[row, child], child
      while n:
        parent, action = edge_of[n]
        assert (tree.parents[row, n], tree.action_from_parent[row, n]) == (
          parent, action,
        )  # fmt: skip
        value = tree.children_rewards[row, parent, action] + (
          tree.children_discounts[row, parent, action] * value
        )
        worth[parent].append(value)
        visits[parent] += 1
        n = parent
    for parent, action, n in [(None, None, 0), *edges]:
      assert tree.node_visits[row, n] == visits[n]
      mean = np.mean(worth[n])
      assert tree.node_values[row, n] == pytest.approx(mean, abs=1e-5)
      if n:
        edge = row, parent, action
        assert tree.children_visits[edge] == visits[n]
        assert tree.children_values[edge] == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("settings", [ALL[0], ALL[4], ALL[3], ALL[5]], ids=name)
def test_stopping_early_keeps_what_was_found_until_then(settings):
  settings = settings | dict(num_simulations=100, num_candidates=5)
  stopped = search(**settings, stop_when_solved=True)
  whole = search(**settings)
  steps = int(stopped.simulations)
  assert 1 < steps < int(whole.simulations) == 100
  assert np.all(stopped.tree.embeddings.correct.any(1))
  before = whole.tree.embeddings.correct[:, :steps]
  assert not np.all(before.any(1))
  for field, node in vars(whole.tree.embeddings).items():
    # mctx goes on expanding the deepest nodes anew: their keys lie elsewhere.
    if node is not None and field != "path_slots":
      np.testing.assert_array_equal(
        getattr(stopped.tree.embeddings, field)[:, : steps + 1],
        node[:, : steps + 1],
      )
  assert not np.any(stopped.tree.node_visits[:, steps + 1 :])
  assert int(stopped.scored) == (steps + 1) * B
  if settings.get("leaf") == "rollout":
    assert steps * B < int(stopped.forwards) < int(whole.forwards)
  else:
    assert int(stopped.forwards) == steps * B
    assert int(whole.forwards) == 100 * B


def test_rollout_tokens_are_counted():
  plain, rolled = search(rule="best_first"), search(**ALL[3])
  assert int(plain.forwards) == 24 * B
  # Rows of a call count together until the longest of them has ended.
  extra = int(rolled.forwards) - 24 * B
  assert 0 < extra <= 24 * B * (T - 2) and extra % B == 0


@pytest.mark.parametrize("settings", ALL, ids=name)
def test_improved_distributions(settings):
  tree = search(**settings).tree
  config = flat_search(**settings)
  improved_BNA = np.asarray(config.rule.improved(tree))
  np.testing.assert_allclose(improved_BNA.sum(-1), 1, atol=1e-5)
  assert np.all(improved_BNA >= 0)
  if settings["rule"] == "puct":
    visits = tree.children_visits
    total = visits.sum(-1, keepdims=True)
    np.testing.assert_allclose(
      np.where(total > 0, improved_BNA, 0), visits / np.maximum(total, 1),
      atol=1e-6,
    )  # fmt: skip
  if settings["rule"] == "gumbel":
    # A better move gains against the prior: the sign of the advantage.
    q = np.where(
      tree.children_visits > 0, tree.children_rewards
      + tree.children_discounts * tree.children_values, np.nan,
    )[:, 0]  # fmt: skip
    prior = np.exp(tree.children_prior_logits[:, 0])
    gain = improved_BNA[:, 0] / (prior / prior.sum(-1, keepdims=True))
    for row in range(B):
      visited = np.flatnonzero(~np.isnan(q[row]))
      order = visited[np.argsort(q[row][visited])]
      assert np.all(np.diff(gain[row][order]) >= -1e-5)


def test_bayes_posterior_of_best_first():
  tree = search(rule="best_first", leaf="rollout", num_simulations=40).tree
  improved_BNA = np.asarray(BestFirst().improved(tree))
  for row in range(B):
    p = np.exp(tree.children_prior_logits[row, 0])
    v = np.full(3, tree.node_values[row, 0])
    for action in range(3):
      child = tree.children_index[row, 0, action]
      if child != UNVISITED:
        finished = tree.embeddings.finished[row, child]
        v[action] = (
          tree.embeddings.reward[row, child]
          if finished
          else tree.node_values[row, child]
        )
    v = np.maximum(v, 1e-6)
    np.testing.assert_allclose(
      improved_BNA[row, 0], p * v / (p * v).sum(), rtol=1e-4
    )


@pytest.mark.parametrize("settings", [ALL[0], ALL[3]], ids=name)
def test_path_targets_follow_the_champions_path(settings):
  tree = search(num_simulations=60, **settings).tree
  config = flat_search(**settings)
  improved_BNA = config.rule.improved(tree)
  best = jax.device_get(best_answers(tree, 1))
  targets = jax.device_get(targets_of(tree, improved_BNA, best.node_BM[:, 0]))
  for row in range(B):
    champion = best.node_BM[row, 0]
    node, path = 0, best.tokens_BMT[row, 0]
    states = int(tree.embeddings.depth[row, champion])
    states += not tree.embeddings.finished[row, champion]
    for t in range(T):
      visited = t < states and tree.node_visits[row, node] >= 3
      assert targets.mask_BT[row, t] == visited
      if t >= states:
        continue
      np.testing.assert_array_equal(
        targets.candidate_BTA[row, t], tree.embeddings.candidate_A[row, node]
      )
      np.testing.assert_allclose(
        targets.weight_BTA[row, t], improved_BNA[row, node], rtol=1e-6
      )
      assert targets.mass_BT[row, t] == pytest.approx(
        np.exp(tree.embeddings.log_prob_A[row, node]).sum(), rel=1e-5
      )
      if t + 1 < states:
        action = list(tree.embeddings.candidate_A[row, node]).index(path[t])
        node = tree.children_index[row, node, action]
  assert targets.mask_BT.sum() > B


@pytest.mark.parametrize("settings", ALL, ids=name)
def test_health_by_counting(settings):
  result = search(**settings)
  tree, nodes = result.tree, result.tree.embeddings
  got = jax.device_get(
    jax.jit(metrics.search_metrics)(tree, jnp.asarray(result.simulations))
  )
  depths, cut, answers, repeated, entropy = [], [], 0, 0, []
  assert np.any(nodes.cut_off & nodes.has_answer) == ends_at_once(settings)
  for row in range(B):
    over = nodes.finished[row] | nodes.cut_off[row]
    children = [n for parent, _, n in tried(tree, row) if not over[parent]]
    depths += [nodes.depth[row, n] for n in children]
    cut += [
      nodes.cut_off[row, n] and not nodes.has_answer[row, n] for n in children
    ]
    seen = [
      tuple(nodes.answer_tokens[row, n])
      for n in children
      if nodes.has_answer[row, n]
    ]
    answers += len(seen)
    repeated += len(seen) - len(set(seen))
    visits = tree.children_visits[row, 0]
    entropy.append(scipy.stats.entropy(visits / visits.sum()))
  assert got["search_depth"] == pytest.approx(np.mean(depths))
  assert got["search_cut_off"] == pytest.approx(np.mean(cut))
  wasted = 1 - len(depths) / (24 * B)  # One less nearly 1: float32 has 1e-7.
  assert got["search_wasted"] == pytest.approx(wasted, abs=1e-6)
  assert got["search_answers"] == pytest.approx((answers - repeated) / B)
  assert got["search_duplicates"] == pytest.approx(repeated / answers)
  assert got["search_visit_entropy"] == pytest.approx(np.mean(entropy))
  if settings["rule"] == "best_first" and not ends_at_once(settings):
    assert got["search_wasted"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    (dict(num_simulations=0), "search.num_simulations=0"),
    (dict(mix=1.5), r"search.mix=1.5 must lie in \[0, 1\]"),
    (dict(rule="puct"), "gives search.rule=puct nothing to compare"),
    (dict(rollout_temperature=0.0), "rollout_temperature=0.0 must be 1e-06 o"),
  ],
)
def test_impossible_searches_are_refused(settings, words):
  with pytest.raises(ValueError, match=words):
    flat_search(**settings)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize(
  ("rule", "field"),
  [
    (BestFirst, "beta"),
    (BestFirst, "epsilon"),
    (PUCT, "c"),
    (PUCT, "revisit_penalty"),
    (Gumbel, "scale"),
    (Gumbel, "value_scale"),
    (Gumbel, "maxvisit_init"),
  ],
)
def test_a_rule_whose_keys_order_no_moves_is_refused(rule, field, value):
  """All would be paid for, and no tree would grow."""
  with pytest.raises(ValueError, match=f"search.rule.{field}={value} must"):
    rule(**{field: value})
