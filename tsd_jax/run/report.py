"""report.html: one page of plots, samples and settings from a run's folder.

Everything is read from the folder, so that a page can be made again at any
time, while the run goes on too: then it loads itself again.
"""

import html
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tsd_jax.base import outside_files
from tsd_jax.base.errors import UserError
from tsd_jax.run import audit as audit_lib
from tsd_jax.run import curves as curves_lib
from tsd_jax.run import directory, drawing, plots
from tsd_jax.run.plots import Log

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  padding: 0 1rem; max-width: 74rem; color: var(--ink);
  background: var(--page); }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
h3 { font-size: 1rem; } .alarm { font-weight: 600; color: var(--c1); }
h2 { font-size: 1.15rem; margin-top: 2.4rem; overflow-wrap: anywhere; }
pre { background: var(--box); padding: .8rem; overflow-x: auto;
  font-size: 12.5px; line-height: 1.35; border-radius: 4px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem 1.2rem .2rem 0; text-align: left;
  vertical-align: top; } th { font-weight: 600; font-size: .88rem; }
tbody td { border-top: 1px solid var(--rule); }
td:not(:first-child, .answer) { white-space: nowrap; }
.ok { color: var(--good); } .no { color: var(--faint); }
.ok::before { content: "✓ "; } .no::before { content: "✗ "; }
.answer { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 9rem;
  font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .85rem; }
.prompt { font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere;
  margin: 1.4rem 0 .3rem; }
.state { color: var(--faint); } summary { cursor: pointer; }
"""
_REFRESH_SECONDS = 20  # How often a page of a run that goes on loads itself.


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
    directory.floor(workdir),
    directory.finished(workdir),
    audit_lib.read_rejected(workdir),
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
  file: str | pathlib.Path, name: str, workdir: str | pathlib.Path, mode: str
) -> None:
  """Writes the page of a run.

  Args:
    file: such as DIR/report.html; it appears whole.
    name: what the run is called.
    workdir: its folder.
    mode: of evaluation, such as mean@16.

  Raises:
    UserError: if the folder holds no run.
  """
  log, curve = read_log(workdir), curves_lib.read_curve(workdir, mode)
  directory.write_whole(pathlib.Path(file), page(name, log, curve, mode))


def page(name: str, log: Log, curve: curves_lib.Curve, mode: str) -> str:
  """Returns the page's HTML."""
  floors = {} if log.floor is None else {name: log.floor}
  parts = [
    f"<h1>{html.escape(name)}: {html.escape(task_name(log.config))}</h1>",
    _state(log),
    "<pre>" + html.escape(curves_lib.summary({name: curve}, mode)) + "</pre>",
    "<p>Tokens are all tokens that a run fed to a model: prompts, search, "
    "rollouts, rescoring, and updates counted three times (forward and "
    "backward). ± is one standard error over held-out prompts.</p>",
    "<h2>Held-out accuracy</h2>",
    drawing.grid(plots.held_out({name: curve}, mode, floors=floors)),
    "<h2>Training</h2>",
    drawing.grid([*plots.training({name: log}), plots.ledger({name: log})]),
  ]
  if made_of := plots.reward_parts({name: log}):
    parts += ["<h2>What the reward is made of</h2>", drawing.grid(made_of)]
  parts += _audit(log)
  if log.samples:
    parts.append("<h2>Held-out samples</h2>")
    parts += map(_sample, log.samples)
  parts += ["<h2>Settings</h2>", settings(log.config)]
  return document(name, parts, refresh=0 if log.finished else _REFRESH_SECONDS)


def task_name(config: Mapping[str, Any]) -> str:
  """What a page calls a run's task."""
  return config["task"]["__class__"].rpartition(".")[2].removesuffix("Config")


