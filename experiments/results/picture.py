"""Draws one iteration of the default experiment, for `docs/method.md`.

Prompts go down on the left through the search, on the right through the
policy's own samples, and meet in the loss. The counts are those of
`experiments/countdown.py`; `tests/figure_test.py` draws the picture again and
compares.

Command (a second): python -m experiments.results.picture
"""

from typing import NamedTuple

from experiments import countdown
from experiments.results.svg import write
from tsd_jax.base import config as config_lib
from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.run.experiment import Experiment

WIDTH, HEIGHT = 520, 556
LEFT, RIGHT, MIDDLE = 135, 385, 260  # Middles of the columns.
BOX = 220  # Width of a column's boxes.

_PI_S = 'π<tspan dy="3" font-size="9">s</tspan>'


class Theme(NamedTuple):
  """Colours."""

  text: str
  line: str
  box: str
  search: str
  solved: str
  sample: str


THEMES = {
  "light": Theme(
    "#24292f", "#8b949e", "#f3f5f8", "#0a58ca", "#1a7f45", "#c46200"
  ),
  "dark": Theme(
    "#d0d7de", "#768390", "#2a313a", "#58a6ff", "#56d37f", "#f0a04b"
  ),
}


def draw(experiment: Experiment, theme: str) -> str:
  """The picture as SVG.

  Args:
    experiment: whose iteration it is.
    theme: light or dark.
  """
  colours = THEMES[theme]
  return "\n".join(
    [
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
      f'width="{WIDTH}" height="{HEIGHT}" role="img" font-size="13" '
      'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, '
      f'sans-serif" fill="{colours.text}" text-anchor="middle">',
      "<title>One iteration of tree search distillation</title>",
      f'<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
      f'markerHeight="7" orient="auto" fill="{colours.line}">'
      '<path d="M0 0L8 4L0 8Z"/></marker>',
      *_left(experiment, colours),
      *_right(experiment, colours),
      *_loss(experiment, colours),
      "</svg>\n",
    ]
  )


def _left(experiment: Experiment, colours: Theme) -> list[str]:
  """Prompts, trees, champions."""
  count = experiment.rollout.prompts * experiment.search.width
  most = experiment.loss.distilled_prompts
  return [
    *_box(colours, MIDDLE, 10, 190, f"{count:,} prompts"),
    _arrow(colours, "M200 44V58H135V72"),
    *_box(colours, LEFT, 74, BOX, f"search model {_PI_S}", "grows their trees"),
    _arrow(colours, "M135 124V144"),
    *_tree(colours, 62, solved=4),
    *_tree(colours, 135, solved=None),
    *_tree(colours, 208, solved=5),
    _text(LEFT, 282, "solved, not solved, solved"),
    _arrow(colours, "M135 292V330"),
    *_box(
      colours, LEFT, 332, BOX, "champions: best answers",
      f"of up to {most} solved trees",
    ),
    _arrow(colours, "M135 382V416"),
  ]  # fmt: skip


def _right(experiment: Experiment, colours: Theme) -> list[str]:
  """Prompts, samples, advantages."""
  rollout = experiment.rollout
  assert isinstance(rollout, RolloutConfig)
  return [
    _arrow(colours, "M247 200H262V99H273"),
    *_box(
      colours, RIGHT, 74, BOX, f"{rollout.prompts} prompts whose",
      "success is least certain",
    ),
    _arrow(colours, "M385 124V144"),
    _text(RIGHT, 162, f"policy π: {rollout.samples} samples of each,"),
    _text(RIGHT, 180, f"{rollout.forks} of them forked"),
    *_samples(colours, rollout.samples, rollout.forks, rollout.fork_width),
    _arrow(colours, "M385 292V330"),
    *_box(colours, RIGHT, 332, BOX, "rewards of branches:", "tree advantages"),
    _arrow(colours, "M385 382V416"),
  ]  # fmt: skip


