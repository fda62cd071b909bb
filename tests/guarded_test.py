"""A judge that a search asks of every path: what is refused leads nowhere."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.constrained_test import (
  PREFIXES,
  SMALL_PROMPTS,
  Small,
  best_allowed,
  best_answers,
  kinds_of_search,
  small_model,
  small_violates,
)
from tests.flat_search import flat_search
from tests.iteration_test import Copy
from tsd_jax.base.errors import UserError
from tsd_jax.models.phrases import Phrases
from tsd_jax.rewards.abstention import Abstention
from tsd_jax.rewards.algebra import Sum, TaskReward
from tsd_jax.rewards.audited import Audited
from tsd_jax.rewards.classifier import Classifier
from tsd_jax.rewards.constrained import Constrained
from tsd_jax.rewards.guarded import Guarded
from tsd_jax.rewards.noise import Noisy
from tsd_jax.rewards.reward import Reward, Score, Scorer
from tsd_jax.run import evaluation
from tsd_jax.search import champions as champions_lib
from tsd_jax.search import explorer
from tsd_jax.search.search import search
from tsd_jax.tasks.task import as_prompts, rewarded

EOS, PAD = 3, 4  # Of `Small`.


@dataclasses.dataclass(frozen=True)
class Pairs(Reward):
  """1 where no 0 1 or 2 2 is seen; what is no text does not part them."""

  knows_correct = False

  def __call__(self, params, prompts, tokens_BGT, mask_BGT):
    bad_BG = jnp.zeros(tokens_BGT.shape[:2], bool)
    last_BG = jnp.full(tokens_BGT.shape[:2], -1)
    for t in range(tokens_BGT.shape[-1]):
      now_BG = tokens_BGT[..., t]
      text_BG = mask_BGT[..., t] & (now_BG < EOS)
      pair_BG = ((last_BG == 0) & (now_BG == 1)) | (
        (last_BG == 2) & (now_BG == 2)
      )
      bad_BG |= text_BG & pair_BG
      last_BG = jnp.where(text_BG, now_BG, last_BG)
    return Score(1.0 - bad_BG)


@dataclasses.dataclass(frozen=True)
class NoEndAfterZero(Reward):
  """0 for an answer whose last token is 0; anything may be begun."""

  knows_correct = False

  def __call__(self, params, prompts, tokens_BGT, mask_BGT):
    ends = (tokens_BGT[..., 1:] == EOS) & (tokens_BGT[..., :-1] == 0)
    bad_BG = jnp.any(ends & mask_BGT[..., 1:], axis=-1)
    return Score(1.0 - bad_BG)


def finds_0_1_or_2_2(prompt, response, example):
  """How far a text is allowed, as a classifier's probability."""
  assert len(prompt.split()) == 2 and example is None
  said = [word for word in response.split() if word in "012"]
  pairs = set(zip(said, said[1:], strict=False))
  return 0.1 if pairs & {("0", "1"), ("2", "2")} else 0.9


def bound(reward):
  task = Small()
  return rewarded(task, reward.bind(task.reward, task.tokenizer))


JUDGES = {"jax": Pairs(), "host": Classifier(finds_0_1_or_2_2)}


@functools.partial(jax.jit, static_argnums=(0, 3))
def grown(task, prompt_BP, reward_params, config):
  return search(
    small_model(), task, as_prompts(task, prompt_BP), jax.random.key(0), config,
    scorer=Scorer(task.reward, (EOS,), reward_params),
  )  # fmt: skip


def searched(task, rows=SMALL_PROMPTS, **settings):
  config = flat_search(
    **dict(num_candidates=5, stop_when_solved=False) | settings
  )
  return jax.device_get(grown(task, rows, task.reward.load(), config))


def path(nodes, row, n):
  return tuple(nodes.path_tokens[row, n][: nodes.depth[row, n]].tolist())


