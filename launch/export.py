"""Writes a run's model as a Hugging Face folder.

python -m launch.export --workdir=runs/tsd --output=exported
"""

from absl import flags

from tsd_jax import config as config_lib

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_OUTPUT = flags.DEFINE_string("output", None, "New folder.")


def main(overrides):
  """Reads the newest checkpoint and writes the folder."""
  del overrides  # There is no --config: the run's own is read.
  folder, output = map(config_lib.required, (_WORKDIR, _OUTPUT))
  # Imported late: a bad flag is refused before JAX starts.
  from tsd_jax import progress, runs
  from tsd_jax.models import hf

  progress.quiet_libraries()
  run = runs.open_run(folder)
  task = run.config.make_task()
  hf.save(
    output,
    run.config.model,
    run.params,
    task.tokenizer,
    max_length=task.prompt_length + task.response_length,
  )
  print(f"iteration {run.step} of {folder}: {output}")


if __name__ == "__main__":
  config_lib.run(main)
