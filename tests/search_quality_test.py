"""What is counted, and the figures made of it, against recounts by hand."""

import functools
import itertools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.benchmarks import compiled_searches, searches, solve_rates
from experiments.benchmarks.compiled_searches import Policy, Shipped
from experiments.benchmarks.prefixes import Prefixes
from experiments.benchmarks.solvable import oracle
from tests import lazy_test, search_test, steps_test
from tests.search_test import EOS, PAD, PROMPTS, TASK, T, V
from tsd_jax.models import symbols
from tsd_jax.search.config import SearchConfig
from tsd_jax.search.rules import PUCT
from tsd_jax.tasks.countdown import Countdown, CountdownConfig
from tsd_jax.tasks.maze import Maze, MazeConfig
from tsd_jax.tasks.task import as_prompts

ASKED = jax.device_get(as_prompts(TASK, PROMPTS))


@functools.cache
def policy():
  from flax import nnx

  return Policy(*nnx.split(search_test.model(), nnx.Param), TASK, ASKED)


def make_prefixes():
  p = policy()
  return Prefixes(p.graphdef, p.params, ASKED, T)


def log_prob(prompt, path):
  tokens = (*map(int, PROMPTS[prompt]), *path)
  return search_test.next_log_prob(tokens)[0]


def test_prefixes_are_what_a_plain_forward_says():
  prefixes = make_prefixes()
  rng = np.random.default_rng(0)
  asked = [
    (int(rng.integers(len(PROMPTS))), tuple(rng.integers(0, V, n).tolist()))
    for n in (3, 0, 1, 2, 3, 2, 3, 1)
  ]
  for _ in range(2):
    for key, row_V in zip(asked, prefixes.log_probs(asked), strict=True):
      np.testing.assert_allclose(row_V, log_prob(*key), atol=2e-5)
    size = len(prefixes)
    prefixes.log_probs(asked)
    assert len(prefixes) == size  # Nothing was run again.
    prefixes.forget(0)
    assert len(prefixes) == PROMPTS.size < size
    asked = asked[::-1]


def test_a_store_that_grows_keeps_what_it_holds():
  prefixes = make_prefixes()
  everything = [(n, (t,)) for n in range(len(PROMPTS)) for t in range(V)]
  everything += [(0, path) for path in itertools.product(range(V), repeat=3)]
  rows = [row_V.copy() for row_V in prefixes.log_probs(everything)]
  assert len(prefixes) > 1000
  for key in ((7, (3,)), (0, (1, 2, 3)), (0, (11, 11, 11))):
    row_V = rows[everything.index(key)]
    np.testing.assert_allclose(row_V, log_prob(*key), atol=2e-5)


def test_host_and_compiled_best_first_visit_the_same_nodes_in_order():
  """Two programs that share nothing but the model."""
  nodes = search_test.search(num_candidates=V, num_simulations=40)
  nodes = nodes.tree.embeddings
  prefixes, shape = make_prefixes(), searches.Shape(T, EOS)
  for row in range(len(PROMPTS)):
    wanted = [
      tuple(nodes.path_tokens[row, n, : nodes.depth[row, n]].tolist())
      for n in range(1, nodes.depth.shape[1])
    ]
    got, search = [], searches.discrepancy_best_first(shape)
    ask = next(search)
    while len(got) <= len(wanted):
      got += ask.paths  # Answers are judged with their node there.
      ask = search.send(prefixes.log_probs([(row, p) for p in ask.paths]))
    assert got[0] == ()
    assert got[1 : len(wanted) + 1] == wanted


CONFIGS = [
  SearchConfig(num_simulations=24, num_candidates=3),
  SearchConfig(PUCT(), leaf="rollout", num_simulations=12),
  SearchConfig(Shipped(), leaf="rollout", num_simulations=12),
  SearchConfig(
    Shipped(policy="gumbel_muzero"), leaf="rollout", num_simulations=12
  ),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.rule}")