@pytest.mark.parametrize("judge", JUDGES)
def test_a_whole_tree_ends_where_it_is_refused(judge):
  """Every allowed prefix is a node, and so is every first refused one."""
  task = bound(Guarded(TaskReward(), JUDGES[judge]))
  refused = [
    (*prefix, token)
    for prefix in PREFIXES
    if len(prefix) < 3
    for token in (0, 1, 2, PAD)
    if small_violates((*prefix, token))
  ]
  assert len(refused) == 11
  result = searched(
    task, rule="best_first", num_simulations=90, slot_reuse=True, trees=1
  )
  tree, nodes = result.tree, result.tree.embeddings
  for row, prompt in enumerate(SMALL_PROMPTS):
    made = np.flatnonzero(tree.node_visits[row])
    paths = {path(nodes, row, n): n for n in made}
    assert sorted(paths) == sorted(PREFIXES + refused)
    assert len(paths) == len(made)
    closed_NA = np.asarray(champions_lib.closed_moves(tree))[row]
    for said, n in paths.items():
      assert nodes.refused[row, n] == small_violates(said)
      assert nodes.has_answer[row, n] == (not small_violates(said))
      if small_violates(said):
        assert nodes.cut_off[row, n] and nodes.reward[row, n] == 0.0
      barred = nodes.candidate_A[row, n][closed_NA[n]].tolist()
      allowed = len(said) < 3 and not small_violates(said)
      assert set(barred) == {
        t for t in range(3) if allowed and small_violates((*said, t))
      }
    found = best_answers(result.tree, 1)
    assert found.reward_BM[row, 0] == pytest.approx(best_allowed(prompt))
  made = len(SMALL_PROMPTS) * (len(PREFIXES) + len(refused) - 1)
  assert int(result.forwards) == made


@kinds_of_search
def test_no_search_goes_below_what_is_refused(settings):
  task = bound(Guarded(TaskReward(), Pairs(), worth=-3.0))
  tree = searched(task, num_simulations=40, **settings).tree
  nodes, refused, answers = tree.embeddings, 0, 0
  for row, n in np.argwhere(tree.node_visits > 0):
    if nodes.has_answer[row, n]:
      answers += 1
      answer = nodes.answer_tokens[row, n].tolist()
      assert not small_violates(answer[: answer.index(EOS)])
      # 0 is the least there is, and what passes has .75 of the range or more.
      assert nodes.reward[row, n] >= 0.75
    assert nodes.refused[row, n] == small_violates(path(nodes, row, n))
    if nodes.refused[row, n]:
      refused += 1
      assert nodes.cut_off[row, n] and nodes.reward[row, n] == 0.0
      above = tree.parents[row, n]
      # Its siblings go on; mctx may visit it again, which makes a copy.
      same = nodes.path_tokens[row, above] == nodes.path_tokens[row, n]
      assert same.all() or not nodes.refused[row, above]
  assert answers > 4 and refused > 1


def test_an_answer_that_is_refused_is_none_and_its_path_goes_on():
  task = bound(Guarded(TaskReward(), NoEndAfterZero()))
  tree = searched(
    task, rule="best_first", num_simulations=90, slot_reuse=True, trees=1
  ).tree
  nodes = tree.embeddings
  assert not nodes.refused.any()
  for row in range(len(SMALL_PROMPTS)):
    made = np.flatnonzero(tree.node_visits[row])
    assert len(made) == 1 + 4 + 16 + 64
    for n in made:
      ends_with_zero = path(nodes, row, n)[-1:] == (0,)
      assert nodes.has_answer[row, n] != ends_with_zero
      closed_A = champions_lib.closed_moves(tree)[row, n]
      closed = nodes.candidate_A[row, n][closed_A].tolist()
      assert closed == [EOS] * ends_with_zero


def score(reward, tokens):
  task = bound(reward)
  prompts = as_prompts(task, np.array([[0, 1]], np.int32))
  scorer = Scorer(task.reward, (EOS,), task.reward.load())
  return jax.tree.map(
    lambda a: np.asarray(a)[0],
    jax.jit(scorer.__call__)(prompts, jnp.array([tokens], jnp.int32)),
  )


ALL = [
  (*said, EOS, *[PAD] * (3 - len(said)))
  for n in range(4)
  for said in itertools.product(range(3), repeat=n)
]


