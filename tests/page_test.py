"""RESULTS.md: the committed page is its files', and says what they say."""

import json

import numpy as np
import pytest

from experiments.results import page
from tsd_jax.base.errors import UserError
from tsd_jax.comparison import columns, counts, statistics
from tsd_jax.run.curves import Curve


def test_the_page_is_what_the_files_say():
  """If this fails: python -m experiments.results.page."""
  assert page.PAGE.read_text() == page.page(page.FOLDER)


STEPS = np.array([0, 10, 20])


def curves(last, shift=0.0):
  return [
    Curve(
      STEPS,
      STEPS * 100,
      np.array([0.1, x / 2, x]) + shift,
      0 * STEPS,
      STEPS,
      STEPS * 30,
      STEPS * 8,
      STEPS * 8,
    )  # fmt: skip
    for x in last
  ]


def content():
  """tsd twice as good as ppo, and apart; grpo worse in two seeds of five."""
  runs = {
    "tsd": curves([0.4, 0.405, 0.41, 0.415, 0.42]),
    "ppo": curves([0.2, 0.2025, 0.205, 0.2075, 0.21]),
    "grpo": curves([0.3, 0.35, 0.4, 0.45, 0.5]),
  }
  step = {"prompts": 32, "searched_prompts": 32, "backward_tokens": 2464.0}
  return {
    "command": "python -m launch.compare --workdir=DIR",
    "task": "countdown", "split": "test", "mode": "mean@16",
    "swept": "optimizer.learning_rate",
    "methods": {
      name: {
        "seeds": [0, 1, 2, 3, 4],
        "iterations": STEPS.tolist(), "seconds": STEPS.tolist(),
        "mean@16": [c.accuracy.tolist() for c in all_],
        "area": [statistics.area(c) for c in all_],
        "optimizer.learning_rate": "3e-4",
        "sweep": {"2e-4": 0.1, "3e-4": 0.2},
        "update_step": step
        | {"ledger_tokens": 11808.0 if name == "tsd" else 9840.0},
      }
      for name, all_ in runs.items()
    },
    "ratios": statistics.contrast(runs),
    "training_seconds": 600.0,
    "versions": {"jax": "0.10.2"},
  }  # fmt: skip


def test_a_comparison_in_words_and_numbers(tmp_path):
  (tmp_path / "compare_x.json").write_text(json.dumps(content()))
  text = page.page(tmp_path)
  assert "## compare_x" in text and "--workdir=DIR" in text
  assert "jax 0.10.2; 10 minutes of training." in text
  assert (
    "seeds 0, 1, 2, 3, 4." in text and "optimizer.learning_rate of 2e-4" in text
  )
  assert "reads 32 prompts in an update step, as many as tsd searches" in text
  cells = {
    line.split(" | ")[0].removeprefix("| "): line.split(" | ")
    for line in text.splitlines()
    if line.startswith("| ppo")
  }["ppo"]
  # Half of .41 after half of the steps that ppo takes to .205; at last twice.
  assert cells[1].startswith("0.50 [0.4") and cells[2].startswith("2.00 [1.9")
  assert cells[-2:] == ["1.00", "×1.20 |"]
  assert "| tsd | 0.410 (0.400–0.420) |" in text
  assert (
    "fewer steps than ppo (less than half: none), more than none; open: grpo. "
    "At equal tokens it is better than ppo, worse than none; open: grpo."
    in text
  )


def judged():
  """A comparison whose methods had trials; test columns of two problems."""
  found, samples = content(), 4

  def counted(seed, of):
    right = counts.pack(np.array([of, of + seed]))
    drawn = {"right": right, "distinct": counts.pack(np.array([1, 2]))}
    return {
      "plan": {"split": "test", "samples": samples, "temperature": 0.6},
      "greedy": counts.pack(np.array([1, 0])), "greedy_legal": 1.0,
      "constant": 0.01,
      "samples": {t: drawn | {"legal": 0.9} for t in ("1", "0.6")},
      "train": {"greedy": 0.75, "mean": 0.5},
    }  # fmt: skip

  runs = {
    name: [counted(seed, of) for seed in (0, 1)]
    for name, of in (("tsd", 2), ("ppo", 1), ("grpo", 2))
  }
  found |= {
    "tokens": 3.2e6, "trials": 9, "score": "mean@16",
    "curves_of": "validation",
    "tuning_finished": {"tsd": "2026-01-02T03:04:05+00:00"},
    "columns": columns.contrast(runs),
    "start": columns.of_method(runs["tsd"][:1]),
  }  # fmt: skip
  for name, row in found["methods"].items():
    row |= {
      "settings": {"optimizer.learning_rate": "0.0003"}, "temperature": 0.6,
      "edges": ["optimizer.minibatches"] if name == "ppo" else [],
      "tokens": (STEPS * 1e5).tolist(), "updated": (STEPS * 1e5).tolist(),
      "scored": (STEPS * 1e5).tolist(), "prompts": (STEPS * 6e2).tolist(),
      "seconds_of_runs": [60.0, 62.0],
      "columns": columns.of_method(runs[name]),
      "an_iteration": {"search": 15.0, "total": 30.0},
    }  # fmt: skip
    row["update_step"]["backward_tokens"] = 2000 if name == "tsd" else 1000
  return found


