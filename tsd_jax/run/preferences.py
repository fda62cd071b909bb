"""From files of pairs to a reward model, or a policy by DPO, and its measures.

Both read, check, train, measure on held-out pairs and write a model's folder:
DIR/model, and DIR/measured.json beside it. Until then DIR/checkpoints has what
a training has come to, and the same command goes on from there.
"""

import contextlib
import dataclasses
import json
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tsd_jax.base import output_files, outside_files, paths
from tsd_jax.base.errors import UserError
from tsd_jax.learning import preference
from tsd_jax.models import assemble, hf, pretrained, transformer, weights
from tsd_jax.models.text_tokenizer import TextTokenizer
from tsd_jax.models.tokenizer import response_pad
from tsd_jax.models.transformer import ModelConfig
from tsd_jax.run import directory, pair_measures
from tsd_jax.run.checkpoint import Checkpointer
from tsd_jax.tasks import pairs as pairs_lib
from tsd_jax.tasks.pairs import Pairs
from tsd_jax.tasks.text_lines import load_tokenizer

MODEL, MEASURED = "model", "measured.json"
_CENTRED_ON = 1_024  # Pairs, of which a head's mean is taken.


@dataclasses.dataclass(frozen=True)
class Files:
  """What is read, and where it goes."""

  pairs: str
  model: str  # A language model: a folder or a GGUF file.
  workdir: str
  held_out: str | None = None  # Pairs; None: a share of `pairs`.
  held_out_share: float = 0.1  # Of the prompts.
  limits: pairs_lib.Limits = pairs_lib.Limits(prompt=512, response=512)
  checkpoint_minutes: float = 5.0  # From one to the next.

  def __post_init__(self):
    """Refuses impossible sizes."""
    if min(self.limits) < 1:
      raise UserError(
        f"--prompt_length={self.limits.prompt} and --response_length="
        f"{self.limits.response} must be at least 1"
      )
    if not 0 <= self.checkpoint_minutes < float("inf"):
      raise UserError(
        f"--checkpoint_minutes={self.checkpoint_minutes} must not be negative"
      )
    if not 0 < self.held_out_share < 1:
      raise UserError(
        f"--held_out_share={self.held_out_share} must lie in (0, 1)"
      )


class Ready(NamedTuple):
  """All that a training needs, read and checked."""

  tokenizer: TextTokenizer
  config: ModelConfig
  graphdef: Any
  params: Any
  max_length: int  # Positions.
  trained: Pairs
  held_out: Pairs
  facts: dict[str, Any]  # How many pairs, and what was done to them.


def train_reward(
  files: Files,
  fit: preference.Fit,
  heads: int = 1,
  say: Callable[[str], object] = print,
) -> dict[str, Any]:
  """Trains a reward model, measures and writes it.

  Args:
    files: what is read and written.
    fit: how it is trained.
    heads: K, members of an ensemble that share the trunk.
    say: takes lines.

  Returns:
    What `pair_measures.measure` found, with facts of the data.

  Raises:
    UserError: something does not fit; nothing was trained then.
  """
  if heads < 1:
    raise UserError(f"--heads={heads} must be at least 1")
  ready = prepare(files, say)
  config, graphdef, trunk = without_output(ready.config, ready.params)
  params = preference.start_reward(trunk, config.d_model, heads, fit.seed)
  with _Keeper(files, ready, {"heads": heads} | vars(fit), say) as keeper:
    params = preference.train_reward(
      graphdef, params, ready.trained, fit, say, keeper
    )

  def read(pairs: Pairs) -> np.ndarray:
    return preference.read_all(
      preference.rewards, graphdef, params, pairs, fit.batch
    )

  some_Q = np.linspace(
    0, len(ready.trained) - 1, min(_CENTRED_ON, len(ready.trained))
  ).astype(int)
  centre_K = read(ready.trained[some_Q]).mean(axis=(0, 1))
  measured = _measured(read(ready.held_out) - centre_K, ready)
  _write(
    files,
    ready,
    config,
    params["trunk"],
    measured,
    hf.RewardHeads(np.asarray(params["score_KD"]), centre_K),
  )
  return measured


