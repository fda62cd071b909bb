"""The page of runs beside each other: accuracy, problems, answers, settings."""

import html
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tsd_jax.base import outside_files
from tsd_jax.comparison import intervals, side_by_side, statistics
from tsd_jax.comparison.side_by_side import Group, Run
from tsd_jax.run import directory, drawing, figures, report

_SHOWN = 8  # Problems won, and as many lost, that are shown.


def write(
  file: str | pathlib.Path,
  folders: Sequence[str | pathlib.Path],
  mode: str | None = None,
  figures_to: str | pathlib.Path | None = None,
) -> list[Group]:
  """Writes the page, and figures for a paper.

  Args:
    file: the page; it appears whole.
    folders: of the runs.
    mode: of evaluation; the first run's headline if None.
    figures_to: a folder for SVG, PNG and CSV files; None: no files.

  Returns:
    What is compared.

  Raises:
    UserError: a folder holds no run, or none of this mode, or runs twice.
  """
  mode, groups = side_by_side.read(folders, mode)
  drawn = (
    side_by_side.accuracy(groups, mode),
    side_by_side.training(groups),
  )
  directory.write_whole(pathlib.Path(file), page(groups, mode, *drawn))
  if figures_to is not None:
    figures.write(figures_to, [f for part in drawn for f in part])
  return groups


def page(
  groups: Sequence[Group],
  mode: str,
  held_out: Sequence[drawing.Figure],
  trained: Sequence[drawing.Figure],
) -> str:
  """Returns the page's HTML.

  Args:
    groups: what is compared; the others are held against the first.
    mode: of evaluation.
    held_out: figures of accuracy.
    trained: figures of training.
  """
  title = ", ".join(group.name for group in groups)
  task = report.task_name(groups[0].runs[0].log.config)
  parts = [
    f"<h1>{html.escape(title)}: {html.escape(task)}</h1>",
    *_warnings(groups),
    _summary(groups, mode),
    "<h2>Held-out accuracy</h2>",
    drawing.grid(held_out),
    *_problems_part(groups, mode),
    "<h2>Training</h2>",
    drawing.grid(trained),
    *_samples_part(groups),
    "<h2>Settings</h2>",
    *_settings_part(groups),
  ]
  return report.document(title, parts)


def _warnings(groups: Sequence[Group]) -> list[str]:
  """What forbids to hold the runs against each other."""
  runs = [run for group in groups for run in group.runs]
  found = []
  if len({_held_out(run) for run in runs}) > 1:
    found.append(
      "The runs were measured on different problems: their accuracies say "
      "nothing of each other."
    )
  short = [run for run in runs if not run.log.finished]
  if short:
    names = ", ".join(
      f"{run.folder.name} (iteration {run.log.rows[-1]['step']})"
      for run in short
    )
    found.append(f"Not finished: {names}.")
  return [f"<p><strong>{html.escape(text)}</strong></p>" for text in found]


def _held_out(run: Run) -> str:
  """The digest of the problems that a run was measured on."""
  try:
    digests = outside_files.read_object(run.folder / directory.DATA)
  except outside_files.MissingFile:
    return ""
  settings = run.log.config.get("eval")
  split = settings.get("split") if isinstance(settings, Mapping) else None
  return str(digests.get(str(split)))


def _cells(values: Sequence[Any]) -> str:
  return "".join(f"<td>{html.escape(str(value))}</td>" for value in values)


def _summary(groups: Sequence[Group], mode: str) -> str:
  """The table at the top: where runs ended, what they took, who is ahead."""
  first = groups[0].name
  found = statistics.contrast({g.name: g.curves for g in groups}, ours=first)
  head = [
    "run", "seeds", "iterations", f"last {mode}", "M tokens", "M scored",
    "seconds",
  ]  # fmt: skip
  ratios = {
    "accuracy_at_equal_tokens": f"{first} ÷ this, equal tokens",
    "accuracy_at_equal_seconds": f"{first} ÷ this, equal seconds",
    "steps_to_target": f"steps of {first} to this",
  }
  rows = []
  for group in groups:
    mean = statistics.mean_curve(group.curves)
    cells = [
      group.name,
      ", ".join(str(run.seed) for run in group.runs),
      f"{mean.iterations[-1]:.0f}",
      _last(group, mode),
      f"{mean.tokens[-1] / 1e6:.2f}",
      f"{mean.scored[-1] / 1e6:.3f}",
      f"{mean.seconds[-1]:.0f}",
    ]
    for key in ratios if groups[1:] else ():
      pair = found[key].get(f"{first}/{group.name}")
      known = len(group.runs) > 1 and len(groups[0].runs) > 1
      if pair is not None and not known:
        pair = pair | {"ci95": [None, None]}
      cells.append(
        "" if pair is None else statistics.interval(pair, ".2f", "never")
      )
    rows.append(_cells(cells))
  head += list(ratios.values()) * bool(groups[1:])
  return (
    report.table(head, rows)
    + "<p>In brackets 95 % intervals: of accuracies over seeds and families of "
    "problems together, of ratios over seeds; one seed tells none. ÷: the "
    "accuracy of the run named first over that of this run. Steps to this: "
    "tokens that the first run's updates read until it has this run's last "
    "accuracy, as a fraction of those that this run took. Tokens are all that "
    "a run fed to a model, those of updates counted three times.</p>"
  )


