"""Writes RESULTS.md from the committed JSON, so that the two cannot disagree.

Every file of experiments/results/ becomes a section: what made it, what was
held against what, and its table with intervals. Nothing on the page is written
by hand; `tests/page_test.py` compares it with the files.

Command (a second): python -m experiments.results.page
"""

import json
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tsd_jax.base import config as config_lib
from tsd_jax.comparison import statistics as statistics_lib
from tsd_jax.comparison.statistics import interval

FOLDER = pathlib.Path(__file__).parent
PAGE = FOLDER.parent / "RESULTS.md"
_HEAD = """# Results

Made by `python -m experiments.results.page` from the files in `results/`; do
not edit. Intervals in brackets are of 95 %. Where the methods had trials of
their own they are over seeds and families of problems (columns of test
problems) or a jackknife over seeds (curves). Elsewhere they are bootstraps over
seeds, of both methods resampled independently: with few seeds too narrow, and
blind to the problems' being a sample. A single seed has none. An accuracy is
followed by the lowest and the highest seed. Commands are of their day: an
experiment's defaults may have changed since.

- **update step**: one optimiser step. Those that sample run as many tokens
  forward and backward in it, baselines rounded up to whole rows. Beside
  them stand the prompts that were sampled on, those whose champions were
  distilled, those that a tree was searched for, and the ledger tokens (every
  token that any model reads; one forward and backward counts three).
- **steps to its last**: tokens that the first method's update steps read until
  it has the other's last accuracy, over what the other's read until then; the
  ratio of their numbers where all steps are of one size, which stands under
  "counted" where they are not. Below 1 is better.
- **accuracy at equal tokens**: the first method's accuracy over the other's at
  the end of the shorter run, and at half of its tokens; above 1 is better.
  Where learning rates fall to 0 (three numbers, the maze, SmolLM2), both runs
  are then still amid their own schedule, as at another method's last accuracy.
- **the best of them**: by the mean of a run's last three evaluations.
- **P**: the probability that a run of the first beats one of the other at equal
  tokens.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A table of Markdown."""
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Sequence[float], form: str = ".3f") -> str:
  """A mean over seeds, with the lowest and the highest."""
  mean = format(statistics.fmean(values), form)
  if len(values) == 1:
    return mean
  return f"{mean} ({min(values):{form}}–{max(values):{form}})"


def verdict(
  found_of: Mapping[str, Any], limit: float, *, missing: float
) -> dict[str, list[str]]:
  """Sorts the other methods by where the interval of a ratio lies.

  Args:
    found_of: the ratio by pair, of a compare.json.
    limit: what the interval lies wholly below or above of, or holds.
    missing: what a missing end stands for.

  Returns:
    Names that lie below, above, and that are open.
  """
  places = {"below": [], "above": [], "open": []}
  for pair, found in found_of.items():
    low, high = (missing if x is None else x for x in found["ci95"])
    place = "below" if high < limit else "above" if low > limit else "open"
    places[place].append(pair.split("/")[1])
  return places


def judged(content: Mapping[str, Any]) -> list[str]:
  """Sections of a comparison whose methods had trials of their own."""
  settings = [["method", "settings"]]
  for name, row in content["methods"].items():
    chosen = ", ".join(f"{k} {v}" for k, v in row["settings"].items())
    settings.append([name, chosen])
  parts = [
    f"{statistics_lib.heading(content)} Settings were chosen by "
    f"{max(content['tuning_finished'].values())}, before a {content['split']} "
    "problem was read; an edge is a knob that had a value beside the best one "
    "untried.",
    *(
      table(head, rows)
      for head, *rows in (
        *statistics_lib.tables(content),
        settings,
        _updates(content),
      )
    ),
  ]
  if len(next(iter(content["methods"].values()))["seeds"]) > 1:
    ratios = content["ratios"]
    ours = next(iter(ratios["steps_to_target"])).split("/")[0]
    parts.append(_sure(ours, ratios))
  return parts


def _updates(content: Mapping[str, Any]) -> list[list[str]]:
  """What update steps read, and how many the first method needs."""
  methods = content["methods"]
  ours = next(iter(methods))
  read = {
    m: row["update_step"]["backward_tokens"] for m, row in methods.items()
  }
  rows = [
    ["method", "tokens a step reads", "ledger tokens an iteration",
     "of them searched", f"steps of {ours} to its last, counted"]
  ]  # fmt: skip
  for name, row in methods.items():
    spent, counted = row["an_iteration"], "–"
    if name != ours:
      found = content["ratios"]["steps_to_target"][f"{ours}/{name}"]
      scale = read[name] / read[ours]
      value, *ends = (
        None if x is None else x * scale
        for x in (found["value"], *found["ci95"])
      )
      counted = interval({"value": value, "ci95": ends}, ".2f", "never")
    rows.append(
      [
        name,
        f"{read[name]:,.0f}",
        f"{spent['total']:,.0f}",
        f"{spent['search'] / spent['total']:.3f}",
        counted,
      ]
    )
  return rows