def train_dpo(
  files: Files,
  fit: preference.Fit,
  beta: float = 0.1,
  say: Callable[[str], object] = print,
) -> dict[str, Any]:
  """Trains a policy by DPO, measures and writes it.

  Args:
    files: what is read and written.
    fit: how it is trained.
    beta: of `losses.dpo`.
    say: takes lines.

  Returns:
    As `train_reward`, of the reward that the policy stands for: beta log pi /
    pi_ref.

  Raises:
    UserError: something does not fit; nothing was trained then.
  """
  if not 0 < beta < float("inf"):
    raise UserError(f"--beta={beta} must be a positive number")
  ready = prepare(files, say)
  graphdef = ready.graphdef

  def read(params) -> np.ndarray:
    return preference.read_all(
      preference.log_probs, graphdef, params, ready.held_out, fit.batch
    )

  before_Q2 = read(ready.params)
  with _Keeper(files, ready, {"beta": beta} | vars(fit), say) as keeper:
    params = preference.train_dpo(
      graphdef, ready.params, ready.trained, fit, beta, say, keeper
    )
  gained_Q2 = read(params) - before_Q2
  measured = _measured(beta * gained_Q2[..., None], ready)
  measured["log_prob_gained"] = dict(
    zip(("chosen", "rejected"), gained_Q2.mean(axis=0).tolist(), strict=True)
  )
  _write(files, ready, ready.config, params, measured)
  return measured


class _Keeper:
  """`preference.Keeper` in the checkpoints of a folder."""

  def __init__(
    self,
    files: Files,
    ready: Ready,
    settings: Mapping[str, Any],
    say: Callable[[str], object],
  ):
    """Opens the folder.

    Raises:
      UserError: another process trains there, or has trained something else.
    """
    self._held = contextlib.ExitStack()
    folder = paths.named(files.workdir)
    self._held.enter_context(directory.sole_writer(folder))
    self._checkpointer = Checkpointer(folder)
    self._held.callback(self._checkpointer.close)
    self._every, self._say = 60 * files.checkpoint_minutes, say
    pairs, trained = 0, ready.trained
    for array in (trained.prompt_QP, trained.tokens_Q2T, trained.margin_Q):
      pairs = zlib.crc32(array.tobytes(), pairs)
    self._of = {"model": files.model, "pairs": pairs, **settings}
    self._last = time.monotonic()
    try:
      self._check_same()
    except UserError:
      self._held.close()
      raise

  def _check_same(self) -> None:
    of = (self._checkpointer.record() or {"of": self._of}).get("of", {})
    names = sorted(self._of.keys() | of.keys())
    if other := [name for name in names if of.get(name) != self._of.get(name)]:
      raise UserError(
        f"{self._checkpointer.path} is of a training with other "
        f"{', '.join(other)}: use another --workdir, or delete it"
      )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._held.close()

  def restore(self, like: Any) -> tuple[Any, preference.Place] | None:
    """The newest checkpoint."""
    kept = self._checkpointer.restore(_named(like))
    if kept is None:
      return None
    arrays, record = kept
    self._say(f"going on after step {record['place'][0]}")
    return (arrays["params"], arrays["opt_state"]), preference.Place(
      *record["place"]
    )

  def due(self) -> bool:
    """Whether the last one is as old as `Files.checkpoint_minutes`."""
    return time.monotonic() - self._last >= self._every

  def save(self, carry: Any, place: preference.Place) -> None:
    """Begins to write one."""
    record = {"of": self._of, "place": list(place)}
    self._checkpointer.save(place.step, _named(carry), record)
    self._last = time.monotonic()


def _named(carry: Any) -> dict[str, Any]:
  params, opt_state = carry
  return {"params": params, "opt_state": opt_state}