@pytest.mark.parametrize("judge", JUDGES)
def test_what_responses_are_worth(judge):
  guarded = score(Guarded(TaskReward(), JUDGES[judge], worth=-1.0), ALL)
  own = score(TaskReward(), ALL)
  refused = np.array([small_violates(said) for said in ALL])
  assert 0 < refused.sum() < len(ALL)
  np.testing.assert_array_equal(guarded.parts["refused"], refused)
  np.testing.assert_allclose(
    guarded.reward_X, np.where(refused, -1.0, own.reward_X)
  )
  np.testing.assert_array_equal(guarded.correct_X, own.correct_X & ~refused)


@pytest.mark.parametrize(
  "around",
  [
    lambda r: Noisy(r, accept=0.0),
    lambda r: Audited(r, TaskReward()),
  ],
  ids=["Noisy", "Audited"],
)
def test_what_stands_around_a_guard_asks_it_too(around):
  plain, outer = (
    searched(bound(make(Guarded(TaskReward(), Pairs()))), rule="best_first",
             num_simulations=30)
    for make in (lambda r: r, around)
  )  # fmt: skip
  for a, b in zip(*map(jax.tree.leaves, (plain, outer)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  assert plain.tree.embeddings.refused.any()


def test_a_guard_may_hold_a_rule_of_phrases():
  phrases = Phrases(("2 2",), whole_words=True)
  both = bound(Guarded(Constrained(TaskReward(), phrases), Pairs()))
  tree = searched(both, rule="best_first", num_simulations=60).tree
  nodes, seen = tree.embeddings, {False: 0, True: 0}
  for row, n in np.argwhere(tree.node_visits > 0):
    said = path(nodes, row, n)
    assert (2, 2) not in zip(said, said[1:], strict=False)  # Closed before.
    assert nodes.refused[row, n] == small_violates(said)
    seen[bool(nodes.refused[row, n])] += 1
  assert seen[True] and seen[False]
  closed = np.asarray(champions_lib.closed_moves(tree))
  assert (closed & ~nodes.forbidden_A).any() and nodes.forbidden_A.any()


def test_a_run_says_how_often_it_is_refused():
  """Of held-out answers; against plain Python."""
  task = bound(Guarded(TaskReward(), Pairs()))
  graphdef, params = nnx.split(small_model())
  prompts = as_prompts(task, SMALL_PROMPTS)
  found = evaluation.evaluate(
    graphdef, params, task, prompts, "mean@8,search@12", seed=0,
    reward_params=task.reward.load(), search=flat_search(num_candidates=5),
  )  # fmt: skip
  tokens_QGT, *_ = evaluation.draw(
    graphdef, params, task, prompts, jax.random.key(0), jnp.float32(1),
    task.reward.load(), samples=8,
  )  # fmt: skip
  expected = np.mean([
    small_violates(itertools.takewhile(lambda t: t != EOS, row))
    for row in np.asarray(tokens_QGT).reshape(-1, 4).tolist()
  ])  # fmt: skip
  assert found["mean@8"]["refused"] == pytest.approx(expected)
  assert 0 < expected < 1 and "refused" in evaluation.table(found)


def test_a_page_marks_what_is_refused():
  task = bound(Guarded(TaskReward(), Pairs()))
  tree = searched(task, rule="best_first", num_simulations=30).tree
  data = explorer.tree_data(
    tree, 0, task.tokenizer, name="x", prompt="0 1", facts={}
  )
  flags = {n["id"]: n["flags"] for n in data["nodes"]}
  assert {n for n, said in flags.items() if "pruned" in said} == {
    n for n in flags if tree.embeddings.refused[0, n]
  }


def test_the_bar_of_a_champion_is_the_greedy_answer_even_if_refused():
  """Against greedy decoding: what is refused is worth the least."""
  task = bound(Guarded(TaskReward(), Pairs()))
  rows = np.array(list(itertools.product(range(3), repeat=2)), np.int32)
  tree = searched(task, rows, rule="best_first", num_simulations=20).tree
  _, reward_Q1, *_ = evaluation.draw(
    *nnx.split(small_model()), task, as_prompts(task, rows), jax.random.key(0),
    jnp.float32(1), task.reward.load(), samples=0,
  )  # fmt: skip
  bar_Q = champions_lib.greedy_reward(tree)
  refused = np.asarray(reward_Q1)[:, 0] == 0.0
  assert refused.any()
  np.testing.assert_allclose(bar_Q[refused], 0.0)


ASKED = []


@dataclasses.dataclass(frozen=True)
class Listening(Classifier):
  """Keeps what it is asked, and says that all is well."""

  def load(self):
    return ()

  def _workers(self):
    class Workers:
      def grade(self, requests):
        ASKED.extend(response for _, response, _ in requests)
        return np.ones(len(requests), np.float32)

    return Workers()


def test_a_judge_reads_what_is_said_and_no_padding():
  ASKED.clear()
  task, expected = (
    bound(Guarded(TaskReward(), Listening(finds_0_1_or_2_2))),
    set(),
  )
  # Of two candidates many nodes have no end to offer.
  for candidates in (2, 5):
    tree = searched(
      task, rule="best_first", num_simulations=12, num_candidates=candidates
    ).tree
    nodes = tree.embeddings
    for row, n in np.argwhere(tree.node_visits > 0):
      expected.add(path(nodes, row, n))
      if nodes.has_answer[row, n]:
        answer = nodes.answer_tokens[row, n].tolist()
        expected.add(tuple(answer[: answer.index(EOS)]))
  jax.effects_barrier()
  said = {tuple(map(int, text.split())) for text in ASKED}
  # Nothing is asked of the empty path; an empty answer may be one.
  assert said | {()} == expected | {()} and len(said) > 20


@dataclasses.dataclass(frozen=True)
class Broken(Reward):
  """NaN for what holds a 0."""

  knows_correct = False

  def __call__(self, params, prompts, tokens_BGT, mask_BGT):
    bad_BG = jnp.any((tokens_BGT == 0) & mask_BGT, axis=-1)
    return Score(jnp.where(bad_BG, jnp.nan, 1.0))


def test_a_judge_that_knows_no_number_lets_nothing_pass():
  found = score(Guarded(TaskReward(), Broken()), ALL)
  np.testing.assert_array_equal(found.parts["refused"], [0 in x for x in ALL])
  assert all(np.isfinite(x).all() for x in found.parts.values())


def raises(prompt, response, example):
  raise RuntimeError("broken")


def test_a_judge_that_fails_lets_nothing_pass():
  found = score(Guarded(TaskReward(), Classifier(raises)), ALL[:3])
  np.testing.assert_array_equal(found.parts["refused"], 1.0)


def test_guards_that_make_no_sense_are_refused():
  with pytest.raises(ValueError, match="threshold=0.0 must be above 0.0, the"):
    Guarded(TaskReward(), Pairs(), threshold=0.0)
  with pytest.raises(ValueError, match="threshold=1.5 must be"):
    Guarded(TaskReward(), Pairs(), threshold=1.5)
  with pytest.raises(ValueError, match="judge=3 is no reward"):
    Guarded(TaskReward(), 3)
  with pytest.raises(ValueError, match="whose judge nobody would hear"):
    Guarded(Guarded(TaskReward(), Pairs()), Pairs())
  verified = bound(Guarded(Pairs(), TaskReward(), threshold=0.5)).reward
  assert verified.judge == Small().reward
  with pytest.raises(ValueError, match="threshold=1.5 must be"):
    bound(Guarded(Pairs(), TaskReward(), threshold=1.5))
  own = Copy().reward
  with pytest.raises(ValueError, match="worth=0.5 must be finite and at most"):
    Guarded(own, Pairs(), worth=0.5)
  for make in (
    lambda r: Sum((r, TaskReward())),
    lambda r: Constrained(r, Phrases(("a",))),
    lambda r: Abstention(r, 5),
  ):
    with pytest.raises(ValueError, match="guards nobody would hear: put it ou"):
      make(Guarded(own, Pairs()))
  with pytest.raises(UserError, match=r"call reward\.bind"):
    Classifier(finds_0_1_or_2_2).load()
  with pytest.raises(ValueError, match="Pairs guards nothing"):
    Scorer(Pairs(), (EOS,)).passes(None, jnp.zeros((1, 1, 4), jnp.int32))
