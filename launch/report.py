"""Puts runs beside each other: one page, and figures for a paper.

python -m launch.report runs/tsd runs/grpo
python -m launch.report runs/tsd-0 runs/tsd-1 runs/tsd-2 runs/grpo-* \
  --out=page.html --figures=figures

Runs whose settings differ in the seed alone are one line with an interval. The
others are held against the run that is named first.
"""

from absl import flags

from tsd_jax.base import config as config_lib

_OUT = config_lib.path_flag("out", "report.html", "File of the page.")
_MODE = flags.DEFINE_string(
  "mode", None, "Of evaluation, such as mean@16; the first run's by default."
)
_FIGURES = config_lib.path_flag(
  "figures", None, "A folder that gets each figure as SVG, PNG and CSV."
)
_RUNS: list[str] = []


def main(overrides):
  """Reads the runs' folders and writes the page."""
  del overrides  # There is no --config: runs are shown as they were trained.
  if not _RUNS:
    raise config_lib.UserError(
      "no run is named: python -m launch.report RUN RUN…, folders of runs"
    )
  # Imported late: a bad flag is refused before JAX starts.
  from tsd_jax.comparison import side_by_side_page

  groups = side_by_side_page.write(
    _OUT.value, _RUNS, _MODE.value, _FIGURES.value
  )
  for group in groups:
    print(f"{group.name}: {', '.join(str(run.folder) for run in group.runs)}")
  print(f"page: {_OUT.value}")
  if _FIGURES.value is not None:
    print(f"figures: {_FIGURES.value}")


if __name__ == "__main__":
  config_lib.run(main, _RUNS)
