"""Searches of the literature over a policy's tree of answers, one at a time.

A search is a generator over one prompt. It yields an `Ask`: the paths whose
next-token log-probabilities it needs and the finished answers it has found
meanwhile; it is sent one row of log-probabilities for each path. It asks for no
path twice: every one of them costs a forward of one token, except the empty
path, which is the prompt. The end token is never run, nor is the last token of
an answer that reaches its longest length.

`run` advances the searches of all prompts together, so that what they ask for
is one batch.
"""

import dataclasses
import heapq
import itertools
import math
from collections.abc import Callable, Generator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from experiments.benchmarks.prefixes import Path


class Ask(NamedTuple):
  """What a search needs next, and what it found before it needs it."""

  paths: Sequence[Path]
  answers: Sequence[Path] = ()  # With their end token.


Search = Generator[Ask, list[np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class Shape:
  """What the tree of answers looks like."""

  length: int  # T, the longest answer, its end token included.
  eos_id: int

  def finished(self, path: Path) -> bool:
    """Whether a path is an answer."""
    return bool(path) and path[-1] == self.eos_id

  def over(self, path: Path) -> bool:
    """Whether a path has no continuation."""
    return self.finished(path) or len(path) >= self.length


def run(
  searches: Sequence[tuple[int, Search]],
  log_probs: Callable[[list[tuple[int, Path]]], list[np.ndarray]],
  correct: Callable[[list[tuple[int, Path]]], Sequence[bool]],
  budget: float,
) -> np.ndarray:
  """Runs searches until they find a correct answer.

  Args:
    searches: each with the prompt that it searches.
    log_probs: next-token log-probabilities of (prompt, path) pairs.
    correct: whether (prompt, answer) pairs solve the prompt.
    budget: forwards that a search may spend.

  Returns:
    Forwards spent by each search before its first correct answer; inf where it
    found none within the budget.
  """
  solved = np.full(len(searches), np.inf)
  spent = np.zeros(len(searches), int)
  asks = {i: next(search) for i, (_, search) in enumerate(searches)}
  while asks:
    found = [(i, a) for i, ask in asks.items() for a in ask.answers]
    if found:
      right = correct([(searches[i][0], answer) for i, answer in found])
      for (i, _), is_right in zip(found, right, strict=True):
        if is_right:
          solved[i] = spent[i]
          asks.pop(i, None)
    for i in list(asks):
      spent[i] += sum(map(bool, asks[i].paths))
      if spent[i] > budget:
        del asks[i]
    wanted = [(searches[i][0], p) for i, ask in asks.items() for p in ask.paths]
    rows = iter(log_probs(wanted))
    for i, ask in list(asks.items()):
      answer = list(itertools.islice(rows, len(ask.paths)))
      try:
        asks[i] = searches[i][1].send(answer)
      except StopIteration:
        del asks[i]
  return solved


class Node(NamedTuple):
  """A path in best-first order: what its key may depend on."""

  path: Path
  log_prob: float  # Of the path.
  gap: float  # Sum over the path of log(p / p_max).
  best: float  # log p_max of the next token.


def best_first(key: Callable[[Node], float], shape: Shape) -> Search:
  """Expands the untried move of the largest key(node) + log p(move | node).

  Ties go to the node that was expanded first, then to the likelier move.
  """
  nodes, frontier, answers = [], [], []
  path, log_prob, gap = (), 0.0, 0.0

  def offer(index, rank):
    base, _, order_V, row_V = nodes[index]
    if rank < len(order_V):
      value = base + float(row_V[order_V[rank]])
      heapq.heappush(frontier, (-value, index, rank))

  while True:
    (row_V,) = yield Ask([path], answers)
    answers = []
    node = Node(path, log_prob, gap, float(row_V.max()))
    order_V = np.argsort(-row_V, kind="stable")
    nodes.append((key(node), node, order_V, row_V))
    offer(len(nodes) - 1, 0)
    while True:
      if not frontier:
        yield Ask((), answers)
        return
      _, index, rank = heapq.heappop(frontier)
      offer(index, rank + 1)
      _, parent, order_V, row_V = nodes[index]
      token = int(order_V[rank])
      path = (*parent.path, token)
      if not shape.over(path):
        break
      if shape.finished(path):
        answers.append(path)
    log_prob = parent.log_prob + float(row_V[token])
    gap = parent.gap + float(row_V[token]) - parent.best


def levin(shape: Shape) -> Search:
  """Levin tree search: the least depth / probability (arXiv:1811.10928)."""
  return best_first(lambda n: n.log_prob - math.log(len(n.path) + 1), shape)


def discrepancy_best_first(
  shape: Shape,
  value: Callable[[Path], float] | None = None,
  *,
  beta: float = 0.5,
  epsilon: float = 0.02,
) -> Search:
  """Best-first as in `tsd_jax.search`, with any value, without merging."""

  def key(node):
    base = node.gap - node.best + epsilon * len(node.path)
    if value is None:
      return base
    return base + beta * math.log(max(value(node.path), 1e-30))

  return best_first(key, shape)


def limited_discrepancy(
  shape: Shape, *, by: str = "rank", step: float = 1.0
) -> Search:
  """Limited discrepancy search (Harvey & Ginsberg, 1995; Korf, 1996).

  Iteration k walks the tree depth first, likeliest moves first, and reports the
  answers whose discrepancies lie in ((k-1) * step, k * step].

  Args:
    shape: of the tree.
    by: what a move costs: its "rank" (0 is the likeliest), or its "ratio",
      log(p_max / p).
    step: what the limit grows by.
  """
  if by not in ("rank", "ratio"):
    raise ValueError(f"{by=}: use rank or ratio")
  known, answers = {}, []
  for k in itertools.count():
    limit, cut = k * step + 1e-9, False
    stack = [((), 0.0)]
    while stack:
      path, spent = stack.pop()
      if shape.over(path):
        if shape.finished(path) and spent > limit - step:
          answers.append(path)
        continue
      if path not in known:
        (row_V,) = yield Ask([path], answers)
        answers = []
        order_V = np.argsort(-row_V, kind="stable")
        ratio_V = row_V[order_V[0]] - row_V[order_V]
        cost_V = np.arange(len(row_V)) if by == "rank" else ratio_V
        known[path] = order_V, cost_V
      order_V, cost_V = known[path]
      count = int(np.searchsorted(cost_V, limit - spent, side="right"))
      cut |= count < len(cost_V)
      stack += [
        ((*path, int(order_V[rank])), spent + float(cost_V[rank]))
        for rank in reversed(range(count))
      ]
    if not cut:
      yield Ask((), answers)
      return


def without_replacement(
  shape: Shape, rng: np.random.Generator, *, temperature: float = 1.0
) -> Search:
  """Samples answers, each at most once (arXiv:2002.09067).

  The mass of every answer drawn is taken out of the tree, so that the next draw
  is exact among the others.
  """
  mass, left, answers = {}, {}, []
  while not left or left[()].sum() > 0:
    path, walk = (), []
    while not shape.over(path):
      if path not in left:
        (row_V,) = yield Ask([path], answers)
        answers = []
        mass[path] = _probabilities(row_V, temperature)
        left[path] = mass[path].copy()
      sums_V = np.cumsum(left[path])
      token = np.searchsorted(sums_V, rng.random() * sums_V[-1], side="right")
      walk.append((path, int(token)))
      path = (*path, int(token))
    if shape.finished(path):
      answers.append(path)
    rest = 0.0
    for parent, token in reversed(walk):
      left[parent][token] = mass[parent][token] * rest
      rest = left[parent].sum()
      if rest < 1e-12:  # Rounding, nothing else, is left.
        left[parent][:] = rest = 0.0
  yield Ask((), answers)


def ab_mcts(
  shape: Shape,
  rng: np.random.Generator,
  score: Callable[[Path], float],
  *,
  step: int,
  temperature: float = 1.0,
  dist_type: Literal["gaussian", "beta"] = "beta",
  patience: int = 100,
) -> Search:
  """AB-MCTS-A as its authors' package has it (arXiv:2503.04412).

  At each node Thompson sampling chooses between another draw from it and one of
  its children. A draw is `step` tokens more, valued by a rollout from there. No
  path is paid for twice.

  Args:
    shape: of the tree.
    rng: draws tokens; the package draws from NumPy's own generator.
    score: of an answer, from 0 to 1.
    step: tokens of a draw.
    temperature: of draws and rollouts.
    dist_type: what the package takes rewards to come from.
    patience: draws in a row that show nothing new, after which it gives up.
  """
  from treequest import ABMCTSA

  algorithm = ABMCTSA(dist_type=dist_type)
  state, known, answers = algorithm.init_tree(), {}, []
  idle = 0
  while idle < patience:
    idle += 1
    state, (trial,) = algorithm.ask_batch(state, 1, ["draw"])
    begun = trial.parent_state or ()
    path = begun
    while not shape.over(path):
      if path not in known:
        (row_V,) = yield Ask([path], answers)
        answers, idle = [], 0
        known[path] = _probabilities(row_V, temperature)
      path = (*path, int(rng.choice(len(known[path]), p=known[path])))
    if shape.finished(path):
      answers.append(path)
    node = path[: len(begun) + step]
    state = algorithm.tell(state, trial.trial_id, (node, score(path)))
  yield Ask((), answers)


def beam(
  shape: Shape,
  width: int,
  *,
  rng: np.random.Generator | None = None,
  temperature: float = 1.0,
) -> Search:
  """Beam search by log-probability, or stochastic beam search.

  With a generator the scores are Gumbel-perturbed log-probabilities, so that
  the beam is a sample without replacement (arXiv:1903.06059). Finished answers
  keep their place in the beam.

  Args:
    shape: of the tree.
    width: paths kept at every depth.
    rng: of the perturbation; without it the beam is deterministic.
    temperature: divides the logits.
  """
  closed, answers = [], []  # (score, log-probability, path)
  open_ = [(0.0, 0.0, ())]
  while open_:
    rows = yield Ask([path for *_, path in open_], answers)
    log_prob_RV = np.stack(
      [
        log_prob + np.log(np.maximum(_probabilities(row, temperature), 1e-300))
        for (_, log_prob, _), row in zip(open_, rows, strict=True)
      ]
    )
    score_RV = log_prob_RV
    if rng is not None:
      parent_R1 = np.array([[score] for score, *_ in open_])
      score_RV = _gumbel_below(log_prob_RV, parent_R1, rng)
    count = min(width, score_RV.size)
    best = np.argpartition(-score_RV, count - 1, axis=None)[:count]
    grown = []
    for row, token in zip(*np.unravel_index(best, score_RV.shape), strict=True):
      path = (*open_[row][-1], int(token))
      grown.append((score_RV[row, token], log_prob_RV[row, token], path))
    old = {path for *_, path in closed}
    kept = sorted(closed + grown, key=lambda entry: -entry[0])[:width]
    closed = [entry for entry in kept if shape.over(entry[-1])]
    ended = [path for *_, path in closed if shape.finished(path)]
    answers = [path for path in ended if path not in old]
    open_ = [entry for entry in kept if not shape.over(entry[-1])]
  yield Ask((), answers)


def _probabilities(row_V: np.ndarray, temperature: float) -> np.ndarray:
  """A distribution at a temperature, float64."""
  scaled_V = row_V.astype(np.float64) / temperature
  p_V = np.exp(scaled_V - scaled_V.max())
  return p_V / p_V.sum()


def _gumbel_below(log_prob_RV, parent_R1, rng) -> np.ndarray:
  """Gumbel variables at given locations whose maximum is the parent's."""
  g_RV = log_prob_RV + rng.gumbel(size=log_prob_RV.shape)
  with np.errstate(divide="ignore"):
    v_RV = (
      parent_R1 - g_RV + np.log1p(-np.exp(g_RV - g_RV.max(axis=1)[:, None]))
    )
  return parent_R1 - np.maximum(v_RV, 0) - np.log1p(np.exp(-np.abs(v_RV)))