def _loss(experiment: Experiment, colours: Theme) -> list[str]:
  """The loss, the step, and who is copied from the new policy."""
  loss = experiment.learner_config().loss
  terms = [
    f"{loss.champion_weight:g} × cross-entropy of champions  +  "
    "clipped surrogate of samples"
  ]
  if loss.success_weight:
    terms += [f"+  {loss.success_weight:g} × success head"]
  steps = experiment.optimizer.minibatches * experiment.optimizer.epochs
  return [
    *_box(
      colours, MIDDLE, 418, 470, *terms,
    ),
    _arrow(colours, f"M260 {432 + 18 * len(terms)}V502"),
    _text(325, 490, f"{steps} steps of Adam"),
    *_box(colours, MIDDLE, 504, 190, "policy π"),
    _arrow(colours, "M165 521H12V99H23", dashed=True),
    _text(88, 540, "copied: next search"),
    _arrow(colours, "M355 521H508V158H482", dashed=True),
    _text(432, 540, "samples next"),
  ]  # fmt: skip


def _text(x: float, y: float, words: str) -> str:
  return f'<text x="{x:g}" y="{y:g}">{words}</text>'


def _box(
  colours: Theme, middle: float, top: float, width: float, *lines: str
) -> list[str]:
  """A box with a line of text, or two."""
  height = 16 + 18 * len(lines)
  return [
    f'<rect x="{middle - width / 2:g}" y="{top:g}" width="{width:g}" '
    f'height="{height}" rx="6" fill="{colours.box}" stroke="{colours.line}"/>',
    *(
      _text(middle, top + 21.5 + 18 * i, words) for i, words in enumerate(lines)
    ),
  ]


def _arrow(colours: Theme, path: str, dashed: bool = False) -> str:
  dashes = ' stroke-dasharray="4 4"' if dashed else ""
  return (
    f'<path d="{path}" fill="none" stroke="{colours.line}" '
    f'stroke-width="1.5"{dashes} marker-end="url(#tip)"/>'
  )


# Places of a tree's nodes, from its root, and the node above each.
_NODES = (
  *((0, 156), (-17, 190), (17, 190), (-28, 224), (-8, 224), (17, 224)),
  (-28, 256),
)
_ABOVE = (0, 0, 0, 1, 1, 2, 3)


def _tree(colours: Theme, x: float, solved: int | None) -> list[str]:
  """A tree; the path to the node that solves it is thick."""
  path = set()
  node = solved
  while node:
    path.add(node)
    node = _ABOVE[node]
  parts = []
  for i, (dx, y) in enumerate(_NODES[1:], 1):
    dx0, y0 = _NODES[_ABOVE[i]]
    on = i in path
    parts.append(
      f'<path d="M{x + dx0} {y0}L{x + dx} {y}" '
      f'stroke="{colours.solved if on else colours.search}" '
      f'stroke-width="{3 if on else 1.5}" opacity="{1 if on else 0.6}"/>'
    )
  for i, (dx, y) in enumerate(_NODES):
    good = i == solved
    parts.append(
      f'<circle cx="{x + dx}" cy="{y}" r="{7 if good else 5}" '
      f'fill="{colours.solved if good else colours.search}"/>'
    )
  return parts


def _samples(colours: Theme, samples: int, forks: int, width: int) -> list[str]:
  """Rows of a prompt; new rows leave those that are forked."""
  count = samples + forks * width
  gap = 84 / (count - 1)
  parts, row = [], 0
  for i in range(samples):
    y = 196 + gap * row
    parts.append(f"M300 {y:.1f}H470")
    row += 1
    for j in range(width if i < forks else 0):
      lower = 196 + gap * row
      parts.append(f"M370 {y:.1f}L{378 + 4 * j} {lower:.1f}H470")
      row += 1
  return [
    f'<path d="{"".join(parts)}" fill="none" stroke="{colours.sample}" '
    'stroke-width="2"/>'
  ]


def main(overrides):
  """Writes the picture for both themes."""
  del overrides
  write("iteration", lambda theme: draw(countdown.get_config(), theme))


if __name__ == "__main__":
  config_lib.run(main)