def comparison(content: Mapping[str, Any]) -> list[str]:
  """Sections of a comparison of before methods had trials of their own."""
  methods, ratios = content["methods"], content["ratios"]
  mode = content["mode"]
  ours = next(iter(ratios["steps_to_target"])).split("/")[0]
  seeds = next(iter(methods.values()))["seeds"]
  swept = content.get("swept")
  conditions = (
    f"{content['task']}, {content['split']} problems, {mode}, seeds "
    f"{', '.join(map(str, seeds))}."
  )
  if swept and any(row.get("sweep") for row in methods.values()):
    values = ", ".join(next(iter(methods.values()))["sweep"])
    conditions += (
      f" Every method was first tried with {swept} of {values}, one other "
      "seed, on validation problems; the best of them is in the table."
    )
  step_of = {name: row["update_step"] for name, row in methods.items()}
  prompts = {step["prompts"] for step in step_of.values()}
  if prompts == {searched := step_of[ours].get("searched_prompts", 0)}:
    conditions += (
      f" Every method, so every baseline too, reads {searched:g} prompts in an "
      f"update step, as many as {ours} searches."
    )

  # Comparisons made before it was measured lack it.
  halfway = ratios.get("accuracy_at_half_the_tokens", {})

  def number(step: Mapping[str, float], name: str) -> str:
    """A number of a step; the steps of another library have not all of them."""
    return f"{step[name]:,.0f}" if name in step else "–"

  parts = [
    conditions,
    table(
      ["method", "last", "area", "iterations", "prompts/step", "distilled/step",
       "searched/step",
       "ledger tokens/step", "backward tokens/step", "s/iteration",
       *([swept] if swept else [])],
      [
        [
          name,
          spread([accuracy[-1] for accuracy in row[mode]]),
          spread(row["area"]),
          f"{row['iterations'][-1]:,.0f}",
          number(step_of[name], "prompts"),
          number(step_of[name], "distilled_prompts"),
          number(step_of[name], "searched_prompts"),
          number(step_of[name], "ledger_tokens"),
          number(step_of[name], "backward_tokens"),
          f"{row['seconds'][-1] / row['iterations'][-1]:.2f}",
          *([str(row[swept])] if swept else []),
        ]
        for name, row in methods.items()
      ],
    ),
    table(
      [f"{ours} against", "steps to its last", "accuracy at equal tokens",
       "at half of them", "difference of area", "P", "ledger tokens of a step"],
      [
        [
          pair.split("/")[1],
          interval(steps, ".2f", "never"),
          interval(ratios["accuracy_at_equal_tokens"][pair], ".2f"),
          interval(halfway[pair], ".2f") if pair in halfway else "–",
          interval(ratios["difference_of_area"][pair], "+.3f"),
          f"{ratios['probability_of_improvement'][pair]:.2f}",
          _cost(step_of[ours], step_of[pair.split("/")[1]]),
        ]
        for pair, steps in ratios["steps_to_target"].items()
      ],
    ),
  ]  # fmt: skip
  if len(seeds) > 1:
    parts.append(_sure(ours, ratios))
  return parts


def _cost(ours: Mapping[str, float], theirs: Mapping[str, float]) -> str:
  """What our update step costs, over theirs."""
  return f"×{ours['ledger_tokens'] / theirs['ledger_tokens']:.2f}"


def _sure(ours: str, ratios: Mapping[str, Any]) -> str:
  """What the intervals say, and what they leave open."""
  # A target that is never reached takes infinitely many steps; 0 / 0 is open.
  never, undefined = float("inf"), float("nan")
  steps_of = ratios["steps_to_target"]
  steps = verdict(steps_of, 1.0, missing=never)
  half = verdict(steps_of, 0.5, missing=never)["below"]
  tokens = verdict(ratios["accuracy_at_equal_tokens"], 1.0, missing=undefined)

  def names(found: Sequence[str]) -> str:
    return ", ".join(found) or "none"

  return (
    f"How sure: {ours} needs fewer steps than {names(steps['below'])} (less "
    f"than half: {names(half)}), more than {names(steps['above'])}; open: "
    f"{names(steps['open'])}. At equal tokens it is better than "
    f"{names(tokens['above'])}, worse than {names(tokens['below'])}; open: "
    f"{names(tokens['open'])}. Said where an interval lies wholly on one side."
  )


def law(points: Sequence[Mapping[str, Any]]) -> list[str]:
  """What TSD has over other methods, start by start."""
  columns = points[0]["ratios"]
  against = [(c, other) for c in columns for other in columns[c]]
  return [
    "What TSD has over another method at equal tokens, with its 95 % interval, "
    "from starts of which so many samples are right.",
    table(
      ["task", "start", "right", *(f"{c}, over {o}" for c, o in against)],
      [
        [
          point["task"],
          point["start"],
          f"{point['success']['mean']:.3f}",
          *(interval(point["ratios"][c][o], ".2f", "–") for c, o in against),
        ]
        for point in points
      ],
    ),
  ]


