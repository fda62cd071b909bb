"""A value for searches from hindsight: which answers can still be reached.

V_search learns from random legal responses (`TaskConfig.warm_start`). Half of
them are asked for what they do, and are right; the others for anything, and are
mostly wrong. After the tokens s of a response, V says how likely it is one of
the first kind:

  V(s) = P(target | s) / (P(target | s) + P(target)),

P under random play: above 1/2 where s helps to reach the target, 0 where it
forbids it. No answer is searched or sampled for it. The trunk learns with it,
held by a divergence from the policy that the model was:

  loss = BCE(V, right) + kl_weight * KL(policy || old policy)

Command (makes a start for --config.search.leaf=value; a quarter of an hour on
one core with four numbers):

  python -m experiments.hindsight_value --config=experiments/countdown4.py
    --output=FILE.safetensors
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from experiments import supervised
from tsd_jax import config as config_lib
from tsd_jax import data, evaluate, losses, progress, scoring
from tsd_jax.experiment import initial_params
from tsd_jax.models import transformer, weights

_CONFIG = flags.DEFINE_string(
  "config", "experiments/countdown.py", "Experiment file: its task and start."
)
_STEPS = flags.DEFINE_integer("steps", 2000, "Steps.", 1)
_BATCH = flags.DEFINE_integer("batch", 256, "Examples a step.", 1)
_RATE = flags.DEFINE_float("learning_rate", 1e-3, "Peak learning rate.")
_KL = flags.DEFINE_float("kl_weight", 2.0, "Holds the policy.")
_OUTPUT = flags.DEFINE_string("output", None, "File to write.")


def teach(
  graphdef,
  params,
  config,
  *,
  steps: int,
  batch: int = 256,
  learning_rate: float = 1e-3,
  kl_weight: float = 2.0,
  seed: int = 0,
):
  """Teaches a model's V_search.

  Args:
    graphdef: structure of the model.
    params: its parameters.
    config: the task; its held-out problems are never asked.
    steps: of Adam.
    batch: examples a step.
    learning_rate: its peak.
    kl_weight: of the divergence from the policy that the model was.
    seed: of the examples.

  Returns:
    New parameters, and the forwards of tokens that they took: a token that is
    trained on counts three, one that the old policy reads one.
  """
  task = config.make()
  examples = supervised.draw(
    config,
    np.random.default_rng(seed),
    steps,
    batch,
    0.5,
    supervised.held_out(config),
  )

  def loss_fn(new, examples):
    ((prompt_BP, response_BT),) = examples
    old, new = nnx.merge(graphdef, params), nnx.merge(graphdef, new)
    reference_BTV, _ = _read(old, prompt_BP, response_BT)
    log_prob_BTV, logit_BT = _read(new, prompt_BP, response_BT)
    right_B1 = task.score(prompt_BP, response_BT).correct_X[:, None]
    use_BT = response_BT != task.pad_id
    kl_BT = losses.kl_to_reference(log_prob_BTV, reference_BTV)
    return losses.success(
      logit_BT, right_B1.astype(jnp.float32), use_BT
    ) + kl_weight * losses.masked_mean(kl_BT, use_BT)

  params = supervised.fit(params, [[examples]], loss_fn, learning_rate)
  tokens = task.prompt_length + task.response_length - 1
  return params, 4 * steps * batch * tokens


def _read(model: transformer.Transformer, prompt_BP, response_BT):
  """Before every token: log pi over the vocabulary, and V_search's logit."""
  x_BTD = scoring.features(model, prompt_BP, response_BT[:, None])[:, 0]
  _, logit_BT = model.values(x_BTD)
  return jax.nn.log_softmax(model.logits(x_BTD)), logit_BT


def main(overrides):
  """Writes the file and prints what the model can do."""
  progress.quiet_libraries()
  output = config_lib.required(_OUTPUT)
  experiment = config_lib.from_flags(_CONFIG.value, overrides)
  graphdef, params = initial_params(experiment)
  params, tokens = teach(
    graphdef,
    params,
    experiment.task,
    steps=_STEPS.value,
    batch=_BATCH.value,
    learning_rate=_RATE.value,
    kl_weight=_KL.value,
    seed=experiment.seed,
  )
  metadata = {
    "task": f"{experiment.task.make().name}, {experiment.task.dataset}",
    "init": str(experiment.init),
    "steps": f"{_STEPS.value} of {_BATCH.value} examples",
    "value_trained": "true",
  }
  weights.save(output, params, metadata=metadata)
  params, _ = weights.load(output, params)  # Measured as it is stored.
  results = evaluate.evaluate(
    graphdef,
    params,
    experiment.task.make(),
    data.load_problems(experiment.task, "validation"),
    "greedy,mean@16",
    seed=1,
  )
  shown = ", ".join(f"{m} {r['accuracy']:.3f}" for m, r in results.items())
  print(f"validation: {shown}; {tokens:,} token forwards to teach the value")


if __name__ == "__main__":
  config_lib.run(main)