def test_a_tree_pays_for_simulations_and_rollouts_until_solved(config):
  result = jax.device_get(search_test._search(PROMPTS, config))
  made_B, needed_B = compiled_searches.forwards_to_solve(
    jax.tree.map(jax.numpy.asarray, result.tree), TASK, config
  )
  nodes = result.tree.embeddings
  assert np.isfinite(made_B).any()
  for row in range(len(PROMPTS)):
    made = needed = -1  # The root is no simulation.
    for n in range(nodes.depth.shape[1]):
      answer = nodes.answer_tokens[row, n].tolist()
      over = nodes.finished[row, n] or nodes.depth[row, n] == T
      over |= result.tree.node_visits[row, n] == 0
      made += 1
      if n and not over and config.leaf == "rollout":
        tokens = answer.index(EOS) + 1 if EOS in answer else T
        made += tokens - 1 - nodes.depth[row, n]
        needed += tokens - 1 - nodes.depth[row, n]
      needed += not over
      if nodes.correct[row, n]:
        break
    else:
      made = needed = np.inf
    assert (made_B[row], needed_B[row]) == (made, needed)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_tree_of_steps_pays_for_their_tokens(lazy):
  kind = lazy_test if lazy else steps_test
  tree = kind.run(**({} if lazy else {"settings": steps_test.BEST_FIRST})).tree
  made_B, needed_B = compiled_searches.forwards_to_solve(
    jax.tree.map(jax.numpy.asarray, tree), kind.TASK, kind.configure()
  )
  nodes, solved = tree.embeddings, 0
  for row in range(len(PROMPTS)):
    if not nodes.correct[row].any():
      assert np.isinf(made_B[row])
      continue
    solved += 1
    last = nodes.correct[row].argmax()
    edges = list(search_test.tried(tree, row))
    made = sum(nodes.length_A[row, p, a] for p, a, n in edges if n <= last)
    needed = made - sum(
      nodes.finished[row, n] or nodes.depth[row, n] == kind.T
      for *_, n in edges
      if n <= last
    )
    if not lazy:  # All draws of all nodes, without their last tokens.
      drawn = nodes.length_A[row, : last + 1]
      more = int(np.maximum(drawn - 1, 0).sum())
      made, needed = made + more, needed + more
    assert (made_B[row], needed_B[row]) == (made, needed)
  assert solved > 4


def test_shipped_searches_are_mctx_as_it_is():
  ours, shipped = (
    SearchConfig(rule, leaf="rollout", num_simulations=12)
    for rule in (PUCT(stop_when_solved=False), Shipped())
  )
  assert ours != shipped
  trees = [search_test._search(PROMPTS, c).tree for c in (ours, shipped)]
  assert np.any(trees[0].children_index != trees[1].children_index)


def test_samples_are_counted_with_and_without_a_prefix_cache():
  tokens_GT = np.array(
    [[1, 2, EOS, PAD], [1, 2, EOS, PAD], [1, 3, 4, 5], [1, 3, EOS, PAD]]
  )
  seen = set()
  count = functools.partial(
    compiled_searches.count_forwards, end_ids=(EOS,), seen=seen
  )
  # 1, 12 | again | 1, 13, 134: the last token is never run | 1, 13.
  assert count(tokens_GT, [False] * 4) == (9, 4, False)
  assert count(tokens_GT, [False, False, True, False]) == (7, 0, True)
  seen.clear()
  assert count(tokens_GT, [False, True, True, False]) == (4, 2, True)


def test_sampling_stops_when_solved_and_a_cache_never_costs_more():
  p = policy()
  spent = compiled_searches.sample(p, jax.random.key(0), 1.0, budget=30)
  assert spent.made_Q.shape == (len(PROMPTS),)
  assert np.isfinite(spent.made_Q).any()
  assert np.all(spent.other_Q <= spent.made_Q)
  cold = compiled_searches.sample(p, jax.random.key(0), 1e-3, budget=30)
  solved = np.isfinite(cold.made_Q)
  # A cold sampler repeats itself: solved at once, or never.
  assert np.all(cold.made_Q[solved] < T)


