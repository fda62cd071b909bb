"""report.html: one page of plots, samples and settings from runs' folders.

Everything is read from the folders, so that a page can be made again at any
time, of one run or of several beside each other.
"""

import html
import io
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from tsd_jax.base import outside_files
from tsd_jax.base.errors import UserError
from tsd_jax.run import curves as curves_lib
from tsd_jax.run import directory

_COLOURS = (
  "#1b6ca8",
  "#d1495b",
  "#2e933c",
  "#7048b6",
  "#edae49",
  "#333333",
  "#00a6a6",
  "#b56576",
)
# Title, then metric: line style.
_TRAINING = (
  ("Reward in training", {"reward": "-", "search_reward": ":"}),
  ("Solved in training", {"correct": "-", "search_correct": ":"}),
  ("Search gain over the policy (reward)", {"search_gain": "-"}),
  ("Depth of a node (tokens)", {"search_depth": "-"}),
  ("Distinct answers in a tree", {"search_answers": "-"}),
  (
    "Search: fractions",
    {"search_wasted": "-", "search_duplicates": ":", "search_cut_off": "--"},
  ),
  ("Entropy of the root's visits (nats)", {"search_visit_entropy": "-"}),
  (
    "V_search of prompts, samples solved",
    {"search_root_value": "-", "correct": ":"},
  ),
  ("Age of the search model (iterations)", {"search_age": "-"}),
  ("Distilled prompts (fraction)", {"champion_rate": "-"}),
  ("Clipped tokens (fraction)", {"clip_fraction": "-"}),
  ("KL to the sampling policy (nats)", {"approx_kl": "-"}),
  ("Entropy (nats)", {"entropy": "-"}),
  ("Cross-entropy of champions (nats)", {"champion_ce": "-"}),
  ("KL to the start (nats)", {"kl_reference": "-"}),
  ("Value loss", {"value_loss": "-", "success_loss": ":"}),
  ("Gradient norm", {"grad_norm": "-"}),
  ("Response length (tokens)", {"response_length": "-"}),
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem;
  max-width: 74rem; color: #222; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.grid { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); }
.grid svg { width: 100%; height: auto; }
pre { background: #f5f6f8; padding: .8rem; overflow-x: auto;
  font-size: 12.5px; line-height: 1.35; border-radius: 4px; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem;
  text-align: left; } .ok { color: #2e933c; } .no { color: #888; }
.prompt { font-weight: bold; white-space: pre-wrap; }
"""


class Log(NamedTuple):
  """A run's folder as the page needs it."""

  rows: list[dict[str, Any]]
  config: dict[str, Any]
  samples: list[dict[str, Any]]


def read_log(workdir: str | pathlib.Path) -> Log:
  """Reads a run's folder.

  Raises:
    UserError: if it holds no run, or a damaged file.
  """
  workdir = pathlib.Path(workdir)
  return Log(
    directory.read_rows(workdir),
    directory.read_config(workdir),
    _samples(workdir / directory.SAMPLES),
  )


def _samples(file: pathlib.Path) -> list[dict[str, Any]]:
  """What the page shows of a run's samples; none where there is no file."""
  try:
    shown = outside_files.read_json(file)
  except outside_files.MissingFile:
    return []
  if not (isinstance(shown, list) and all(map(_is_sample, shown))):
    raise UserError(
      f"{file} is damaged (it holds no list of samples): delete it"
    )
  return shown


def _is_sample(sample: Any) -> bool:
  if not isinstance(sample, dict):
    return False
  texts = [sample.get("prompt"), sample.get("tree")]
  before, after = sample.get("before"), sample.get("after")
  if not isinstance(before, list) or not isinstance(after, list):
    return False
  for answer in before + after:
    if not isinstance(answer, dict) or "correct" not in answer:
      return False
    number = outside_files.is_number(answer.get("reward"))
    if not number or answer["correct"] not in (True, False, None):
      return False
    texts.append(answer.get("text"))
  return all(isinstance(text, str) for text in texts)


def write(
  file: str | pathlib.Path, workdirs: dict[str, str | pathlib.Path], mode: str
) -> None:
  """Writes the page.

  Args:
    file: such as DIR/report.html; it appears whole.
    workdirs: folder of each run, by the name it is shown under.
    mode: of evaluation, such as mean@16.

  Raises:
    UserError: if a folder holds no run.
  """
  logs = {name: read_log(folder) for name, folder in workdirs.items()}
  curves = {n: curves_lib.read_curve(w, mode) for n, w in workdirs.items()}
  text = page(logs, curves, mode)
  directory.write_whole(pathlib.Path(file), text)


def page(
  logs: dict[str, Log], curves: dict[str, curves_lib.Curve], mode: str
) -> str:
  """Returns the page's HTML."""
  task = next(iter(logs.values())).config["task"]["__class__"]
  name = task.rpartition(".")[2].removesuffix("Config")
  parts = [
    f"<h1>{html.escape(' and '.join(logs))}: {html.escape(name)}</h1>",
    "<pre>" + html.escape(curves_lib.summary(curves, mode)) + "</pre>",
    "<p>Tokens are all tokens that a run fed to a model: prompts, search, "
    "rollouts, rescoring, and updates counted three times (forward and "
    "backward). ± is one standard error over held-out prompts.</p>",
    f"<h2>Held-out accuracy, {html.escape(mode)}</h2>",
    _grid(held_out_figures(curves)),
    "<h2>Training</h2>",
    _grid(training_figures(logs)),
  ]
  for run, log in logs.items():
    if log.samples:
      parts.append(f"<h2>{html.escape(run)}: held-out samples</h2>")
      parts += map(_sample, log.samples)
  for run, log in logs.items():
    parts += [
      f"<h2>{html.escape(run)}: settings</h2>",
      "<details><summary>config.json</summary><pre>",
      html.escape(json.dumps(log.config, indent=2)),
      "</pre></details>",
    ]
  return _document(" and ".join(logs), parts)


def comparison_page(
  table: str,
  curves: dict[str, curves_lib.Curve],
  mode: str,
  flops_per_token: dict[str, float],
  *,
  timed: bool,
) -> str:
  """Returns the HTML of a comparison: its table, and mean curves over seeds.

  Args:
    table: of text.
    curves: by method.
    mode: what their accuracy is.
    flops_per_token: by method.
    timed: whether the methods' seconds may be compared.
  """
  return _document(
    "comparison",
    [
      "<h1>Comparison of methods</h1>",
      f"<pre>{html.escape(table)}</pre>",
      "<p>steps to its last: update steps that tsd needs for the other's "
      "last accuracy, as a fraction of what the other needs; x at equal "
      "tokens: tsd's accuracy over the other's; in brackets 95 % bootstrap "
      "intervals over seeds; P: probability that a run of tsd beats one of the "
      "other at equal tokens; x tokens/step: what an update step of tsd costs "
      "in ledger tokens, over the other's. An update step has as many "
      "backward tokens for every method, up to whole rows. Bands are one "
      "standard error over seeds.</p>",
      f"<h2>Held-out accuracy, {html.escape(mode)}</h2>",
      _grid(held_out_figures(curves, flops_per_token, timed=timed)),
    ],
  )


def _document(title: str, parts: list[str]) -> str:
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>tsd_jax: {html.escape(title)}</title>"
    f"<style>{_STYLE}</style></head><body>"
    + "\n".join(parts)
    + "</body></html>"
  )


# What names a run is no mathematics, whatever signs are in it.
_plain_names = mpl.rc_context({"text.parse_math": False})


# It may lie over a curve where three of them fill the axes.
_LEGEND = {"framealpha": 0.8, "edgecolor": "none"}


@_plain_names
def held_out_figures(
  curves: dict[str, curves_lib.Curve],
  flops_per_token: dict[str, float] | None = None,
  *,
  timed: bool = True,
) -> list[Figure]:
  """Accuracy against iterations, tokens, seconds if timed, FLOPs if known."""
  axis_of: dict[str, Callable[[curves_lib.Curve, str], np.ndarray]] = {
    "iterations": lambda c, run: c.iterations,
    "ledger tokens (millions)": lambda c, run: c.tokens / 1e6,
  }
  if timed:
    axis_of["training seconds"] = lambda c, run: c.seconds
  if flops_per_token:
    axis_of["FLOPs (10^12)"] = lambda c, run: (
      c.tokens * flops_per_token[run] / 1e12
    )
  figures = []
  for label, axis in axis_of.items():
    figure, axes = _axes("Accuracy", label)
    for i, (run, curve) in enumerate(curves.items()):
      x, colour = axis(curve, run), _COLOURS[i % len(_COLOURS)]
      # Lines past the last colour are dashed.
      style = ("-", "--", ":")[min(i // len(_COLOURS), 2)]
      axes.plot(x, curve.accuracy, style, color=colour, label=run)
      low, high = (curve.accuracy + s * curve.stderr for s in (-1, 1))
      axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
    axes.set_ylim(bottom=0)
    if len(curves) > 4:  # It would hide what it names.
      figure.legend(
        frameon=False, fontsize=8, ncols=3, loc="outside lower center"
      )
    else:
      axes.legend(**_LEGEND)
    figures.append(figure)
  return figures


@_plain_names
def training_figures(logs: dict[str, Log]) -> list[Figure]:
  """One figure a group of metrics that some run has, and the ledger."""
  figures = []
  for title, metrics in _TRAINING:
    figure, axes = _axes(title, "iterations")
    for (run, log), colour in zip(logs.items(), _cycle(), strict=False):
      for metric, style in metrics.items():
        points = [
          (r["step"], r[metric])
          for r in log.rows
          if outside_files.is_number(r.get(metric))
        ]
        if points:
          label = run if len(metrics) == 1 else f"{run}: {metric}"
          axes.plot(
            *zip(*points, strict=True), style, color=colour, label=label
          )
    if axes.lines:
      axes.legend(**_LEGEND)
      figures.append(figure)
  figure, axes = _axes("Ledger by part", "million tokens")
  left = dict.fromkeys(logs, 0.0)
  parts = [k for k in next(iter(logs.values())).rows[-1]["ledger"]]
  for part, colour in zip(parts, _cycle(), strict=False):
    if part in ("total", "scored"):
      continue
    # An update costs a forward and twice as much backward.
    weight = 3e-6 if part == "update" else 1e-6
    widths = {
      n: weight * log.rows[-1]["ledger"].get(part, 0) for n, log in logs.items()
    }
    axes.barh(
      list(logs), list(widths.values()), left=list(left.values()),
      color=colour, label=part, height=0.5,
    )  # fmt: skip
    left = {n: left[n] + widths[n] for n in logs}
  axes.set_ylim(-0.6, len(logs) + 0.4)
  axes.legend(frameon=False, ncols=3, loc="upper center")
  return [*figures, figure]


def _cycle():
  while True:
    yield from _COLOURS


def _axes(title: str, x_label: str):
  figure = Figure(figsize=(4.2, 2.8), layout="constrained")
  axes = figure.subplots()
  axes.set_title(title, fontsize=10, loc="left")
  axes.set_xlabel(x_label, fontsize=9)
  axes.tick_params(labelsize=8)
  axes.spines[["top", "right"]].set_visible(False)
  axes.grid(alpha=0.25)
  return figure, axes


def to_svg(figure: Figure) -> str:
  """A figure as an element of a page, the same bytes every time."""
  buffer = io.StringIO()
  with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tsd_jax"}):
    figure.savefig(buffer, format="svg", metadata={"Date": None})
  text = buffer.getvalue()
  return text[text.index("<svg") :]


def _grid(figures: list[Figure]) -> str:
  return f'<div class="grid">{"".join(map(to_svg, figures))}</div>'


def _sample(sample: dict[str, Any]) -> str:
  def cell(r):
    kind = {True: "ok", False: "no", None: ""}[r["correct"]]
    text = html.escape(f"{r['text']}  ({r['reward']:.2f})")
    return f'<td class="{kind}">{text}</td>'

  rows = "".join(
    f"<tr>{cell(before)}{cell(after)}</tr>"
    for before, after in zip(sample["before"], sample["after"], strict=False)
  )
  return (
    f"<p class=prompt>{html.escape(sample['prompt'])}</p><table>"
    f"<tr><th>before (reward)</th><th>after</th></tr>{rows}</table>"
    "<details><summary>the tree searched around it</summary><pre>"
    f"{html.escape(sample['tree'])}</pre></details>"
  )
