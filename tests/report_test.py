"""The page of plots and samples."""

import html.parser
import json
import re
import xml.etree.ElementTree as ET

import pytest

from tsd_jax.base.errors import UserError
from tsd_jax.run import curves as curves_lib
from tsd_jax.run import report

FIGURES = True


def write_run(folder, accuracy, *, text="1 + 2"):
  folder.mkdir()
  rows = []
  for step, value in enumerate(accuracy):
    ledger = dict(prefill=1, search=2, rollout=3, rescore=0, update=4)
    rows.append({
      "step": step, "seconds": float(step), "reward": value,
      "clip_fraction": 0.1,
      "ledger": {k: v * step for k, v in ledger.items()} | {"total": 18 * step},
      "eval": {"mean@16": {"accuracy": value, "stderr": 0.01}},
    })  # fmt: skip
  (folder / "metrics.jsonl").write_text(
    "".join(json.dumps(r) + "\n" for r in rows)
  )
  (folder / "config.json").write_text(
    '{"task": {"__class__": "somewhere.tasks.GameConfig"}}'
  )
  sample = {
    "prompt": "1 2 = 3", "tree": "root",
    "before": [{"text": "2 - 1", "reward": 0.25, "correct": False}],
    "after": [{"text": text, "reward": 1.0, "correct": True}],
  }  # fmt: skip
  (folder / "samples.json").write_text(json.dumps([sample]))
  return folder


def polylines(page):
  """Points of every curve that matplotlib drew, by figure."""
  for svg in page.split("<svg")[1:]:
    root = ET.fromstring("<svg" + svg.split("</svg>")[0] + "</svg>")
    yield [
      path.get("d")
      for path in root.iter("{http://www.w3.org/2000/svg}path")
      if "stroke: #1b6ca8" in (path.get("style") or "")
    ]


def test_a_sample_that_nobody_knows_to_be_right_is_neither(tmp_path):
  folder = write_run(tmp_path / "a", [0.1, 0.2])
  (sample,) = json.loads((folder / "samples.json").read_text())
  for text, correct in (("good", True), ("bad", False), ("who knows", None)):
    sample["after"] = [{"text": text, "reward": 0.5, "correct": correct}]
    (folder / "samples.json").write_text(json.dumps([sample]))
    report.write(tmp_path / "report.html", {"tsd": folder}, "mean@16")
    (kind,) = re.findall(
      rf'<td class="(\w*)">{text}  \(0\.50\)</td>',
      (tmp_path / "report.html").read_text(),
    )
    assert kind == {True: "ok", False: "no", None: ""}[correct]


def test_a_page_shows_the_runs_and_escapes_what_a_model_wrote(tmp_path):
  evil = "<script>alert(1)</script>"
  folders = {
    "tsd": write_run(tmp_path / "a", [0.1, 0.2, 0.4], text=evil),
    "ppo": write_run(tmp_path / "b", [0.1, 0.15, 0.3]),
  }
  file = tmp_path / "report.html"
  report.write(file, folders, "mean@16")
  page = file.read_text()
  html.parser.HTMLParser().feed(page)
  assert '<td class="no">2 - 1  (0.25)</td>' in page
  assert evil not in page and "&lt;script&gt;" in page
  assert curves_lib.summary(
    {n: curves_lib.read_curve(f, "mean@16") for n, f in folders.items()},
    "mean@16",
  ) in html.unescape(page)
  # 3 held-out figures, reward, clipped tokens, ledger; nothing for metrics
  # that no run has.
  figures = list(polylines(page))
  assert len(figures) == 6
  assert "Search gain" not in page
  # The first figure's curve has the three points, rising on the page.
  (curve,) = [d for d in figures[0] if d.count("L") == 2 and "z" not in d][:1]
  y = [float(n) for n in re.findall(r"[\d.]+", curve)[1::2]]
  assert y[0] > y[1] > y[2]
  assert (y[1] - y[2]) / (y[0] - y[1]) == pytest.approx(2.0, rel=1e-3)
  report.write(tmp_path / "again.html", folders, "mean@16")
  assert (tmp_path / "again.html").read_text() == page


def test_signs_of_mathematics_in_a_name_are_shown_as_they_are(tmp_path):
  name = r"$\frac{$ & 50 %"
  folder = write_run(tmp_path / "a", [0.1, 0.2])
  report.write(tmp_path / "r.html", {name: folder}, "mean@16")
  page = (tmp_path / "r.html").read_text()
  assert page.count(html.escape(name, quote=False)) > 3
  ET.fromstring("<svg" + page.split("<svg")[1].split("</svg>")[0] + "</svg>")


def test_folders_that_hold_no_run_are_named(tmp_path):
  with pytest.raises(UserError, match=r"no run in .*metrics\.jsonl missing"):
    report.write(tmp_path / "r.html", {"x": tmp_path}, "mean@16")
  folder = write_run(tmp_path / "a", [0.1])
  for odd in ("[{", "5", "[5]", "{}", '[{"prompt": 3}]'):
    (folder / "samples.json").write_text(odd)
    with pytest.raises(UserError, match=r"samples\.json is damaged"):
      report.read_log(folder)
  with pytest.raises(UserError, match="no evaluation of pass@8"):
    curves_lib.read_curve(folder, "pass@8")
