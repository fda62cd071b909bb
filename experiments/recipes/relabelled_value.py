"""A value for searches, taught by relabelling: what can still be reached.

V_search learns from random legal responses (`TaskConfig.warm_start`). Half of
them are asked for what they do, and are right; the others for anything, and are
mostly wrong. After the tokens s of a response, V says how likely it is one of
the first kind:

  V(s) = P(target | s) / (P(target | s) + P(target)),

P under random play: above 1/2 where s helps to reach the target, 0 where it
forbids it. No answer is searched or sampled for it. The trunk learns with it,
held by a divergence from the policy that the model was:

  loss = BCE(V, right) + kl_weight * KL(policy || old policy)
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tsd_jax.inference import scoring
from tsd_jax.learning import losses, supervised
from tsd_jax.models import transformer, weights
from tsd_jax.run.experiment import Experiment
from tsd_jax.tasks.task import Task, as_prompts


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
    New parameters.
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
    reference_BTV, _ = _read(old, task, prompt_BP, response_BT)
    log_prob_BTV, logit_BT = _read(new, task, prompt_BP, response_BT)
    right_B1 = task.score(prompt_BP, response_BT).correct_X[:, None]
    use_BT = response_BT != task.pad_id
    kl_BT = losses.kl_to_reference(log_prob_BTV, reference_BTV)
    return losses.success(
      logit_BT, right_B1.astype(jnp.float32), use_BT
    ) + kl_weight * losses.masked_mean(kl_BT, use_BT)

  return supervised.fit(params, [[examples]], loss_fn, learning_rate)


def forwards(task: Task, steps: int, batch: int) -> int:
  """Forwards of tokens that teaching takes.

  A token that is trained on counts three, and one more for the old policy.
  """
  tokens = task.prompt_length + task.response_length - 1
  return 4 * steps * batch * tokens


def save(file, params, experiment: Experiment, steps: int, batch: int) -> None:
  """Writes a start whose V_search may be used."""
  task = experiment.task
  metadata = {
    "task": f"{task.make().name}, {task.dataset}",
    "init": str(experiment.init),
    "steps": f"{steps} of {batch} examples",
    "forwards": str(forwards(task.make(), steps, batch)),
    "value_trained": "true",
  }
  weights.save(file, params, metadata=metadata)


def _read(model: transformer.Transformer, task: Task, prompt_BP, response_BT):
  """Before every token: log pi over the vocabulary, and V_search's logit."""
  prompts = as_prompts(task, prompt_BP)
  x_BTD = scoring.hidden_states(model, prompts, response_BT[:, None])[:, 0]
  _, logit_BT = model.values(x_BTD)
  return jax.nn.log_softmax(model.logits(x_BTD)), logit_BT
