"""TRL's GRPOTrainer on our task, beside our own GRPO.

A comparison is worth what its baselines are worth. TRL gets the same starting
weights (exported to its format), training problems, reward, group of 10 samples
for 128 prompts, 8 minibatches, Adam, clip and learning rate, and no KL term;
both are measured by our evaluation on the same held-out problems. What stays
different: TRL shuffles rows over minibatches where we keep a prompt's rows
together, its standard deviation has Bessel's correction, and its order of
prompts is its own.

Needs an environment of its own beside the project's constraints:

  pip install -e . -c constraints/py311.txt
  pip install torch==2.13.0 trl==1.16.0 transformers==5.23.0

Command (a finished seed is not run again):

  python -m experiments.baselines.trl_grpo --workdir=DIR --seeds=0,1
    --config.iterations=60 --output=experiments/results/trl_grpo.json
"""

import pathlib
from typing import Any

from experiments.baselines import library_flags
from tsd_jax.base import config as config_lib


def settings(config) -> dict[str, Any]:
  """Our experiment in TRL's words, which are read where TRL is installed."""
  learner, o = config.learner_config(), config.optimizer
  rows = learner.rollout.prompts * learner.rollout.group
  return dict(
    seed=config.seed,
    # One generation of all rows, then a step for each minibatch.
    per_device_train_batch_size=rows // o.minibatches,
    gradient_accumulation_steps=1,
    steps_per_generation=o.minibatches,
    num_iterations=o.epochs,
    max_steps=config.iterations * o.minibatches * o.epochs,
    num_generations=learner.rollout.group,
    max_completion_length=config.make_task().response_length,
    temperature=config.rollout.temperature,
    loss_type="bnpo",  # The mean over a minibatch's tokens, as ours.
    beta=config.loss.kl_weight,
    epsilon=config.loss.clip_low,
    epsilon_high=config.loss.clip_high,
    learning_rate=o.learning_rate,
    lr_scheduler_type="linear" if o.linear_decay else "constant",
    adam_beta1=o.b1,
    adam_beta2=o.b2,
    adam_epsilon=o.eps,
    max_grad_norm=o.max_grad_norm,
    weight_decay=0.0,
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
    save_strategy="no",
    logging_strategy="no",
    report_to="none",
    disable_tqdm=True,
  )


def make_trainer(
  start: pathlib.Path, folder: pathlib.Path, said, prompts, reward, step_ended
):
  """TRL's trainer of a model that lies in a folder.

  Args:
    start: Hugging Face folder of the model and its tokenizer.
    folder: TRL's own, in which it saves nothing.
    said: `settings`.
    prompts: lists of token ids.
    reward: as TRL calls it.
    step_ended: called with the number of optimiser steps made, after each.
  """
  import datasets
  import transformers
  from trl import GRPOConfig, GRPOTrainer

  transformers.set_seed(said["seed"])
  transformers.utils.logging.disable_progress_bar()
  tokenizer = transformers.AutoTokenizer.from_pretrained(start)

  class Measure(transformers.TrainerCallback):
    """Measures between two steps."""

    def on_step_end(self, args, state, control, **unused):
      step_ended(state.global_step)

  return GRPOTrainer(
    # A padding token beyond the vocabulary has no embedding to keep at 0.
    model=transformers.AutoModelForCausalLM.from_pretrained(
      start, dtype="float32", pad_token_id=None
    ),
    processing_class=tokenizer,
    reward_funcs=reward,
    args=GRPOConfig(output_dir=str(folder), **said),
    train_dataset=datasets.Dataset.from_dict(
      {"prompt": [tokenizer.decode(prompt) for prompt in prompts]}
    ),
    callbacks=[Measure()],
  )


def run(config, folder: pathlib.Path):
  """Trains by TRL; writes the points of its curve as they come."""
  from experiments.baselines import side_by_side
  from tsd_jax.tasks import data

  trainer = make_trainer(
    side_by_side.save_start(config, folder),
    folder,
    settings(config),
    data.load_problems(config.task, "train").tokens_BP,
    side_by_side.make_reward(config.make_task()),
    lambda steps: meter.step_ended(steps),
  )
  save = trainer.model.save_pretrained
  meter = side_by_side.Meter("trl", config, folder, save)
  meter.step_ended(0)
  trainer.train()


def main(overrides):
  """Trains what is missing, prints the table, writes the JSON."""
  folder = pathlib.Path(config_lib.required(library_flags.WORKDIR))
  base = config_lib.from_flags(
    library_flags.CONFIG.value, overrides | {"algorithm": "grpo"}
  )
  # Imported late: a bad flag is refused before JAX starts.
  from experiments.baselines import side_by_side

  side_by_side.compare_with(
    "trl",
    run,
    base,
    list(map(int, library_flags.SEEDS.value)),
    folder,
    reads=1 + 1 + 3,  # TRL samples, scores again and trains (3).
    output=library_flags.OUTPUT.value,
    about="Our GRPO and TRL's GRPOTrainer from the same weights: the same "
    "problems, reward, group, minibatches, Adam, clip and learning rate.",
    packages=("jax", "trl", "transformers", "torch"),
  )


if __name__ == "__main__":
  config_lib.run(main)
