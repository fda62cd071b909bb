"""Tunix's GRPOLearner on our task, beside our own GRPO.

As trl_grpo.py: the same starting weights (read by Tunix from a safetensors
file), training problems, reward, group of 10 samples a prompt, 16 prompts an
optimiser step, Adam, learning rate, no KL term; both measured by our evaluation
on the same held-out problems. Tunix gets help in two places: its Llama turns
positions at base 10^6 whatever the file says, and its sampler drops the end
token from what is trained on. What stays different: Tunix samples anew for each
step where we sample once for eight, so that its ratio is always 1 and its clip
never acts.

Needs an environment of its own:

  pip install google-tunix==0.1.7 jax==0.10.2 -e .

Command (a finished seed is not run again):

  python -m experiments.baselines.tunix_grpo --workdir=DIR --seeds=0,1
    --config.iterations=60 --output=experiments/results/tunix_grpo.json
"""

import functools
import json
import pathlib
import shutil

from absl import logging

from experiments.baselines import library_flags
from tsd_jax.base import config as config_lib


class Symbols:
  """A tokenizer of ours as Tunix wants one."""

  def __init__(self, tokenizer):
    """Wraps it."""
    self._tokenizer = tokenizer

  def encode(self, text, **unused):
    """Token ids."""
    return self._tokenizer.encode(text)

  def decode(self, ids, **unused):
    """Text."""
    return self._tokenizer.decode(ids)

  def bos_id(self):
    """None: our prompts begin with their first symbol."""
    return 0

  def eos_id(self):
    """The end token."""
    return self._tokenizer.eos_id

  def pad_id(self):
    """The padding token."""
    return self._tokenizer.pad_id


def save(model, start: pathlib.Path, folder: pathlib.Path) -> None:
  """Writes a Tunix Llama as the Hugging Face folder that it came from."""
  import numpy as np
  from flax import nnx
  from safetensors import numpy as safetensors_numpy

  shutil.copytree(start, folder, dirs_exist_ok=True)
  file = folder / "model.safetensors"
  shapes = safetensors_numpy.load_file(file)
  names = {
    "model.embed_tokens": "embedder.input_embedding",
    "model.norm": "final_norm.w",
    "lm_head": "lm_head.w",
  }
  flat = {
    ".".join(map(str, path)): np.asarray(leaf[...], np.float32)
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))
  }

  def tensor(name, like):
    stem = name.removesuffix(".weight")
    own = names.get(stem, stem.removeprefix("model."))
    own = own.replace("self_attn", "attn")
    ours = next(k for k in (own, f"{own}.w", f"{own}.kernel") if k in flat)
    value = flat[ours]
    if "_proj" in name or stem == "lm_head":  # In first, out last.
      value = value.reshape(like.shape[::-1]).T
    return np.ascontiguousarray(value.reshape(like.shape))

  safetensors_numpy.save_file(
    {name: tensor(name, like) for name, like in shapes.items()}, file
  )


def make_model(start: pathlib.Path, mesh):
  """Reads a Hugging Face folder as Tunix's Llama."""
  from tunix.models.llama3 import model as llama
  from tunix.models.llama3 import params

  card = json.loads((start / "config.json").read_text())
  rope = card.get("rope_parameters") or card
  config = llama.ModelConfig(
    num_layers=card["num_hidden_layers"],
    vocab_size=card["vocab_size"],
    embed_dim=card["hidden_size"],
    hidden_dim=card["intermediate_size"],
    num_heads=card["num_attention_heads"],
    head_dim=card["head_dim"],
    num_kv_heads=card["num_key_value_heads"],
    rope_theta=rope["rope_theta"],
    norm_eps=card["rms_norm_eps"],
    weight_tying=card["tie_word_embeddings"],
  )
  llama.apply_rope = functools.partial(
    llama.apply_rope, rope_theta=rope["rope_theta"]
  )
  return params.create_model_from_safe_tensors(str(start), config, mesh)


def make_cluster(config, start: pathlib.Path, tokenizer: Symbols, mesh):
  """Tunix's model, sampler and trainer of our experiment.

  Args:
    config: our experiment.
    start: Hugging Face folder of the model.
    tokenizer: the model's.
    mesh: from `make_mesh`.
  """
  import optax
  from tunix.rl import rl_cluster
  from tunix.rl.rollout import base_rollout

  o, task = config.optimizer, config.make_task()
  steps = config.iterations * o.minibatches * o.epochs
  rate = o.learning_rate
  if o.linear_decay:
    rate = optax.linear_schedule(rate, 0.0, steps)
  optimizer = optax.chain(
    optax.clip_by_global_norm(o.max_grad_norm),
    optax.adam(rate, b1=o.b1, b2=o.b2, eps=o.eps),
  )
  roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.ROLLOUT)
  rollout = base_rollout.RolloutConfig(
    max_tokens_to_generate=task.response_length,
    max_prompt_length=task.prompt_length,
    kv_cache_size=task.prompt_length + task.response_length,
    temperature=config.rollout.temperature,
    top_p=1.0,  # None would be greedy.
  )
  with mesh:  # As Tunix looks for it.
    model = make_model(start, mesh)
  return rl_cluster.RLCluster(
    actor=model,
    tokenizer=tokenizer,
    cluster_config=rl_cluster.ClusterConfig(
      role_to_mesh=dict.fromkeys(roles, mesh),
      rollout_config=rollout,
      training_config=rl_cluster.RLTrainingConfig(
        actor_optimizer=optimizer, max_steps=steps, eval_every_n_steps=steps + 1
      ),
    ),
  )