def _state(log: Log) -> str:
  """How far a run is that has not ended."""
  if log.finished:
    return ""
  step, of = log.rows[-1]["step"], log.config.get("iterations")
  return (
    f'<p class="state">Iteration {step} of {html.escape(str(of))}. The run '
    "has not ended: the page loads itself again every "
    f"{_REFRESH_SECONDS} seconds.</p>"
  )


def _audit(log: Log) -> list[str]:
  """What a second verifier says, and which well-paid answers it rejects."""
  drawn = plots.audit(log)
  if not drawn:
    return []
  warned = [
    f'<p class="alarm">Iteration {step}: {html.escape(why)}.</p>'
    for step, why in plots.alarms(log)
  ]
  parts = ["<h2>Audit: what a second verifier says</h2>", *warned]
  parts.append(drawing.grid(drawn))
  if log.rejected:
    rows = [
      f'<td class="answer">{html.escape(answer["prompt"])}</td>'
      + answer_cell({**answer, "correct": False})
      for answer in log.rejected
    ]
    parts += [
      "<h3>The best-paid answers that it rejects</h3>",
      table(["prompt", "answer (paid)"], rows),
    ]
  return parts


def settings(config: Mapping[str, Any]) -> str:
  """A config, folded."""
  return (
    "<details><summary>config.json</summary><pre>"
    + html.escape(json.dumps(config, indent=2))
    + "</pre></details>"
  )


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
  return document(
    "comparison",
    [
      "<h1>Comparison of methods</h1>",
      f"<pre>{html.escape(table)}</pre>",
      "<p>steps to its last: tokens that tsd's update steps read until it has "
      "the other's last accuracy, as a fraction of what the other's read until "
      "then (the ratio of their numbers where steps are of one size); x at "
      "equal tokens: tsd's accuracy over the other's; in brackets 95 % "
      "intervals, of columns over seeds and families of problems, of curves a "
      "jackknife over seeds; P: probability that a run of tsd beats one of the "
      "other at equal tokens.</p>",
      "<h2>Held-out accuracy</h2>",
      drawing.grid(
        plots.held_out(
          curves,
          mode,
          bands="Bands are one standard error over seeds.",
          flops_per_token=flops_per_token,
          timed=timed,
        )
      ),
    ],
  )


def document(title: str, parts: Sequence[str], *, refresh: int = 0) -> str:
  """A whole page.

  Args:
    title: of its tab.
    parts: of its body.
    refresh: after how many seconds it loads itself again; 0: never.
  """
  again = f'<meta http-equiv="refresh" content="{refresh}">' * bool(refresh)
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"{again}<title>tsd_jax: {html.escape(title)}</title>"
    f"<style>{drawing.STYLE}{_STYLE}</style></head><body>"
    + "\n".join(parts)
    + "</body></html>\n"
  )


def answer_cell(answer: Mapping[str, Any]) -> str:
  """A cell of a table: a response, its reward, and whether it is right."""
  kind = {True: "ok", False: "no", None: ""}[answer["correct"]]
  # Apart: a text that runs from right to left would turn its reward round.
  text = f"<bdi>{html.escape(answer['text'])}</bdi>"
  return f'<td class="answer {kind}">{text}  ({answer["reward"]:.2f})</td>'


def table(head: Sequence[str], rows: Sequence[str]) -> str:
  """A table of rows of cells, scrolled by itself where it is too wide."""
  names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
  body = "".join(f"<tr>{row}</tr>" for row in rows)
  return (
    f'<div class="wide"><table><thead><tr>{names}</tr></thead>'
    f"<tbody>{body}</tbody></table></div>"
  )


def _sample(sample: Mapping[str, Any]) -> str:
  rows = [
    answer_cell(before) + answer_cell(after)
    for before, after in zip(sample["before"], sample["after"], strict=False)
  ]
  return (
    f'<p class="prompt">{html.escape(sample["prompt"])}</p>'
    + table(["before (reward)", "after"], rows)
    + "<details><summary>the tree searched around it</summary><pre>"
    f"{html.escape(sample['tree'])}</pre></details>"
  )
