"""Writes a run's model as a Hugging Face folder.

python -m launch.export --workdir=runs/tsd --output=exported
"""

from absl import flags

from tsd_jax.base import config as config_lib

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_OUTPUT = flags.DEFINE_string("output", None, "New folder.")
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16", "float16"], "Of the tensors."
)


def main(overrides):
  """Reads the newest checkpoint and writes the folder."""
  del overrides  # There is no --config: the run's own is read.
  folder, output = map(config_lib.required, (_WORKDIR, _OUTPUT))
  # Imported late: a bad flag is refused before JAX starts.
  from tsd_jax.base import compilation_cache, progress
  from tsd_jax.models import hf
  from tsd_jax.run import load

  progress.quiet_libraries()
  compilation_cache.enable()
  run = load.open_run(folder)
  task = run.config.make_task()
  trains_value = run.config.learner_config().loss.success_weight > 0
  hf.save(
    output,
    run.config.model,
    run.params,
    task.tokenizer,
    max_length=load.max_positions(run.config),
    dtype=_DTYPE.value,
    value_trained=trains_value and run.step > 0,
  )
  print(f"iteration {run.step} of {folder}: {output}")


if __name__ == "__main__":
  config_lib.run(main)
