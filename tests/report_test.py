"""The page of a run: plots, samples and settings."""

import html.parser
import json
import re
import xml.etree.ElementTree as ET

import pytest

from tsd_jax.base.errors import UserError
from tsd_jax.run import curves as curves_lib
from tsd_jax.run import report


def write_run(
  folder, accuracy, *, text="1 + 2", algorithm="tsd", seed=0, **more
):
  """A run's folder, written by hand.

  Args:
    folder: made here.
    accuracy: of mean@16 at each iteration.
    text: what it answers in the end.
    algorithm: in its config.
    seed: in its config.
    more: metrics of every row.
  """
  folder.mkdir()
  rows = []
  for step, value in enumerate(accuracy):
    ledger = dict(prefill=1, search=2, rollout=3, rescore=0, update=4)
    rows.append({
      "step": step, "seconds": float(step), "reward": value,
      "clip_fraction": 0.1, **more,
      "ledger": {k: v * step for k, v in ledger.items()} | {"total": 18 * step},
      "eval": {"mean@16": {"accuracy": value, "stderr": 0.01}},
    })  # fmt: skip
  (folder / "metrics.jsonl").write_text(
    "".join(json.dumps(r) + "\n" for r in rows)
  )
  config = {
    "task": {"__class__": "somewhere.tasks.GameConfig"},
    "algorithm": algorithm, "seed": seed, "iterations": len(accuracy) - 1,
    "eval": {"modes": "greedy,mean@16", "split": "validation"},
  }  # fmt: skip
  (folder / "config.json").write_text(json.dumps(config))
  sample = {
    "prompt": "1 2 = 3", "tree": "root",
    "before": [{"text": "2 - 1", "reward": 0.25, "correct": False}],
    "after": [{"text": text, "reward": 1.0, "correct": True}],
  }  # fmt: skip
  (folder / "samples.json").write_text(json.dumps([sample]))
  return folder


def figures(page):
  """Drawings by their titles."""
  found = {}
  for figure in page.split("<figure>")[1:]:
    title = re.search(r"<figcaption>(.*?)<small>", figure)[1]
    svg = "<svg" + figure.split("<svg")[1].split("</svg>")[0] + "</svg>"
    found[html.unescape(title)] = ET.fromstring(svg)
  return found


def curves(drawing):
  """Points of every curve of a drawing."""
  return [
    [tuple(map(float, point.split())) for point in d[1:].split("L")]
    for path in drawing.iter("path")
    if path.get("class") == "curve"
    for d in [path.get("d")]
  ]


def texts(drawing):
  return [element.text for element in drawing.iter("text")]


def write(tmp_path, folder, name="tsd"):
  report.write(tmp_path / "report.html", name, folder, "mean@16")
  return (tmp_path / "report.html").read_text()


def test_a_sample_that_nobody_knows_to_be_right_is_neither(tmp_path):
  folder = write_run(tmp_path / "a", [0.1, 0.2])
  (sample,) = json.loads((folder / "samples.json").read_text())
  for text, correct in (("good", True), ("bad", False), ("who knows", None)):
    sample["after"] = [{"text": text, "reward": 0.5, "correct": correct}]
    (folder / "samples.json").write_text(json.dumps([sample]))
    (kind,) = re.findall(
      rf'<td class="answer (\w*)"><bdi>{text}</bdi>  \(0\.50\)</td>',
      write(tmp_path, folder),
    )
    assert kind == {True: "ok", False: "no", None: ""}[correct]


def test_a_page_shows_the_run_and_escapes_what_a_model_wrote(tmp_path):
  evil = "<script>alert(1)</script>"
  folder = write_run(tmp_path / "a", [0.1, 0.2, 0.4], text=evil)
  page = write(tmp_path, folder)
  html.parser.HTMLParser().feed(page)
  assert '<td class="answer no"><bdi>2 - 1</bdi>  (0.25)</td>' in page
  assert evil not in page and "&lt;script&gt;" in page
  curve = curves_lib.read_curve(folder, "mean@16")
  summary = curves_lib.summary({"tsd": curve}, "mean@16")
  assert summary in html.unescape(page)
  # Nothing for metrics that the run has not.
  assert list(figures(page)) == [
    "Accuracy against iterations",
    "Accuracy against tokens",
    "Accuracy against seconds",
    "Reward in training",
    "Clipped tokens",
    "Ledger tokens by part",
  ]
  assert write(tmp_path, folder) == page
  assert "http-equiv" not in page


