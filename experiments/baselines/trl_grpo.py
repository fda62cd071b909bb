"""TRL's GRPOTrainer on our task, beside our own GRPO.

A comparison is worth what its baselines are worth. TRL gets the same starting
weights (exported to its format), training problems, reward, group of 9 samples
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

import json
import pathlib
import time

from absl import flags

from tsd_jax import config as config_lib

_CONFIG = flags.DEFINE_string(
  "config", "experiments/countdown.py", "Experiment file."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "Seeds of both libraries.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON to write.")


def trl_config(config, seed: int, folder: pathlib.Path):
  """Our experiment in TRL's words."""
  from trl import GRPOConfig

  learner, o = config.learner_config(), config.optimizer
  rows = learner.rollout.prompts * learner.rollout.group
  return GRPOConfig(
    output_dir=str(folder),
    seed=seed,
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


def make_reward(task, tokenizer):
  """Our reward, of the token ids that TRL sampled."""
  import jax
  import numpy as np

  score = jax.jit(task.score)

  def reward(prompts, completion_ids, **unused):
    del unused
    tokens_NT = np.full((len(prompts), task.response_length), task.pad_id)
    for row_T, ids in zip(tokens_NT, completion_ids, strict=True):
      row_T[: len(ids)] = ids
    prompt_NP = np.array([tokenizer.encode(text) for text in prompts])
    return np.asarray(score(prompt_NP, tokens_NT).reward_X).tolist()

  return reward


def run_trl(config, seed: int, folder: pathlib.Path):
  """Trains by TRL; writes the points of its curve as they come."""
  import datasets
  import transformers
  from trl import GRPOTrainer

  from tsd_jax import data, evaluate, workdir
  from tsd_jax.experiment import initial_params
  from tsd_jax.models import hf, pretrained
  from tsd_jax.tokenizers import SymbolTokenizer

  transformers.set_seed(seed)
  transformers.utils.logging.disable_progress_bar()
  task, tokenizer = config.make_task(), SymbolTokenizer()
  mode = evaluate.headline(config.eval.modes)
  held_out = data.load_problems(config.task, config.eval.split)
  _, params = initial_params(config)
  start = folder / "start"
  if not start.exists():
    length = task.prompt_length + task.response_length
    hf.save(start, config.model, params, tokenizer, max_length=length)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    start, dtype="float32"
  )
  problems = data.load_problems(config.task, "train")
  points, seconds, began = [], 0.0, time.monotonic()

  def measure(iteration):
    """Reads TRL's weights back and measures them as our own."""
    model.save_pretrained(folder / "now")
    _, graphdef, now = pretrained.load(folder / "now", config=config.model)
    result = evaluate.evaluate(
      graphdef, now, task, held_out, mode, seed=seed,
      temperature=config.eval.temperature,
    )[mode]  # fmt: skip
    points.append((iteration, seconds, result["accuracy"], result["stderr"]))
    workdir.write_whole(folder / "points.json", json.dumps(points))
    print(f"trl, seed {seed}: {points[-1]}", flush=True)

  o = config.optimizer
  steps_an_iteration = o.minibatches * o.epochs

  class Measure(transformers.TrainerCallback):
    """Stops the clock while it measures."""

    def on_step_end(self, args, state, control, **unused):
      nonlocal seconds, began
      iteration, inside = divmod(state.global_step, steps_an_iteration)
      last = iteration == config.iterations
      if not inside and (last or iteration % config.eval.every == 0):
        seconds += time.monotonic() - began
        measure(iteration)
        began = time.monotonic()

  measure(0)
  trainer = GRPOTrainer(
    model=model,
    processing_class=transformers.AutoTokenizer.from_pretrained(start),
    reward_funcs=make_reward(task, tokenizer),
    args=trl_config(config, seed, folder),
    train_dataset=datasets.Dataset.from_dict(
      {"prompt": [tokenizer.decode(prompt) for prompt in problems]}
    ),
    callbacks=[Measure()],
  )
  began = time.monotonic()
  trainer.train()