def ablations(content: Mapping[str, Any]) -> list[str]:
  """The table of switches."""
  mode, rows = content["mode"], content["rows"]

  def cell(row: Mapping[str, Any], name: str, form: str = ".2f") -> str:
    return interval(row[name], form, "never") if name in row else ""

  return [
    f"{content['task']}, {content['split']} problems, {mode}, seeds "
    f"{', '.join(map(str, content['seeds']))}; each line is the default (the "
    "recipe of experiments/countdown_balanced.py) with one change: update "
    "steps that it needs to reach the default's last accuracy, over the "
    "default's; its accuracy over the default's at equal tokens; the "
    "difference at equal steps.",
    table(
      [
        "change",
        mode,
        "steps to the default's last",
        "accuracy at equal tokens",
        "at equal steps",
        "tokens/iteration",
      ],
      [
        [
          name,
          spread(row[mode]),
          cell(row, "steps_to_target"),
          cell(row, "accuracy_at_equal_tokens"),
          cell(row, "difference_at_equal_steps", "+.3f"),
          f"{row['tokens_per_iteration']:,.0f}",
        ]
        for name, row in rows.items()
      ],
    ),
  ]


def searches(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Tokens that each search needs, and their ratios to sampling."""

  def cell(found: Mapping[str, Any] | None, form: str) -> str:
    return "–" if found is None else interval(found, form, "never")

  def half(row: Mapping[str, Any], other: str) -> Mapping[str, Any] | None:
    return row.get(f"tokens_ratio_vs_{other}", {}).get("at_50")

  return [
    "Tokens a prompt until a share of the prompts is solved; ratios to best of "
    "N and to sampling with a prefix cache, below 1 is better.",
    table(
      ["policy", "search", "tokens at 50 %", "tokens at 80 %",
       "vs best of N, 50 %", "vs cached sampling, 50 %", "prompts"],
      [
        [
          f"{row['task']}, {row['policy']}",
          row["method"],
          cell(row["tokens_at_50"], ",.0f"),
          cell(row["tokens_at_80"], ",.0f"),
          cell(half(row, "best_of_n"), ".2f"),
          cell(half(row, "cached_sampling"), ".2f"),
          str(row["prompts"]),
        ]
        for row in rows
      ],
    ),
  ]  # fmt: skip


def plain(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Any list of rows; a column for each name that some row has."""
  names = list(dict.fromkeys(name for row in rows for name in row))
  return [table(names, [[_cell(row.get(n)) for n in names] for row in rows])]


def _cell(value: Any) -> str:
  match value:
    case None:
      return "–"
    case bool() | str():
      return str(value)
    case int():
      return f"{value:,}"
    case float():
      return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    case {"value": _, "ci95": _}:
      return interval(value, ".3g")
    case Mapping():
      return ", ".join(f"{_cell(v)} of {k}" for k, v in value.items())
    case _:
      return ", ".join(map(_cell, value))


def section(name: str, content: Mapping[str, Any]) -> str:
  """One file's part of the page."""
  parts = [f"## {name}"]
  if about := content.get("about"):
    parts.append(about)
  if command := content.get("command"):
    parts.append(f"```\n{command}\n```")
  facts = [f"{k} {v}" for k, v in content.get("versions", {}).items()]
  facts += [content["device"]] if "device" in content else []
  if "training_seconds" in content:
    facts.append(f"{content['training_seconds'] / 60:,.0f} minutes of training")
  if facts:
    parts.append("; ".join(facts) + ".")
  match content:
    case {"points": [_, *_] as points}:
      parts += law(points)
    case {"methods": _, "ratios": _, "trials": _}:
      parts += judged(content)
    case {"methods": _, "ratios": _}:
      parts += comparison(content)
    case {"mode": _, "rows": Mapping()}:
      parts += ablations(content)
    case {"rows": [{"tokens_at_50": _}, *_] as rows}:
      parts += searches(rows)
    case {"rows": [_, *_] as rows} if all(isinstance(r, Mapping) for r in rows):
      parts += plain(rows)
    case _:
      parts.append(f"See `results/{name}.json`.")
  return "\n\n".join(parts)


def page(folder: pathlib.Path) -> str:
  """The whole page.

  Args:
    folder: of JSON files.

  Raises:
    UserError: if a file is damaged, or lacks what its kind needs.
  """
  sections = []
  for file in sorted(folder.glob("*.json")):
    try:
      sections.append(section(file.stem, json.loads(file.read_text())))
    except json.JSONDecodeError as error:
      raise config_lib.UserError(f"{file} is damaged: {error}") from error
    except KeyError as error:
      raise config_lib.UserError(
        f"{file} has no {error}: make it again with its command"
      ) from error
  return "\n\n".join([_HEAD.rstrip(), *sections]) + "\n"


def main(overrides):
  """Writes the page."""
  del overrides
  PAGE.write_text(page(FOLDER), encoding="utf-8")
  print(f"wrote {PAGE}")


if __name__ == "__main__":
  config_lib.run(main)