def test_a_comparison_with_trials_shows_what_was_spent_and_answered(tmp_path):
  (tmp_path / "compare_x.json").write_text(json.dumps(judged()))
  text = page.page(tmp_path)
  assert (
    "3.2 M ledger tokens a run" in text and "the best of 9 settings" in text
  )
  assert "by 2026-01-02T03:04:05+00:00, before a test problem was read" in text
  rows = [line.split(" | ") for line in text.splitlines() if "| ppo |" in line]
  spent, answered, over, against, settings, updates = rows
  assert spent[4:8] == ["2.00", "2.00", "2.00", "0.012"]
  assert spent[-1] == "minibatches |"
  # One of four samples and one, then one and two: 5 of 16.
  assert answered[2].startswith("0.500 [") and answered[3].startswith("0.312 [")
  assert answered[-2:] == ["0.250", "0.188 |"]  # Gaps to train.
  # 9 of 16 of tsd's are right.
  assert over[2].startswith("1.80 [")
  assert against[1].startswith("0.50 [0.4")
  assert settings[-1] == "optimizer.learning_rate 0.0003 |"
  # Half of the tokens, in steps that read half as many.
  assert updates[1:4] == ["1,000", "30", "0.500"]
  assert updates[4].startswith("0.25 [0.2")
  assert "fewer steps than ppo (less than half: none)" in text


def test_prompts_are_as_many_as_searched_only_where_they_are(tmp_path):
  found = content()
  for row in found["methods"].values():
    row["update_step"]["searched_prompts"] = 0
  (tmp_path / "compare_x.json").write_text(json.dumps(found))
  assert "as many as" not in page.page(tmp_path)


def test_a_target_never_reached_is_no_win():
  never = {"value": None, "ci95": [None, None]}
  sometimes = {"value": 0.4, "ci95": [0.2, None]}
  undefined = {"value": None, "ci95": [None, None]}
  found = {"tsd/a": never, "tsd/b": sometimes}
  assert page.verdict(found, 1.0, missing=float("inf")) == {
    "below": [], "above": ["a"], "open": ["b"],
  }  # fmt: skip
  assert page.verdict({"tsd/a": undefined}, 1.0, missing=float("nan")) == {
    "below": [],
    "above": [],
    "open": ["a"],
  }
  assert page.interval(sometimes, ".1f", "never") == "0.4 [0.2, never]"


def test_any_rows_become_a_table(tmp_path):
  rows = [
    {"name": "a", "value": 12345.6, "ratio": {"value": 0.5, "ci95": [0.25, 1]}},
    {"name": "b", "solved": True},
  ]
  (tmp_path / "x.json").write_text(json.dumps({"rows": rows}))
  text = page.page(tmp_path)
  assert "| name | value | ratio | solved |" in text
  assert "| a | 12,346 | 0.5 [0.25, 1] | – |" in text
  assert "| b | – | – | True |" in text


def test_ablations_become_a_table(tmp_path):
  gain = {"value": 0.01, "ci95": [-0.02, 0.04]}
  steps = {"value": 1.5, "ci95": [0.75, None]}
  rows = {
    "default": {"mean@16": [0.3, 0.4], "tokens_per_iteration": 94464.0},
    "puct": {
      "mean@16": [0.31, 0.41], "tokens_per_iteration": 1e5,
      "difference_at_equal_steps": gain, "steps_to_target": steps,
      "accuracy_at_equal_tokens": {"value": 0.9, "ci95": [0.8, 1.0]},
    },
  }  # fmt: skip
  saved = {
    "task": "countdown", "split": "validation", "mode": "mean@16",
    "seeds": ["0", "1"], "rows": rows,
  }  # fmt: skip
  (tmp_path / "ablations.json").write_text(json.dumps(saved))
  text = page.page(tmp_path)
  assert "| default | 0.350 (0.300–0.400) |  |  |  | 94,464 |" in text
  shown = "1.50 [0.75, never] | 0.90 [0.80, 1.00] | +0.010 [-0.020, +0.040]"
  assert f"| puct | 0.360 (0.310–0.410) | {shown} | 100,000 |" in text


def test_damaged_files_are_named(tmp_path):
  (tmp_path / "x.json").write_text("{")
  with pytest.raises(UserError, match=r"x\.json is damaged"):
    page.page(tmp_path)
  broken = content()
  del broken["mode"]
  (tmp_path / "x.json").write_text(json.dumps(broken))
  with pytest.raises(UserError, match=r"x\.json has no 'mode': make it again"):
    page.page(tmp_path)


def test_the_law_has_a_line_a_start(tmp_path):
  def point(start, success, ratio):
    found = {"value": ratio, "ci95": [ratio / 2, ratio * 2]}
    lost = {"value": None, "ci95": [0.0, None]}
    return {
      "task": "maze",
      "start": start,
      "success": {"mean": success},
      "ratios": {"mean": {"grpo": found, "ppo": lost}},
    }

  found = {"command": "law", "points": [point("a", 0.01, 2.0)]}
  found["points"].append(point("b", 0.1, 1.5))
  (tmp_path / "law_x.json").write_text(json.dumps(found))
  lines = page.page(tmp_path).splitlines()
  assert "| task | start | right | mean, over grpo | mean, over ppo |" in lines
  (row,) = [line for line in lines if line.startswith("| maze | a |")]
  assert "0.010" in row and "2.00" in row and "4.00" in row