def test_the_oracle_knows_which_beginnings_can_be_completed():
  config = CountdownConfig(numbers=3)
  task = Countdown(config)
  operators = range(symbols.PLUS, symbols.DIVIDE + 1)

  def results(a, b):
    return {a + b, a - b, a * b, a // b if b and a % b == 0 else 0}

  for given, target in (((3, 4, 5), 17), ((6, 6, 2), 3), ((1, 13, 13), 100)):
    prompt_P = np.array([*given, symbols.SEPARATOR, target], np.int32)
    answers = set()
    for i, j in itertools.permutations(range(3), 2):
      (k,) = {0, 1, 2} - {i, j}
      a, b, rest = given[i], given[j], given[k]
      for op, r in itertools.product(operators, results(a, b)):
        for x, y in ((r, rest), (rest, r)):
          for op2, last in itertools.product(operators, results(x, y)):
            answers.add((a, op, b, r, x, op2, y, last, symbols.EOS))
    answers = [x for x in answers if 0 <= min(x) and max(x) < 208]
    tokens_XT = np.array(answers, np.int32)
    prompt_XP = np.repeat(prompt_P[None], len(answers), axis=0)
    right_X = np.asarray(task.score(prompt_XP, tokens_XT).correct_X)
    good = {
      answer[:n]
      for answer, right in zip(answers, right_X, strict=True)
      for n in range(9)
      if right
    }
    value = oracle(task, config)(prompt_P)
    begun = {answer[:n] for answer in answers for n in range(9)}
    assert {path for path in begun if value(path) == 1.0} == good
    assert 0 < len(good) < len(begun) or not good
    assert value((199,)) == 0.0 or 199 in given
    assert all(value((*path, 200)) == 0.0 for path in good if len(path) == 8)


def test_the_oracle_knows_which_walks_can_reach_the_goal():
  config = MazeConfig(size=3, walls=2, min_moves=2, max_moves=4)
  task, most = Maze(config), config.max_moves
  cells = [10 * row + column for row in (1, 2, 3) for column in (1, 2, 3)]
  # Every begun walk, legal or not, and how each is judged when it ends.
  begun = [
    p for n in range(most + 1) for p in itertools.product(cells, repeat=n)
  ]
  tokens_XT = np.full((len(begun), most + 1), symbols.PAD, np.int32)
  for path, tokens_T in zip(begun, tokens_XT, strict=True):
    tokens_T[: len(path) + 1] = [*path, symbols.EOS]
  for prompt in ((22, 31, 15, 11, 12, 33), (12, 32, 15, 11, 21, 13)):
    prompt_P = np.array(prompt, np.int32)
    prompt_P[config.walls] = symbols.SEPARATOR
    prompt_XP = np.repeat(prompt_P[None], len(begun), axis=0)
    right_X = np.asarray(task.score(prompt_XP, tokens_XT).correct_X)
    good = {
      path[:n]
      for path, right in zip(begun, right_X, strict=True)
      for n in range(len(path) + 1)
      if right
    }
    value = oracle(task, config)(prompt_P)
    assert {path for path in begun if value(path) == 1.0} == good
    assert value((11, 300)) == 0.0
  assert len(good) < len(begun)


def test_tokens_at_a_rate_are_where_the_curve_gets_there():
  rng = np.random.default_rng(0)
  tokens_XXQ = rng.integers(5, 400, (3, 2, 40)).astype(float)
  tokens_XXQ[:, :, :6] = np.inf
  everyone = np.arange(40)[None]
  for rate in (0.5, 0.8):
    (at,) = solve_rates.tokens_at(tokens_XXQ, rate, everyone)
    before, there = solve_rates.solve_rate(tokens_XXQ, [at - 1, at], everyone)[
      0
    ]
    assert before < rate <= there
  assert np.isinf(solve_rates.tokens_at(tokens_XXQ, 0.9, everyone))
  assert solve_rates.solve_rate(tokens_XXQ, [1000], everyone) == 0.85


def test_ratios_are_of_equal_prompts_and_say_when_the_budget_ends_them():
  rng = np.random.default_rng(1)
  theirs = rng.integers(50, 400, (1, 2, 60)).astype(float)
  rows = solve_rates.summarise(
    {
      "best_of_n": theirs,
      "half": theirs / 2,
      "never": np.full_like(theirs, np.inf),
    },
    [32, 64, 512],
  )
  half = rows["half"]["tokens_ratio_vs_best_of_n"]
  for place in ("at_50", "at_80", "at_highest_common"):
    assert half[place]["value"] == 0.5
    assert half[place]["ci95"] == [0.5, 0.5]
  never = rows["never"]["tokens_ratio_vs_best_of_n"]
  assert never["at_50"]["bound"] == "at least"
  assert never["at_50"]["value"] > 1
  assert rows["never"]["tokens_at_50"]["value"] is None
  low, high = rows["best_of_n"]["tokens_at_50"]["ci95"]
  assert low < rows["best_of_n"]["tokens_at_50"]["value"] < high
  text = solve_rates.table(rows, [32, 64, 512])
  assert "0.50 0.50" in text and "≥" in text
  figure = solve_rates.plot(
    [dict(task="t", policy="p", method=k, **v) for k, v in rows.items()]
  )
  assert figure.startswith("<svg") and "never" in figure


def test_a_bootstrap_covers_what_it_should():
  """The interval of a median of 80 prompts, over 100 fresh sets of them."""
  rng, covered = np.random.default_rng(2), 0
  picks_XQ = solve_rates.resamples(80, draws=200)
  for _ in range(100):
    tokens = rng.exponential(100, (1, 1, 80))
    at_X = solve_rates.tokens_at(tokens, 0.5, picks_XQ)
    low, high = solve_rates.estimate(at_X)["ci95"]
    covered += low <= 100 * np.log(2) <= high
  assert 87 <= covered <= 100


def command(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "experiments.benchmarks.search_quality", *arguments],
    capture_output=True,
    text=True,
  )


