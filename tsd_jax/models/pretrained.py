"""Published models: a Hugging Face folder or a GGUF file, told by its path."""

import dataclasses
import pathlib
from typing import Any

from tsd_jax.base import paths
from tsd_jax.base.errors import UserError
from tsd_jax.models import assemble, families, gguf, hf
from tsd_jax.models.transformer import ModelConfig

# How a model is run, not which one it is: free to differ from the file's.
_RUNNING = (
  "number_tokens",
  "compute_dtype",
  "remat",
  "unroll_layers",
  "unroll_decode",
)


def is_pretrained(path: str | pathlib.Path) -> bool:
  """Whether a path means a published model, not parameters of our own."""
  return pathlib.Path(path).suffix != ".safetensors"


def read_card(path: str | pathlib.Path) -> families.Card:
  """Our shape of a published language model; its tensors stay unread.

  Raises:
    UserError: if there is none, or naming what our core has not.
  """
  card = read_any_card(path)
  if card.scores:
    raise UserError(
      f"{path} is a reward model, which writes nothing: name a language model"
    )
  return card


def read_any_card(path: str | pathlib.Path) -> families.Card:
  """`read_card` of a language model or a reward model."""
  path = checked(path)
  return hf.read_card(path) if path.is_dir() else gguf.open_file(path).card()


def load(
  path: str | pathlib.Path,
  *,
  config: ModelConfig | None = None,
  placement: assemble.Placement | None = None,
) -> tuple[ModelConfig, Any, Any]:
  """Reads a published model.

  Args:
    path: a folder with config.json and safetensors, or a GGUF file.
    config: how to run it; its shape must be the model's own. By default the
      model's own, in float32.
    placement: sharding of each parameter (`assemble.Placement`).

  Returns:
    ModelConfig, graphdef and params. Value outputs are read where the folder
    has them and start fresh where it has not.

  Raises:
    UserError: naming what is missing, damaged, unknown or of another shape.
  """
  path, found = checked(path), read_card(path).config
  if path.is_dir():
    heads = hf.read_heads(path)
  else:
    file, heads = gguf.open_file(path), None
  config = found if config is None else config
  check_same(config, found, path)
  stored = (
    hf.read_tensors(path, found) if path.is_dir() else file.tensors(found)
  )
  graphdef, params = assemble.assemble(
    config,
    stored,
    "hf" if path.is_dir() else "gguf",
    where=str(path),
    placement=placement,
    heads=heads,
  )
  return config, graphdef, params


def reward_shape(path: str | pathlib.Path) -> ModelConfig:
  """Shape of a reward model, which has no output matrix.

  Raises:
    UserError: if there is none, or it is a language model.
  """
  card = read_any_card(path)
  if not card.scores:
    raise UserError(
      f"{path} is a language model, no reward model: train one of it with "
      f"python -m launch.train_reward --model={path}"
    )
  return dataclasses.replace(card.config, tied_embeddings=True)


def load_reward(
  path: str | pathlib.Path,
) -> tuple[ModelConfig, Any, Any, hf.RewardHeads]:
  """Reads a reward model: ours, or a sequence classifier of one label.

  Args:
    path: a folder that `hf.save` or transformers wrote.

  Returns:
    ModelConfig, graphdef, params and its heads.

  Raises:
    UserError: naming what is missing, damaged, unknown or of another shape.
  """
  config, path = reward_shape(path), checked(path)
  pad = (hf.read_json(path / "config.json") or {}).get("pad_token_id")
  if pad is not None and pad in hf.ends(path)[1]:
    raise UserError(
      f"{path}: the padding token {pad} of config.json ends responses too, so "
      "that transformers reads rewards before their end, and we at it: set "
      "pad_token_id to another token"
    )
  stored = hf.read_tensors(path, config)
  heads = hf.read_reward_heads(path, stored, config.d_model)
  graphdef, params = assemble.assemble(config, stored, "hf", where=str(path))
  return config, graphdef, params, heads


def check_same(config: ModelConfig, found: ModelConfig, path: Any) -> None:
  """Compares shapes.

  Raises:
    UserError: naming the fields that differ.
  """
  ours, theirs = map(dataclasses.asdict, (config, found))
  odd = [
    f"{name}={ours[name]} (there {theirs[name]})"
    for name in ours
    if name not in _RUNNING and ours[name] != theirs[name]
  ]
  if odd:
    raise UserError(
      f"the config's model is not that of {path}: model.{', '.join(odd)}; set "
      "--config.model=none to take it from there"
    )


def checked(path: str | pathlib.Path) -> pathlib.Path:
  """A path that may hold a published model.

  Raises:
    UserError: if it is a pickle, or neither a folder nor a GGUF file.
  """
  path = paths.named(path)
  if path.suffix in hf.PICKLES:
    raise UserError(
      f"{path} is a pickle file, which runs code when read: convert the model "
      "to safetensors"
    )
  if not path.is_dir() and path.suffix != ".gguf":
    raise UserError(
      f"no model at {path}: name a Hugging Face folder or a .gguf file"
    )
  return path
