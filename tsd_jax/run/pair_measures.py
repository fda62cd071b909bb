"""How well rewards tell held-out pairs apart: accuracy, calibration, length.

Pairs with one prompt are no independent samples: intervals count prompts.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95  # Of intervals.
BINS = 10  # Of confidences from 1/2 to 1.
_TIMES = 1_000  # Of what is drawn again.

Bounds = dict[str, float]  # value, low, high.


def measure(
  reward_Q2K: np.ndarray, length_Q2: np.ndarray, group_Q: np.ndarray
) -> dict[str, Any]:
  """Measures what K members of an ensemble say of pairs.

  Args:
    reward_Q2K: of chosen and rejected responses.
    length_Q2: their tokens.
    group_Q: alike where the prompt is.

  Returns:
    Numbers, as JSON has them, for `table`.
  """
  reward_Q2 = reward_Q2K.mean(axis=2)
  ahead_Q = reward_Q2[:, 0] - reward_Q2[:, 1]
  return {
    "pairs": len(group_Q),
    "prompts": len(np.unique(group_Q)),
    "accuracy": proportion(hits(ahead_Q), group_Q),
    "calibration": calibration(ahead_Q, group_Q),
    "length": length_bias(reward_Q2, length_Q2, group_Q),
    "members": members(reward_Q2K, group_Q),
  }


def hits(ahead_Q: np.ndarray) -> np.ndarray:
  """1 where the chosen response is ahead, 1/2 where none is."""
  return (ahead_Q > 0) + 0.5 * (ahead_Q == 0)


def calibration(ahead_Q: np.ndarray, group_Q: np.ndarray) -> dict[str, Any]:
  """Whether sigmoid(r_chosen - r_rejected) is how often the chosen one wins.

  Which response was chosen is not known beforehand, so a pair's confidence is
  that in the response with the higher reward, from 1/2 to 1. The expected
  calibration error is above 0 for finitely many pairs of a calibrated model as
  well: what such a model has is drawn, and stands beside it.

  Args:
    ahead_Q: r_chosen - r_rejected.
    group_Q: alike where the prompt is.
  """
  hit_Q = hits(ahead_Q)
  sure_Q = 1.0 / (1.0 + np.exp(-np.abs(ahead_Q)))
  bin_Q = np.minimum(((sure_Q - 0.5) * 2 * BINS).astype(int), BINS - 1)
  rng = np.random.default_rng(0)
  drawn_XQ = rng.random((_TIMES, len(hit_Q))) < sure_Q
  chance_X = [_ece(sure_Q, drawn_Q, bin_Q) for drawn_Q in drawn_XQ]
  loss_Q = np.logaddexp(0.0, -ahead_Q)
  return {
    "log_loss": bootstrapped(lambda w: np.average(loss_Q, weights=w), group_Q),
    "overconfidence": bootstrapped(
      lambda w: np.average(sure_Q - hit_Q, weights=w), group_Q
    ),
    "ece": _ece(sure_Q, hit_Q, bin_Q),
    "ece_if_calibrated": float(np.mean(chance_X)),
    "ece_if_calibrated_95": float(np.quantile(chance_X, LEVEL)),
    "reliability": [
      {
        "from": 0.5 + b / (2 * BINS),
        "pairs": int(np.sum(bin_Q == b)),
        "confidence": float(np.mean(sure_Q[bin_Q == b])),
        "accuracy": proportion(hit_Q[bin_Q == b], group_Q[bin_Q == b]),
      }
      for b in np.unique(bin_Q)
    ],
  }


def _ece(sure_Q: np.ndarray, hit_Q: np.ndarray, bin_Q: np.ndarray) -> float:
  """Mean over pairs of |accuracy - confidence| of their bin."""
  off_J = np.bincount(bin_Q, weights=hit_Q - sure_Q, minlength=BINS)
  return float(np.sum(np.abs(off_J)) / len(hit_Q))


def length_bias(
  reward_Q2: np.ndarray, length_Q2: np.ndarray, group_Q: np.ndarray
) -> dict[str, Any]:
  """Whether rewards follow length.

  Correlations of rewards with lengths: over all responses, and of the two
  differences of a pair, in which what is asked has no part. Accuracies where
  the chosen response is the shorter and the longer one; a reward that is length
  alone has 0 and 1.
  """
  ahead_Q = reward_Q2[:, 0] - reward_Q2[:, 1]
  longer_Q = (length_Q2[:, 0] - length_Q2[:, 1]).astype(float)

  def over_all(weight_Q):
    weight_Q2 = np.repeat(weight_Q[:, None], 2, axis=1)
    return _correlation(reward_Q2, length_Q2.astype(float), weight_Q2)

  def within(weight_Q):
    # About 0, not the mean: which of the two is first means nothing.
    both = np.sum(weight_Q * ahead_Q * longer_Q)
    size = np.sum(weight_Q * ahead_Q**2) * np.sum(weight_Q * longer_Q**2)
    return both / np.sqrt(size) if size > 0 else 0.0

  found: dict[str, Any] = {
    "correlation": bootstrapped(over_all, group_Q),
    "correlation_in_pairs": bootstrapped(within, group_Q),
    "chosen_is_longer": proportion(hits(longer_Q), group_Q),
  }
  for name, its_Q in (("shorter", longer_Q < 0), ("longer", longer_Q > 0)):
    found[f"pairs_chosen_{name}"] = int(its_Q.sum())
    if its_Q.any():
      found[f"accuracy_chosen_{name}"] = proportion(
        hits(ahead_Q[its_Q]), group_Q[its_Q]
      )
  return found


def _correlation(
  x_X: np.ndarray, y_X: np.ndarray, weight_X: np.ndarray
) -> float:
  """Pearson's, weighted; 0 where one of the two never changes."""
  x_X = x_X - np.average(x_X, weights=weight_X)
  y_X = y_X - np.average(y_X, weights=weight_X)
  size = np.sum(weight_X * x_X**2) * np.sum(weight_X * y_X**2)
  return (
    float(np.sum(weight_X * x_X * y_X) / np.sqrt(size)) if size > 0 else 0.0
  )