def test_unknown_searches_are_refused(tmp_path):
  done = command(f"--workdir={tmp_path}", "--only=beam,magic")
  assert done.returncode == 2
  assert "--only=magic is unknown: use best_of_n" in done.stderr


def small(folder, *arguments):
  """The command on four prompts."""
  return command(
    f"--workdir={folder}",
    f"--output={folder / 'quality.json'}",
    "--tasks=countdown3",
    "--policies=weak",
    "--prompts=4",
    "--budget=48",
    "--repeats=1",
    *arguments,
  )


def measure(folder, *arguments):
  """What a small measurement prints, and its rows."""
  done = small(folder, *arguments)
  assert done.returncode == 0, done.stderr
  return done, json.loads((folder / "quality.json").read_text())["rows"]


@pytest.mark.slow
def test_the_command_measures_once_and_goes_on(tmp_path):
  only = "--only=best_of_n,limited_discrepancy_ratio,best_first_value"
  done, _ = measure(tmp_path, only)
  assert "best_first_value left out" in done.stdout
  (kept,) = (tmp_path / "measured").rglob("best_of_n.json")
  stamp = kept.stat().st_mtime_ns
  _, rows = measure(tmp_path, only + ",best_first_oracle")
  assert kept.stat().st_mtime_ns == stamp
  rows = {r["method"]: r for r in rows}
  assert list(rows) == [
    "best_of_n",
    "limited_discrepancy_ratio",
    "best_first_oracle",
  ]
  assert rows["best_first_oracle"]["solve_rate"]["value"][-1] > 0.5
  assert (tmp_path / "quality.svg").read_text().startswith("<svg")


@pytest.mark.slow
def test_a_value_is_taught_once_and_its_tokens_are_told(tmp_path):
  only = "--only=best_first_value"
  _, (row,) = measure(tmp_path, only, "--value_steps=2")
  assert row["value_tokens"] == 2 * 256 * 13 * 4
  _, rows = measure(tmp_path, only, "--value_steps=2")
  assert rows == [row]  # It is there.
  # The file would say that it was made by this command.
  done = small(tmp_path, only, "--value_steps=3")
  assert done.returncode == 2
  assert "was taught in 2 steps, not --value_steps=3" in done.stderr


@pytest.mark.slow
def test_a_student_is_taught_again(tmp_path):
  only = "--only=best_first_value"
  _, (row,) = measure(
    tmp_path, only, "--value_steps=2", "--policies=mid_taught"
  )
  assert row["value_tokens"] == 2 * (2 * 256 * 13 * 4)
  assert row["policy"] == "mid_taught" and row["training_tokens"] > 100_000
  _, (before,) = measure(tmp_path, only, "--value_steps=2", "--policies=mid")
  assert before["value_tokens"] == 2 * 256 * 13 * 4
  assert before["training_tokens"] == row["training_tokens"]
  params = [
    json.loads(f.read_text())["of"]["params"]
    for f in tmp_path.rglob("best_first_value.json")
  ]
  assert len(set(params)) == 2


def test_teaching_again_needs_steps(tmp_path):
  done = command(f"--workdir={tmp_path}", "--policies=strong_taught")
  assert done.returncode == 2
  assert "--policies=strong_taught is taught a value" in done.stderr