def prepare(files: Files, say: Callable[[str], object] = print) -> Ready:
  """Reads pairs and model, and checks that they fit.

  Raises:
    UserError: naming what does not.
  """
  folder = paths.named(files.workdir)
  for name in (MODEL, MEASURED, directory.CONFIG):  # The last is a run's.
    if outside_files.is_there(folder / name):
      raise UserError(
        f"{folder / name} is there already: use another --workdir"
      )
  card = pretrained.read_card(files.model)
  tokenizer = load_tokenizer(files.model)
  found = [
    pairs_lib.read(file, tokenizer, files.limits)
    for file in (files.pairs, files.held_out)
    if file is not None
  ]
  if files.held_out is None:
    trained, held_out = pairs_lib.split(
      found[0].pairs, files.held_out_share, seed=0
    )
  else:
    trained, held_out = pairs_lib.joined(
      [read.pairs for read in found], response_pad(tokenizer)
    )
  facts = {
    "trained_pairs": len(trained),
    "shortened_prompts": sum(read.shortened for read in found),
    "dropped_pairs": sum(read.dropped for read in found),
    "held_out_pairs_with_trained_prompts": pairs_lib.common_prompts(
      trained, held_out
    ),
  }
  say(_told(facts, len(held_out)))
  P, T = trained.prompt_QP.shape[1], trained.tokens_Q2T.shape[2]
  if card.max_length is not None and P + T > card.max_length:
    raise UserError(
      f"prompts of {P} and responses of {T} tokens exceed the "
      f"{card.max_length} positions of {files.model}: set --prompt_length and "
      f"--response_length to {card.max_length} in all"
    )
  with output_files.writing(folder):  # Better told now than after training.
    folder.mkdir(parents=True, exist_ok=True)
  config, graphdef, params = pretrained.load(files.model)
  if tokenizer.vocab_size > config.vocab_size:
    raise UserError(
      f"the tokenizer of {files.model} has {tokenizer.vocab_size} tokens, its "
      f"model {config.vocab_size}"
    )
  length = card.max_length or P + T
  return Ready(
    tokenizer, config, graphdef, params, length, trained, held_out, facts
  )


def without_output(config: ModelConfig, params: Any) -> tuple[Any, Any, Any]:
  """A language model as a trunk: its output matrix is left out.

  Returns:
    ModelConfig, graphdef and params.
  """
  config = dataclasses.replace(config, tied_embeddings=True)
  graphdef, shapes = transformer.abstract(config)
  arrays = weights.by_name(params)
  names = weights.by_name(shapes)
  return config, graphdef, assemble.fill(shapes, {n: arrays[n] for n in names})


def _told(facts: Mapping[str, int], held_out: int) -> str:
  """What the files hold, in a line."""
  line = f"{facts['trained_pairs']:,} pairs to train on, {held_out:,} held out"
  for name, what in (
    ("shortened_prompts", "prompts lost their beginning (--prompt_length)"),
    ("dropped_pairs", "pairs are left out, too long (--response_length)"),
    (
      "held_out_pairs_with_trained_prompts",
      "held-out pairs have a prompt that is trained on",
    ),
  ):
    if facts[name]:
      line += f"; {facts[name]:,} {what}"
  return line


def _measured(reward_Q2K: np.ndarray, ready: Ready) -> dict[str, Any]:
  """Measures on the held-out pairs."""
  pairs = ready.held_out
  if not np.isfinite(reward_Q2K).all():
    raise UserError(
      "the training diverged: rewards are no finite numbers; lower "
      "--learning_rate"
    )
  found = pair_measures.measure(reward_Q2K, pairs.length_Q2, pairs.group_Q)
  return found | ready.facts


def _write(
  files: Files,
  ready: Ready,
  config: ModelConfig,
  params: Any,
  measured: Mapping[str, Any],
  reward: hf.RewardHeads | None = None,
) -> None:
  """Writes the model, then what was measured of it."""
  folder = paths.named(files.workdir)
  hf.save(
    folder / MODEL,
    config,
    params,
    ready.tokenizer,
    max_length=ready.max_length,
    reward=reward,
  )
  output_files.write_whole(
    folder / MEASURED, json.dumps(measured, indent=2) + "\n"
  )
  directory.forget_checkpoints(folder)