def members(reward_Q2K: np.ndarray, group_Q: np.ndarray) -> dict[str, Any]:
  """Whether an ensemble is right more often where its members agree.

  They agree where all have the same response ahead. Their standard deviation is
  another thing: heads of one trunk are often farther apart where the rewards
  are, as `spread_and_size` says, the correlation of the two over pairs.
  """
  K = reward_Q2K.shape[2]
  if K == 1:
    return {"count": 1}
  ahead_QK = reward_Q2K[:, 0] - reward_Q2K[:, 1]
  agree_Q = (ahead_QK > 0).all(axis=1) | (ahead_QK < 0).all(axis=1)
  mean_Q, spread_Q = ahead_QK.mean(axis=1), ahead_QK.std(axis=1, ddof=1)
  hit_Q = hits(mean_Q)
  bound_Q2 = reward_Q2K.mean(axis=2) - reward_Q2K.std(axis=2, ddof=1)
  found = {
    "count": K,
    "mean_accuracy_of_one": float(np.mean(hits(ahead_QK))),
    "std": float(np.mean(reward_Q2K.std(axis=2, ddof=1))),
    "spread_and_size": _correlation(
      np.abs(mean_Q), spread_Q, np.ones(len(mean_Q))
    ),
    "accuracy_of_mean_less_std": proportion(
      hits(bound_Q2[:, 0] - bound_Q2[:, 1]), group_Q
    ),
    "pairs_where_they_differ": int(np.sum(~agree_Q)),
  }
  for name, its_Q in (("agree", agree_Q), ("differ", ~agree_Q)):
    if its_Q.any():
      key = f"accuracy_where_they_{name}"
      found[key] = proportion(hit_Q[its_Q], group_Q[its_Q])
  return found


def proportion(hit_Q: np.ndarray, group_Q: np.ndarray) -> Bounds:
  """A share of pairs with Wilson's interval (doi:10.2307/2276774).

  Of as many independent pairs as have the variance that the groups show, but
  never more than there are, and as many as there are groups where all are
  alike.
  """
  n, p = len(hit_Q), float(np.mean(hit_Q))
  index_Q = np.unique(group_Q, return_inverse=True)[1]
  sum_X = np.bincount(index_Q, weights=hit_Q - p)
  plain, count = p * (1 - p) / n, len(sum_X)
  if plain > 0 and count > 1:
    clustered = count / (count - 1) * np.sum(sum_X**2) / n**2
    independent = n / max(1.0, clustered / plain)
  else:
    independent = count
  z2 = stats.norm.ppf(0.5 + LEVEL / 2) ** 2
  middle = (p + z2 / (2 * independent)) / (1 + z2 / independent)
  half = np.sqrt(z2 * (p * (1 - p) + z2 / (4 * independent)) / independent)
  half /= 1 + z2 / independent
  return {"value": p, "low": float(middle - half), "high": float(middle + half)}


def bootstrapped(
  statistic: Callable[[np.ndarray], float], group_Q: np.ndarray
) -> Bounds:
  """A statistic with a percentile interval over groups that are drawn again.

  Args:
    statistic: of weights of the pairs, Q.
    group_Q: which pairs are drawn together.
  """
  index_Q = np.unique(group_Q, return_inverse=True)[1]
  count, rng = index_Q.max() + 1, np.random.default_rng(0)
  drawn = [
    statistic(
      np.bincount(rng.integers(count, size=count), minlength=count)[index_Q]
    )
    for _ in range(_TIMES)
  ]
  low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
  value = float(statistic(np.ones(len(index_Q))))
  return {"value": value, "low": float(low), "high": float(high)}


def table(found: Mapping[str, Any]) -> str:
  """What `measure` found, as lines of text."""
  c, length, ensemble = (found[k] for k in ("calibration", "length", "members"))
  rows = {
    "accuracy": found["accuracy"],
    "log loss": c["log_loss"],
    "confidence less accuracy": c["overconfidence"],
    "reward and length, all responses": length["correlation"],
    "reward and length, within pairs": length["correlation_in_pairs"],
    "chosen is longer": length["chosen_is_longer"],
  }
  for name in ("shorter", "longer"):
    if f"accuracy_chosen_{name}" in length:
      pairs = length[f"pairs_chosen_{name}"]
      key = f"accuracy where chosen is {name} ({pairs:,})"
      rows[key] = length[f"accuracy_chosen_{name}"]
  for name, value in ensemble.items():
    if isinstance(value, dict):
      rows[name.replace("_", " ")] = value
  lines = [f"{found['pairs']:,} held-out pairs of {found['prompts']:,} prompts"]
  lines += [
    f"{name:<42} {x['value']:6.3f}  [{x['low']:.3f}, {x['high']:.3f}]"
    for name, x in rows.items()
  ]
  lines.append(
    f"{'expected calibration error':<42} {c['ece']:6.3f}  a calibrated model: "
    f"{c['ece_if_calibrated']:.3f}, in 95 % up to "
    f"{c['ece_if_calibrated_95']:.3f}"
  )
  return "\n".join(lines)
