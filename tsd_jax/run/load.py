"""A run's folder, read back: what was trained, and how far it got."""

import pathlib
from typing import Any, NamedTuple

import jax
from absl import logging

from tsd_jax.base import config_json
from tsd_jax.base.errors import ConfigError, UserError
from tsd_jax.base.ledger import Ledger
from tsd_jax.learning import iteration
from tsd_jax.learning.update import merged_params
from tsd_jax.models import pretrained, transformer
from tsd_jax.parallel.sharding import HERE, Layout
from tsd_jax.run import directory, reward_params
from tsd_jax.run.checkpoint import Checkpointer
from tsd_jax.run.experiment import Experiment, find_init, initial_params


class Run(NamedTuple):
  """The newest whole checkpoint of a run."""

  config: Experiment
  graphdef: Any
  params: Any
  step: int
  ledger: Ledger
  reward_params: Any = ()  # Of the run's reward.


def read_config(workdir: str | pathlib.Path) -> Experiment:
  """Reads a run's config.json.

  Raises:
    UserError: if there is none, or it is damaged or of other code.
  """
  saved = directory.read_config(workdir)
  try:
    return config_json.from_dict(Experiment, saved)
  except ConfigError as error:
    file = pathlib.Path(workdir) / directory.CONFIG
    raise ConfigError(f"{file}: {error}") from error


def open_run(workdir: str | pathlib.Path, layout: Layout = HERE) -> Run:
  """Reads a run's newest whole checkpoint; changes nothing on disk.

  Args:
    workdir: the run's folder; the run may still be going on.
    layout: the devices that its arrays are split over.

  Raises:
    UserError: if there is no run, or no whole checkpoint yet.
  """
  config = read_config(workdir)
  checkpointer = Checkpointer(workdir, read_only=True)
  learner_config = config.learner_config()
  if learner_config.lora.rank:  # A checkpoint holds adapters alone.
    graphdef, params = initial_params(config)
    params = layout.place(params)
  else:
    graphdef, params = transformer.abstract(config.shape)
  search_params = None
  if config.search_model is not None:  # Its own parameters are not needed.
    _, search_params = transformer.abstract(config.search_model)
  state = jax.eval_shape(
    lambda params, search_params: iteration.init_state(
      learner_config, params, search_params=search_params
    ),
    params, search_params,
  )  # fmt: skip
  try:
    restored = checkpointer.restore(layout.placed(state)._asdict())
  finally:
    checkpointer.close()
  if restored is None:
    raise UserError(
      f"{workdir} has no checkpoint yet: wait for its first, at iteration "
      f"{config.checkpoint_every}"
    )
  arrays, record = restored
  return Run(
    config,
    graphdef,
    jax.block_until_ready(
      merged_params(arrays["params"], params, learner_config)
    ),
    record["step"],
    Ledger(**record["ledger"]),
    reward_params.read(config.make_task().reward, pathlib.Path(workdir)),
  )


def max_positions(config: Experiment) -> int:
  """Positions that a run's model knows: those that it was published with.

  Without a published model, or where that has gone, they are the run's own.
  """
  task = config.make_task()
  own = task.prompt_length + task.response_length
  if config.init is None or not pretrained.is_pretrained(config.init):
    return own
  try:
    card = pretrained.read_card(find_init(config.init))
  except UserError as error:
    logging.warning("the export says %d positions: %s", own, error)
    return own
  return max(own, card.max_length or 0)
