"""Hugging Face folders: written so that transformers loads them, and read.

The value outputs, which transformers does not know, travel beside the model in
their own file. So do the heads of a reward model: what transformers reads of it
is a sequence classifier of one label, their mean.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np

from tsd_jax.base import output_files, outside_files, paths
from tsd_jax.base.errors import UserError
from tsd_jax.models import assemble, families, names, weights
from tsd_jax.models.tokenizer import Tokenizer, response_pad
from tsd_jax.models.transformer import ModelConfig

Dtype = Literal["float32", "bfloat16", "float16"]

VALUE_HEADS = "value_heads.safetensors"
REWARD_HEADS = "reward_heads.safetensors"
SCORE = "score.weight"  # The one that transformers reads.
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# What early Llama files hold beside the weights.
_FREQUENCIES = re.compile(
  r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
)
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_ADAPTER = "adapter_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_READ = ("F32", "BF16", "F16")  # Storage formats, in safetensors' words.
MAX_FILE_BYTES = 5 * 10**9  # As transformers splits large models.


class RewardHeads(NamedTuple):
  """What makes rewards of the hidden state at a response's last token.

  Head k says w_k h; what its answers are in the mean is taken off.
  """

  score_KD: np.ndarray  # float32, w.
  centre_K: np.ndarray  # float32, the mean over some responses.


def read_card(folder: str | pathlib.Path) -> families.Card:
  """Our shape of a folder's model, a language model or a reward model.

  Raises:
    UserError: if there is none, or naming what our core has not.
  """
  file = pathlib.Path(folder) / "config.json"
  saved = read_json(file)
  if saved is None:
    raise UserError(f"no model in {folder}: config.json is missing")
  if outside_files.is_there(pathlib.Path(folder) / _ADAPTER):
    raise UserError(
      f"{folder} holds an adapter ({_ADAPTER}): merge it into the model first"
    )
  try:
    return families.from_hf(saved)
  except UserError as error:
    raise UserError(f"{folder}: {error}") from error


def read_json(file: pathlib.Path) -> dict[str, Any] | None:
  """Content of a JSON file; None if there is none.

  Raises:
    UserError: if it is damaged, or no object.
  """
  try:
    return outside_files.read_object(file)
  except outside_files.MissingFile:
    return None


def ends(folder: str | pathlib.Path) -> tuple[str, tuple[int, ...]]:
  """Tokens at which transformers ends a reply, and the file that says so.

  Without a `generation_config.json` that is `config.json`. There are none where
  the file names none: a reply goes on to its longest then.

  Raises:
    UserError: the file is damaged, or names what is no token.
  """
  for name in ("generation_config.json", "config.json"):
    file = pathlib.Path(folder) / name
    saved = read_json(file)
    if saved is None:
      continue
    said = saved.get("eos_token_id")
    ids = said if isinstance(said, list) else [] if said is None else [said]
    if not all(type(i) is int and i >= 0 for i in ids):
      raise UserError(
        f"{file}: eos_token_id={said!r:.60} is neither a token nor a list"
      )
    return str(file), tuple(ids)
  return "", ()


def read_tensors(
  folder: str | pathlib.Path, config: ModelConfig
) -> dict[str, assemble.Stored]:
  """The tensors of a folder, to be read later.

  Raises:
    UserError: naming a file that is missing, damaged or a pickle, or a tensor
      of a format that is not read.
  """
  stored: dict[str, assemble.Stored] = {}
  for file in _model_files(pathlib.Path(folder)):
    for name, tensor in _open(file).items():
      if name in stored:
        raise UserError(f"{file} and {stored[name].file} both have {name}")
      stored[name] = tensor
  if config.tied_embeddings and _HEAD in stored:
    _check_tied(stored, folder)
  for name in [name for name in stored if _FREQUENCIES.fullmatch(name)]:
    _check_frequencies(name, stored.pop(name), config)
  return stored


def _check_tied(stored: dict[str, assemble.Stored], folder: Any) -> None:
  """Drops a tied matrix that is stored twice, once it is the same.

  Raises:
    UserError: it is not, so that config and tensors are of two models.
  """
  head, embedding = stored.pop(_HEAD), stored.get(_EMBEDDING)
  if embedding is not None and _digest(head) != _digest(embedding):
    raise UserError(
      f"config.json of {folder} says that {_HEAD} is {_EMBEDDING} "
      f"(tie_word_embeddings=true), but {head.file} has another matrix: "
      "transformers would compute with both (tie_word_embeddings=false says so)"
    )


def _digest(tensor: assemble.Stored) -> bytes:
  """A tensor's values; one after the other, so that two take no more room."""
  array = np.ascontiguousarray(tensor.read(), np.float32)
  return hashlib.blake2b(array.data, digest_size=16).digest()


