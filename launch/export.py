"""Writes a run's model as a Hugging Face folder, or as a GGUF file.

python -m launch.export --workdir=runs/tsd --output=exported
python -m launch.export --workdir=runs/tsd --output=tsd.gguf --format=gguf
"""

from absl import flags

from tsd_jax.base import config as config_lib
from tsd_jax.base.errors import UserError

_WORKDIR = config_lib.path_flag("workdir", None, "Folder of the run.")
_OUTPUT = config_lib.path_flag("output", None, "New folder or file.")
_FORMAT = flags.DEFINE_enum(
  "format", "huggingface", ["huggingface", "gguf"], "A folder, or a file."
)
_DTYPE = flags.DEFINE_enum(
  "dtype",
  "float32",
  ["float32", "bfloat16", "float16", "q8_0"],
  "Of the tensors; q8_0, 8 bits a number, in GGUF files alone.",
)


def main(overrides):
  """Reads the newest checkpoint and writes the folder."""
  del overrides  # There is no --config: the run's own is read.
  folder, output = map(config_lib.required, (_WORKDIR, _OUTPUT))
  if _DTYPE.value == "q8_0" and _FORMAT.value != "gguf":
    raise UserError("--dtype=q8_0 is a format of GGUF files: add --format=gguf")
  # Imported late: a bad flag is refused before JAX starts.
  from tsd_jax.base import compilation_cache, progress
  from tsd_jax.models import gguf_export, hf, weights
  from tsd_jax.run import load

  progress.quiet_libraries()
  compilation_cache.enable()
  run = load.open_run(folder)
  task = run.config.make_task()
  said = {
    "max_length": load.max_positions(run.config),
    "dtype": _DTYPE.value,
  }
  model = (run.config.model, run.params, task.tokenizer)
  if _FORMAT.value == "gguf":
    gguf_export.save(output, *model, **said)
  else:
    trained = weights.value_trained(run.params)
    hf.save(output, *model, **said, value_trained=trained)
  print(f"iteration {run.step} of {folder}: {output}")


if __name__ == "__main__":
  config_lib.run(main)
