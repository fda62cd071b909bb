"""Flags of the commands that run another library beside ours."""

from absl import flags

# A test process imports several scripts with flags of these names.
CONFIG = flags.DEFINE_string(
  "config",
  "experiments/countdown_balanced.py",
  "Experiment file.",
  allow_override=True,
)
WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of all runs.", allow_override=True
)
SEEDS = flags.DEFINE_list(
  "seeds", ["0", "1"], "Seeds of both libraries.", allow_override=True
)
OUTPUT = flags.DEFINE_string(
  "output", None, "JSON to write.", allow_override=True
)