def test_a_curve_lies_where_its_numbers_say(tmp_path):
  folder = write_run(tmp_path / "a", [0.1, 0.2, 0.4])
  drawing = figures(write(tmp_path, folder))["Accuracy against iterations"]
  ((a, b, c),) = curves(drawing)
  assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2)
  # Rising on the page, twice as far in the second step.
  assert (b[1] - c[1]) / (a[1] - b[1]) == pytest.approx(2.0, rel=0.01)
  # The start is drawn across, at the first point's height.
  assert "start" in texts(drawing)
  (level,) = [
    path.get("d")
    for path in drawing.iter("path")
    if path.get("stroke-dasharray") == "1 3"
  ]
  assert float(level.split("H")[0].split()[1]) == a[1]


def test_the_floor_is_drawn_where_it_was_counted(tmp_path):
  folder = write_run(tmp_path / "a", [0.1, 0.2])
  assert "best constant answer" not in write(tmp_path, folder)
  (folder / "counts.json").write_text('{"constant": 0.05}')
  drawing = figures(write(tmp_path, folder))["Accuracy against tokens"]
  assert "best constant answer" in texts(drawing)


@pytest.mark.parametrize(
  ("metrics", "shown"),
  [
    ({"correct": 0.5}, False),  # GRPO's: no V_search.
    ({"correct": 0.5, "search_root_value": 0.5}, False),  # Never trained.
    ({"correct": 0.5, "search_root_value": 0.5, "success_loss": 0.7}, True),
  ],
)
def test_v_search_is_shown_of_runs_that_have_one(tmp_path, metrics, shown):
  folder = write_run(tmp_path / "a", [0.1, 0.2], **metrics)
  drawn = figures(write(tmp_path, folder))
  assert ("V_search of prompts" in drawn) == shown
  if shown:
    assert len(curves(drawn["V_search of prompts"])) == 2


def test_champions_are_drawn_where_there_are_some(tmp_path):
  folder = write_run(tmp_path / "a", [0.1] * 4, champion_ce=0.5)
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  rows = [
    json.loads(line) | {"champion_rate": rate}
    for line, rate in zip(lines, (0, 0, 0.5, 1), strict=True)
  ]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "metrics.jsonl").write_text(text)
  drawn = figures(write(tmp_path, folder))["Champions under the policy"]
  ((a, b),) = curves(drawn)
  assert a[0] < b[0]


def test_a_run_that_goes_on_says_so_and_its_page_loads_again(tmp_path):
  folder = write_run(tmp_path / "a", [0.1, 0.2])
  (folder / "samples.json").unlink()
  page = write(tmp_path, folder)
  assert '<meta http-equiv="refresh" content="20">' in page
  assert "Iteration 1 of 1. The run has not ended" in page


def test_a_page_stays_small_however_long_a_run(tmp_path):
  folder = write_run(tmp_path / "a", [0.1] * 3_000 + [0.9])
  drawn = figures(write(tmp_path, folder))
  (curve,) = curves(drawn["Reward in training"])
  assert len(curve) == 400 and curve[-1][1] < curve[0][1]


def test_signs_of_mathematics_in_a_name_are_shown_as_they_are(tmp_path):
  name = r"$\frac{$ & 50 %"
  folder = write_run(tmp_path / "a", [0.1, 0.2])
  page = write(tmp_path, folder, name)
  assert page.count(html.escape(name, quote=False)) > 3
  assert figures(page)


def test_folders_that_hold_no_run_are_named(tmp_path):
  with pytest.raises(UserError, match=r"no run in .*metrics\.jsonl missing"):
    write(tmp_path, tmp_path)
  folder = write_run(tmp_path / "a", [0.1])
  for odd in ("[{", "5", "[5]", "{}", '[{"prompt": 3}]'):
    (folder / "samples.json").write_text(odd)
    with pytest.raises(UserError, match=r"samples\.json is damaged"):
      report.read_log(folder)
  with pytest.raises(UserError, match="no evaluation of pass@8"):
    curves_lib.read_curve(folder, "pass@8")