def trl_curve(config, seed: int, folder: pathlib.Path):
  """TRL's curve, trained anew where that did not come to its end."""
  import numpy as np

  from tsd_jax import compare, workdir

  folder.mkdir(parents=True, exist_ok=True)
  workdir.prepare(config, folder)
  file = folder / "points.json"
  if not file.exists() or (
    json.loads(file.read_text())[-1][0] < config.iterations
  ):
    run_trl(config, seed, folder)
  points = json.loads(file.read_text())
  columns = zip(*(p for p in points if p[0] <= config.iterations), strict=True)
  iterations, seconds, accuracy, stderr = map(np.asarray, columns)
  # Sampled, scored again, trained on (3).
  tokens = update_tokens(config) * (1 + 1 + 3)
  return compare.Curve(
    iterations, iterations * tokens, accuracy, stderr, seconds
  )


def update_tokens(config) -> int:
  """Tokens that TRL runs backward an iteration: each row has its own prompt."""
  task, rollout = config.make_task(), config.learner_config().rollout
  row = task.prompt_length + task.response_length
  return rollout.prompts * rollout.group * row


def main(overrides):
  """Trains what is missing, prints the table, writes the JSON."""
  folder = pathlib.Path(config_lib.required(_WORKDIR))
  base = config_lib.from_flags(_CONFIG.value, overrides | {"algorithm": "grpo"})
  configs = {
    int(seed): config_lib.override(base, {"seed": seed})
    for seed in _SEEDS.value
  }
  # Imported late: a bad flag is refused before JAX starts.
  import jax
  import torch
  import transformers
  import trl

  from tsd_jax import compare, evaluate, judge, progress, train, workdir

  progress.quiet_libraries()
  mode = evaluate.headline(base.eval.modes)
  runs = {"grpo": [], "trl_grpo": []}
  for seed, config in configs.items():
    place = folder / "trl" / str(seed)
    runs["trl_grpo"].append(trl_curve(config, seed, place))
    place = folder / "ours" / str(seed)
    train.train(config, place)
    runs["grpo"].append(compare.read_curve(place, mode))
  curves = {name: compare.mean_curve(all_) for name, all_ in runs.items()}
  print(compare.summary(curves, mode))
  step = judge.update_step(base)
  backward = {
    "grpo": step["backward_tokens"],
    "trl_grpo": update_tokens(base) / base.optimizer.minibatches,
  }
  if _OUTPUT.value:
    content = {
      "about": "Our GRPO and TRL's GRPOTrainer from the same weights: the same "
      "problems, reward, group, minibatches, Adam, clip and learning rate.",
      "command": "python -m experiments.baselines.trl_grpo --workdir=DIR "
      f"--seeds={','.join(_SEEDS.value)}"
      + "".join(f" --config.{k}={v}" for k, v in overrides.items()),
      "task": base.make_task().name,
      "split": base.eval.split,
      "mode": mode,
      "methods": {
        name: {
          "seeds": list(configs),
          "iterations": curves[name].iterations.tolist(),
          "tokens": curves[name].tokens.tolist(),
          "seconds": curves[name].seconds.round(2).tolist(),
          mode: [c.accuracy.tolist() for c in all_],
          "area": [compare.area(c) for c in all_],
          "update_step": step
          | {
            "backward_tokens": backward[name],
            "ledger_tokens": float(
              curves[name].tokens[-1]
              / (curves[name].iterations[-1] * step["steps_an_iteration"])
            ),
          },
        }
        for name, all_ in runs.items()
      },
      "ratios": compare.contrast(runs, ours="grpo"),
      "versions": {
        module.__name__: module.__version__
        for module in (jax, trl, transformers, torch)
      },
    }
    workdir.write_whole(
      pathlib.Path(_OUTPUT.value), json.dumps(content, indent=1) + "\n"
    )


if __name__ == "__main__":
  config_lib.run(main)