def make_mesh():
  """One device, as Tunix's models name its axes."""
  import jax

  auto = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=auto)


def train(config, cluster, mesh, reward, batches) -> None:
  """Trains by Tunix.

  Args:
    config: our experiment.
    cluster: from `make_cluster`.
    mesh: the cluster's.
    reward: as Tunix calls it.
    batches: of prompts, one an optimiser step.
  """
  from tunix.rl.grpo import grpo_learner

  grpo = grpo_learner.GRPOConfig(
    num_generations=config.learner_config().rollout.group,
    num_iterations=config.optimizer.epochs,
    beta=config.loss.kl_weight,
    epsilon=config.loss.clip_low,
    loss_agg_mode="token-mean",
  )
  with mesh:  # As Tunix looks for it.
    grpo_learner.GRPOLearner(cluster, grpo, reward).train(batches)


def run(config, folder: pathlib.Path):
  """Trains by Tunix; writes the points of its curve as they come."""
  import jax
  import numpy as np

  from experiments.baselines import side_by_side
  from tsd_jax.models.symbols import SymbolTokenizer
  from tsd_jax.tasks import data

  start, mesh = side_by_side.save_start(config, folder), make_mesh()
  o, task = config.optimizer, config.make_task()
  steps = config.iterations * o.minibatches * o.epochs
  tokenizer = Symbols(SymbolTokenizer())
  cluster = make_cluster(config, start, tokenizer, mesh)
  actor, generate = cluster.actor_trainer.model, cluster.rollout.generate
  rollout = cluster.cluster_config.rollout_config

  def generate_with_end(*args, **kwargs):
    output = generate(*args, **kwargs)
    output.tokens = [
      np.append(tokens, task.eos_id)[: task.response_length]
      for tokens in output.tokens
    ]
    return output

  cluster.rollout.generate = generate_with_end
  meter = side_by_side.Meter(
    "tunix", config, folder, lambda now: save(actor, start, now)
  )
  score = side_by_side.make_reward(task)

  def reward(prompts, completions, **unused):
    # A call scores the samples of the next step.
    meter.step_ended(cluster.global_steps)
    ids = [tokenizer.encode(text) for text in completions]
    ids = [[*i, task.eos_id][: task.response_length] for i in ids]
    return score(prompts, ids)

  problems = data.PromptIterator(
    data.load_problems(config.task, "train"),
    batch_size=config.learner_config().rollout.prompts // o.minibatches,
    seed=config.seed,
  )

  def batches():
    for number in range(steps):
      # Its sampler has no stream of keys: without a new one all batches get the
      # same.
      key = jax.random.fold_in(jax.random.PRNGKey(config.seed), number)
      rollout.seed = key
      (prompts,) = problems.next_batches(1)
      yield {
        "prompts": np.array([tokenizer.decode(p) for p in prompts.tokens_BP])
      }

  train(config, cluster, mesh, reward, batches())
  meter.step_ended(steps)


def main(overrides):
  """Trains what is missing, prints the table, writes the JSON."""
  folder = pathlib.Path(config_lib.required(library_flags.WORKDIR))
  base = config_lib.from_flags(
    library_flags.CONFIG.value, overrides | {"algorithm": "grpo"}
  )
  # Imported late: a bad flag is refused before JAX starts.
  from experiments.baselines import side_by_side

  logging.set_verbosity(logging.WARNING)  # Tunix prints samples of each step.
  side_by_side.compare_with(
    "tunix",
    run,
    base,
    list(map(int, library_flags.SEEDS.value)),
    folder,
    reads=1 + 3,  # Tunix samples and trains (3).
    output=library_flags.OUTPUT.value,
    about="Our GRPO and Tunix's GRPOLearner from the same weights: the same "
    "problems, reward, group, prompts a step, Adam and learning rate. Tunix "
    "samples anew for every step.",
    packages=("jax", "google-tunix", "flax"),
  )


if __name__ == "__main__":
  config_lib.run(main)