def _last(group: Group, mode: str) -> str:
  """The last accuracy of a group, with an interval where runs tell one."""
  value = float(np.mean([curve.accuracy[-1] for curve in group.curves]))
  solved = side_by_side.answers(group, mode)
  if solved is None or not _tells(solved.y_SP, solved.group_P):
    return f"{value:.3f}"
  found = intervals.mean(solved.y_SP, solved.group_P)
  return f"{found.value:.3f} [{max(found.low, 0):.3f}, {found.high:.3f}]"


def _tells(y_SP: np.ndarray, group_P: np.ndarray) -> bool:
  """Whether there are enough runs and families for an interval."""
  return len(y_SP) > 1 and len(np.unique(group_P)) > 1


def _problems_part(groups: Sequence[Group], mode: str) -> list[str]:
  """What the first wins and loses problem by problem, what each learned."""
  each = {group.name: side_by_side.answers(group, mode) for group in groups}
  found = {name: kept for name, kept in each.items() if kept is not None}
  sides = [
    (name, s.y_SP, "start", s.start_SP, s)
    for name, s in found.items()
    if s.start_SP is not None
  ]
  first = found.get(groups[0].name)
  if first is not None:
    sides += [
      (groups[0].name, first.y_SP, name, s.y_SP, first)
      for name, s in found.items()
      if s is not first and s.prompts == first.prompts
    ]
  if not sides:
    return []
  head = ["", "better", "worse", "alike", "difference"]
  rows, lists = [], []
  for ours, y_SP, theirs, z_SP, solved in sides:
    gain_P = y_SP.mean(axis=0) - z_SP.mean(axis=0)
    better, worse = int((gain_P > 0).sum()), int((gain_P < 0).sum())
    rows.append(
      _cells([
        f"{ours} against {theirs}", better, worse,
        len(gain_P) - better - worse, _gain(y_SP, z_SP, solved.group_P),
      ])
    )  # fmt: skip
    lists.append(_furthest(ours, theirs, solved.prompts, y_SP, z_SP))
  return [
    f"<h2>Problem by problem, {html.escape(mode)}</h2>",
    report.table(head, rows),
    "<p>Of how many problems more, or less, is solved in the mean over seeds; "
    "the difference with a 95 % interval over seeds and families of problems "
    "where both sides have the same number of seeds.</p>",
    *lists,
  ]


def _gain(y_SP: np.ndarray, z_SP: np.ndarray, group_P: np.ndarray) -> str:
  value = float(y_SP.mean() - z_SP.mean())
  if len(y_SP) != len(z_SP) or not _tells(y_SP, group_P):
    return f"{value:+.3f}"
  found = intervals.difference(y_SP, z_SP, group_P)
  return f"{value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _furthest(
  ours: str,
  theirs: str,
  prompts: Sequence[str],
  y_SP: np.ndarray,
  z_SP: np.ndarray,
) -> str:
  """Problems on which two sides differ most, folded."""
  y_P, z_P = y_SP.mean(axis=0), z_SP.mean(axis=0)
  order = np.argsort(z_P - y_P, kind="stable").tolist()
  won = [p for p in order[:_SHOWN] if y_P[p] > z_P[p]]
  lost = [p for p in order[::-1][:_SHOWN] if y_P[p] < z_P[p]]
  rows = [
    f'<td class="answer">{html.escape(prompts[int(p)])}</td>'
    + _cells([f"{y_P[p]:.2f}", f"{z_P[p]:.2f}"])
    for p in [*won, *lost]
  ]
  title = html.escape(f"{ours} against {theirs}: the largest differences")
  return (
    f"<details><summary>{title}</summary>"
    + report.table(["problem", ours, theirs], rows)
    + "</details>"
  )


def _samples_part(groups: Sequence[Group]) -> list[str]:
  """What the first run of each group answers to the same prompts."""
  shown = {
    group.name: {s["prompt"]: s for s in group.runs[0].log.samples}
    for group in groups
    if group.runs[0].log.samples
  }
  if not shown:
    return []
  first, *others = shown.values()
  parts = ["<h2>Held-out samples</h2>"]
  for prompt, sample in first.items():
    if any(prompt not in other for other in others):
      continue
    columns = [sample["before"], *(s[prompt]["after"] for s in shown.values())]
    rows = [
      "".join(map(report.answer_cell, row))
      for row in zip(*columns, strict=False)
    ]
    parts += [
      f'<p class="prompt">{html.escape(prompt)}</p>',
      report.table(["start (reward)", *shown], rows),
      *(
        f"<details><summary>the tree of {html.escape(name)}</summary><pre>"
        f"{html.escape(samples[prompt]['tree'])}</pre></details>"
        for name, samples in shown.items()
      ),
    ]
  return parts if parts[1:] else []


def _settings_part(groups: Sequence[Group]) -> list[str]:
  """What differs, and each config."""
  firsts = [group.runs[0] for group in groups]
  differ = side_by_side.differences(firsts)
  parts = []
  if differ:
    rows = [_cells([field, *values]) for field, values in differ.items()]
    parts.append(report.table(["", *(g.name for g in groups)], rows))
  for group in groups:
    folders = ", ".join(str(run.folder) for run in group.runs)
    parts.append(f"<p>{html.escape(f'{group.name}: {folders}')}</p>")
    parts.append(report.settings(group.runs[0].log.config))
  return parts
