"""Runs beside each other: groups of seeds, their numbers, the command."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from tests.report_test import curves, figures, write_run
from tsd_jax.base.errors import UserError
from tsd_jax.comparison import side_by_side, side_by_side_page
from tsd_jax.run import problems

MODE = "mean@16"
ACCURACY = {"tsd": ([0.1, 0.3], [0.1, 0.4], [0.1, 0.35]), "grpo": ([0.1, 0.2],)}


@pytest.fixture
def runs(tmp_path):
  """Three seeds of TSD, one of GRPO."""
  return [
    write_run(
      tmp_path / f"{name}-{seed}", accuracy, algorithm=name, seed=seed,
      text=f"{name} says <b>",
    )
    for name, seeds in ACCURACY.items()
    for seed, accuracy in enumerate(seeds)
  ]  # fmt: skip


def table(page, after=""):
  """Rows of cells of the first table behind a text."""
  body = page.split(after, 1)[1] if after else page
  body = body.split("<tbody>")[1].split("</tbody>")[0]
  return [
    re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("<tr>")[1:]
  ]


def page(tmp_path, runs, **options):
  side_by_side_page.write(tmp_path / "page.html", runs, MODE, **options)
  return (tmp_path / "page.html").read_text()


def test_runs_that_differ_in_their_seed_are_one_line_with_an_interval(
  tmp_path, runs
):
  text = page(tmp_path, runs)
  tsd, grpo = table(text)
  assert tsd[:4] == ["tsd", "0, 1, 2", "1", "0.350"]
  assert grpo[:4] == ["grpo", "0", "1", "0.200"] and grpo[7] == "1.75"
  drawn = figures(text)["Accuracy against iterations"]
  assert len(curves(drawn)) == 2
  said = [t.text for c in drawn.iter("circle") for t in c.iter("title")]
  (last,) = [s for s in said if re.match("tsd.* at 1 iterations", s)]
  low, high = map(float, re.findall(r"\(([\d.]+) to ([\d.]+)\)", last)[0])
  half = stats.t.interval(0.95, 2, 0.35, stats.sem([0.3, 0.4, 0.35]))
  assert (low, high) == pytest.approx(half, abs=1e-4)
  assert "95 % intervals over seeds" in text and "<b>" not in text
  # The answers of both beside each other.
  assert "tsd says &lt;b&gt;" in text and "grpo says &lt;b&gt;" in text


def test_bars_are_the_mean_over_seeds(runs):
  _, groups = side_by_side.read(runs, MODE)
  *_, bars = side_by_side.training(groups)
  assert bars.rows == ["tsd", "grpo"]
  assert bars.parts["updates (×3)"] == pytest.approx([12e-6, 12e-6])


def test_runs_of_other_lengths_meet_at_common_iterations(tmp_path):
  runs = [
    write_run(tmp_path / "a", [0.1, 0.2, 0.3]),
    write_run(tmp_path / "b", [0.1, 0.2, 0.3], seed=1),
  ]
  rows = (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()
  (tmp_path / "b" / "metrics.jsonl").write_text("\n".join(rows[:2]) + "\n")
  (tmp_path / "b" / "samples.json").unlink()
  text = page(tmp_path, runs)
  assert table(text)[0][2:4] == ["1", "0.200"]
  assert "Not finished: b (iteration 1)." in text


def change(folder, **fields):
  """Changes fields of a run's config."""
  file = folder / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | fields))
  return folder


def test_groups_are_named_by_what_differs(tmp_path):
  slow, fast = (
    change(write_run(tmp_path / name, [0.1, 0.2]), optimizer={"rate": rate})
    for name, rate in (("slow", 1), ("fast", 2))
  )
  names = [g.name for g in side_by_side.read([slow, fast], MODE)[1]]
  assert names == ["rate=1", "rate=2"]
  text = page(tmp_path, [slow, fast])
  assert table(text, "<h2>Settings")[0] == ["optimizer.rate", "1", "2"]
  for folder, mark in ((slow, "x"), (fast, "y")):
    change(folder, **{f"field{i}": mark for i in range(4)})
  names = [g.name for g in side_by_side.read([slow, fast], MODE)[1]]
  assert names == ["slow", "fast"]


def test_the_same_run_twice_is_refused(tmp_path, runs):
  with pytest.raises(UserError, match="the same settings and seed: name one"):
    page(tmp_path, [runs[0], runs[0]])
  with pytest.raises(UserError, match="no run is named"):
    side_by_side.read([])


def test_other_problems_are_told_of(tmp_path, runs):
  for i, folder in enumerate(runs):
    (folder / "data.json").write_text(json.dumps({"validation": f"{i // 3}"}))
  assert "measured on different problems" in page(tmp_path, runs)
  assert "measured on different problems" not in page(tmp_path, runs[:3])


def keep(folder, last, prompts=("a", "b", "c", "d")):
  solved = {0: {MODE: np.zeros(4)}, 1: {MODE: np.array(last)}}
  found = problems.Problems("validation", prompts, np.arange(4), solved)
  problems.write(folder, found)


def test_problems_are_won_and_lost_one_by_one(tmp_path, runs):
  for folder, last in zip(
    runs,
    ([1, 0, 0, 1], [1, 0, 0.5, 0], [1, 0, 0, 0], [0, 0.5, 0, 1]),
    strict=True,
  ):
    keep(folder, last)
  text = page(tmp_path, runs)
  rows = {r[0]: r[1:] for r in table(text, "Problem by problem")}
  # Means of TSD: 1, 0, 1/6, 1/3.
  assert rows["tsd against grpo"] == ["2", "2", "0", "+0.000"]
  assert rows["grpo against start"] == ["2", "0", "2", "+0.375"]
  assert rows["tsd against start"][:3] == ["3", "0", "1"]
  found = re.fullmatch(
    r"\+0\.375 \[([-+.\d]+), ([-+.\d]+)\]", rows["tsd against start"][3]
  )
  assert float(found[1]) < 0 < float(found[2])  # Four problems tell little.
  furthest = table(text, "tsd against grpo: the largest differences")
  assert furthest[0] == ["a", "1.00", "0.00"]
  assert furthest[-1] == ["d", "0.33", "1.00"] or furthest[-1][0] == "b"
  # Runs of other problems are not held against each other.
  keep(runs[-1], [0, 0, 0, 0], prompts=("e", "f", "g", "h"))
  assert "tsd against grpo" not in page(tmp_path, runs)


def test_the_command_writes_page_and_figures(tmp_path, runs):
  def report(*arguments):
    return subprocess.run(
      [sys.executable, "-m", "launch.report", *map(str, arguments)],
      capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip

  done = report(
    *runs, f"--out={tmp_path}/page.html", f"--figures={tmp_path}/figures"
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("tsd: ") and "grpo: " in done.stdout
  assert (tmp_path / "page.html").read_text().endswith("</body></html>\n")
  made = sorted(f.name for f in (tmp_path / "figures").iterdir())
  assert "accuracy_tokens.svg" in made and "ledger.csv" in made
  assert len(made) == 3 * 6
  done = report(f"--out={tmp_path}/page.html")
  assert done.returncode == 2
  assert done.stderr.startswith("error: no run is named")