def _check_frequencies(
  name: str, tensor: assemble.Stored, config: ModelConfig
) -> None:
  """Compares rotary frequencies in a file, which nothing reads, with ours.

  Raises:
    UserError: they are of another model than the config.
  """
  same = tuple(tensor.shape) == (-(-config.head_dim // 2),)
  if same:
    exponent_E = np.arange(0, config.head_dim, 2) / config.head_dim
    wanted_E = config.rope_theta**-exponent_E
    found_E = np.asarray(tensor.read(), np.float64)
    # They may have gone through half precision.
    same = np.allclose(found_E, wanted_E, rtol=1e-2, atol=1e-7)
  if not same:
    raise UserError(
      f"{tensor.file}: {name} has other rotary frequencies than config.json "
      f"with rope_theta={config.rope_theta}: the config is of another model"
    )


def read_heads(folder: str | pathlib.Path) -> dict[str, np.ndarray] | None:
  """Value outputs by our names; None where the folder has none.

  Raises:
    UserError: if the file is damaged.
  """
  file = pathlib.Path(folder) / VALUE_HEADS
  if not outside_files.is_there(file):
    return None
  return {name: tensor.read() for name, tensor in _open(file).items()}


def read_reward_heads(
  folder: str | pathlib.Path, stored: dict[str, assemble.Stored], width: int
) -> RewardHeads:
  """The heads of a reward model; the one of another maker's is not centred.

  Args:
    folder: the model's.
    stored: its tensors, of which the head is taken out.
    width: D.

  Raises:
    UserError: there is no head, or several labels, it is of another model or
      no finite number, or what we read is not what transformers would read.
  """
  tensor = stored.pop(SCORE, None)
  if tensor is None or tuple(tensor.shape) != (1, width):
    found = "none" if tensor is None else list(tensor.shape)
    raise UserError(
      f"{folder}: {SCORE} is {found}, a reward model's is {[1, width]}: name a "
      "classifier of one label"
    )
  score_1D = np.asarray(tensor.read(), np.float32)
  heads = RewardHeads(score_1D, np.zeros(1, np.float32))
  file = pathlib.Path(folder) / REWARD_HEADS
  if outside_files.is_there(file):
    own = {name: tensor.read() for name, tensor in _open(file).items()}
    shapes = {name: array.shape for name, array in own.items()}
    members = shapes.get("score_KD", (0,))[0]
    wanted = {"score_KD": (members, width), "centre_K": (members,)}
    if not members or shapes != wanted:
      raise UserError(f"{file} holds {shapes}: heads of another reward model")
    heads = RewardHeads(**own)
    # In half precision, at the coarsest.
    if not np.allclose(heads.score_KD.mean(axis=0), score_1D, 0.01, 1e-4):
      raise UserError(
        f"{file} holds other heads than {SCORE} of the model: remove one"
      )
  if not all(np.isfinite(array).all() for array in heads):
    raise UserError(f"{folder}: its head holds values that are no numbers")
  return heads


def value_trained(folder: str | pathlib.Path) -> bool:
  """Whether a model comes with value outputs whose V_search was trained."""
  file = pathlib.Path(folder) / VALUE_HEADS
  if not outside_files.is_there(file):
    return False
  metadata = weights.open_file(file).metadata() or {}
  return metadata.get("value_trained") == "true"


def _model_files(folder: pathlib.Path) -> list[pathlib.Path]:
  index = read_json(folder / _INDEX)
  if index is not None:
    try:
      listed = sorted(set(index["weight_map"].values()))
    except (KeyError, TypeError, AttributeError):
      raise UserError(f"{folder / _INDEX} has no weight_map") from None
    if listed != [_SINGLE] and outside_files.is_there(folder / _SINGLE):
      raise UserError(
        f"{folder} holds two models: {_SINGLE}, and {listed[0]} of "
        f"{_INDEX}: remove one of them (transformers reads {_SINGLE})"
      )
    for name in listed:
      # A name with a folder in it could point outside.
      if not isinstance(name, str) or pathlib.PurePath(name).name != name:
        raise UserError(f"{folder / _INDEX} names {name!r}: no file beside it")
      if not outside_files.is_there(folder / name):
        raise UserError(f"{folder} lacks {name}, which {_INDEX} names")
    return [folder / name for name in listed]
  if outside_files.is_there(folder / _SINGLE):
    return [folder / _SINGLE]
  pickles = [f.name for f in folder.iterdir() if f.suffix in PICKLES]
  if pickles:
    raise UserError(
      f"{folder} holds pickle files ({', '.join(sorted(pickles)[:3])}), which "
      "run code when read: convert the model to safetensors"
    )
  raise UserError(f"no model in {folder}: {_SINGLE} is missing")


def _open(file: pathlib.Path) -> dict[str, assemble.Stored]:
  """The tensors of a safetensors file; the header is checked at once."""
  opened = weights.open_file(file)
  slices = {name: opened.get_slice(name) for name in opened.keys()}
  for name, tensor in slices.items():
    if tensor.get_dtype() not in _READ:
      raise UserError(
        f"{file}: {name} is stored as {tensor.get_dtype()}; only "
        f"{', '.join(_READ)} are read"
      )

  def stored(name: str) -> assemble.Stored:
    return assemble.Stored(
      str(file),
      tuple(slices[name].get_shape()),
      lambda: opened.get_tensor(name),
    )

  return {name: stored(name) for name in slices}


def _new_folder(path: str | pathlib.Path) -> pathlib.Path:
  """A folder that is not there, or is empty."""
  folder = paths.named(path)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f"--output={folder} is not empty: name a new folder")
  if not folder.name:
    raise UserError(f"--output={folder} has no name: name a new folder")
  return folder


def save(
  folder: str | pathlib.Path,
  config: ModelConfig,
  params: Any,
  tokenizer: Tokenizer,
  *,
  max_length: int,
  dtype: Dtype = "float32",
  generation: Mapping[str, Any] | None = None,
  value_trained: bool = False,
  reward: RewardHeads | None = None,
  max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
  """Writes a folder that transformers loads; it appears whole or not at all.

  Args:
    folder: must not exist, or be empty.
    config: shape of the model.
    params: its parameters.
    tokenizer: ids of the special tokens, and its own files.
    max_length: positions that the model was trained on.
    dtype: of the tensors; value outputs stay float32.
    generation: content of generation_config.json; sampling at temperature 1
      to the tokenizer's end tokens by default.
    value_trained: whether the run trained V_search.
    reward: heads of a reward model, whose output matrix is left out.
    max_file_bytes: larger models are split over several files.

  Raises:
    UserError: if the folder holds something or cannot be written, for another
      dtype, or if a parameter is not finite in this precision.
  """
  if dtype not in get_args(Dtype):
    raise UserError(f"{dtype=} must be one of {', '.join(get_args(Dtype))}")
  folder = _new_folder(folder)
  ends, files = tokenizer.end_ids, dict(tokenizer.huggingface_files())
  tokens = {
    "bos_token_id": tokenizer.bos_id,
    "eos_token_id": ends[0] if len(ends) == 1 else list(ends),
    "pad_token_id": tokenizer.pad_id,
  }
  if reward is not None:
    tokens["pad_token_id"], files = _padded_apart(tokenizer)
  files["config.json"] = to_json(
    families.to_hf(
      config, max_length=max_length, dtype=dtype, tokens=tokens,
      scores=reward is not None,
    )
  )  # fmt: skip
  if reward is None:
    if generation is None:
      generation = tokens | {"do_sample": True, "temperature": 1.0}
    files["generation_config.json"] = to_json(generation)
  leaves = weights.by_name(params)
  for name, leaf in leaves.items():
    kept = jnp.float32 if names.is_value(name) else jnp.dtype(dtype)
    weights.check_fits(f"--dtype={dtype}", name, leaf, kept)
  heads = {k: np.asarray(v) for k, v in leaves.items() if names.is_value(k)}
  facts = {"value_trained": "true" if value_trained else "false"}
  others: dict[str, np.ndarray] = {}
  if reward is not None:
    heads = {k: np.asarray(v, np.float32) for k, v in reward._asdict().items()}
    others[SCORE] = heads["score_KD"].mean(axis=0, keepdims=True)
  partial = folder.with_name(folder.name + ".partial")
  with output_files.writing(f"--output={folder}"):
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
      for name, text in files.items():
        (partial / name).write_text(text, encoding="utf-8")
      _save_tensors(
        partial, config, leaves, others, jnp.dtype(dtype), max_file_bytes
      )
      name = VALUE_HEADS if reward is None else REWARD_HEADS
      weights.save_tensors(heads, partial / name, facts)
      os.replace(partial, folder)
    finally:  # After a success there is nothing.
      shutil.rmtree(partial, ignore_errors=True)


def _padded_apart(tokenizer: Tokenizer) -> tuple[int | None, dict[str, str]]:
  """A padding token that ends no response, and tokenizer files that say so.

  transformers reads a reward at the last token that is no padding: where the
  end token is the padding too, that is not the end. None where there is no such
  token: then transformers refuses batches.
  """
  files, pad = dict(tokenizer.huggingface_files()), response_pad(tokenizer)
  if pad not in tokenizer.special_ids:
    return None, files
  if pad != tokenizer.pad_id:
    added = json.loads(files["tokenizer.json"])["added_tokens"]
    content = next(t["content"] for t in added if t["id"] == pad)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
      if name in files:
        said = json.loads(files[name]) | {"pad_token": content}
        files[name] = to_json(said)
  return pad, files


def to_json(content: Mapping[str, Any]) -> str:
  """A file's text."""
  return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _save_tensors(
  folder, config, leaves, others, dtype, max_file_bytes
) -> None:
  """Writes the model a file at a time, each gathered just before.

  `others`, by their names, are in the last one.
  """
  files = list(_split(config, dtype.itemsize, max_file_bytes))
  weight_map, total = {}, 0
  for number, pieces in enumerate(files, 1):
    name = f"model-{number:05}-of-{len(files):05}.safetensors"
    name = _SINGLE if len(files) == 1 else name
    arrays = {}
    for piece in pieces:
      leaf = leaves[piece.ours]
      array = np.asarray(leaf if piece.layer is None else leaf[piece.layer])
      arrays[piece.theirs] = np.ascontiguousarray(
        piece.to_theirs(array), dtype=dtype
      )
      weight_map[piece.theirs] = name
      total += arrays[piece.theirs].nbytes
    for theirs, array in others.items() if number == len(files) else ():
      arrays[theirs] = array.astype(dtype)
      weight_map[theirs] = name
      total += arrays[theirs].nbytes
    # transformers refuses a file that does not say which framework wrote it.
    weights.save_tensors(arrays, folder / name, {"format": "pt"})
  if len(files) > 1:
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / _INDEX).write_text(to_json(index), encoding="utf-8")


def _split(
  config: ModelConfig, itemsize: int, limit: int
) -> Iterator[list[names.Piece]]:
  """Groups tensors into files of at most `limit` bytes, or of one tensor."""
  group: list[names.Piece] = []
  size = 0
  for piece in sorted(
    names.pieces(config, "hf"), key=lambda piece: piece.layer or 0
  ):
    new = int(np.prod(piece.shape)) * itemsize
    if group and size + new > limit:
      yield group
      group, size = [], 0
    group.append(piece)
    size += new
  yield group
