"""Searching one prompt with a reward, and the tree to look at."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from tsd_jax.api import programs
from tsd_jax.api.model import Model, Prompt
from tsd_jax.api.programs import Reward
from tsd_jax.base.errors import UserError
from tsd_jax.models.tokenizer import Tokenizer
from tsd_jax.search import branches, explorer, view
from tsd_jax.search.best_first import BestFirst
from tsd_jax.search.config import SearchConfig
from tsd_jax.search.view import TreeNode

NUM_SIMULATIONS = 32  # By default.


@dataclasses.dataclass(frozen=True)
class Answer:
  """A finished answer that a search found; prints as one line.

  Attributes:
    text: without the end token.
    reward: as the reward function gave it.
    log_prob: of the whole answer under the model, nats, end token included.
    node: index of the node that it was found at.
  """

  text: str
  reward: float
  log_prob: float
  node: int

  def __str__(self) -> str:
    text = view.visible(self.text) or "(empty)"
    return f"{text}  reward {self.reward:.2f}  log-prob {self.log_prob:.2f}"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Tree:
  """A searched tree: `print(tree)` draws it, notebooks show one to explore.

  Attributes:
    prompt: the text that the model read.
    nodes: what the tree holds, by index; 0 is the root.
    answers: the distinct finished answers, the best first: by reward, then by
      log-probability.
    simulations: how many were made; an early end makes fewer.
    tokens: token forwards of the model, the prompt's included.
    arrays: the `mctx.Tree`, on the host, a batch of one.
    tokenizer: the model's.
  """

  prompt: str
  nodes: Mapping[int, TreeNode]
  answers: tuple[Answer, ...]
  simulations: int
  tokens: int
  arrays: Any
  tokenizer: Tokenizer

  @property
  def champion(self) -> Answer | None:
    """The best finished answer; None if none was finished."""
    return self.answers[0] if self.answers else None

  def pairs(self, solved_at: float = 1.0) -> list[dict[str, str]]:
    """Solved against failed branches of one node, as lines of a file of pairs.

    Whole answers, which part where one branch still led to a solution and the
    other to none: `launch.train_dpo` learns the step after that.

    Args:
      solved_at: the reward from which on an answer solves.

    Returns:
      Objects with `prompt`, `chosen` and `rejected`.
    """
    return [
      {
        "prompt": self.prompt,
        "chosen": view.said(self.tokenizer, pair.solved),
        "rejected": view.said(self.tokenizer, pair.failed),
      }
      for pair in branches.branch_pairs(self.nodes, solved_at)
    ]

  def text(
    self, *, max_lines: int = view.MAX_LINES, width: int = view.WIDTH
  ) -> str:
    """Draws the tree.

    Args:
      max_lines: of the tree at most: the champion's, then the most visited.
      width: characters of a line; longer texts are cut.

    Raises:
      UserError: there is no room to draw in.
    """
    if max_lines < 1 or width < 1:
      raise UserError(f"{max_lines=} and {width=} must be at least 1")
    prompt = view.visible(self.prompt)
    room = max(20, width - len("prompt: "))
    if len(prompt) > room:  # What is asked stands at its end.
      prompt = "…" + prompt[1 - room :]
    drawn = view.draw(
      self.nodes, self.tokenizer, max_lines=max_lines, width=width
    )
    return "\n".join([self._facts(), f"prompt: {prompt}", "", drawn])

  def _facts(self) -> str:
    """What the search did, in a line."""
    best = self.champion
    found = (
      "no finished answer: allow more tokens or simulations"
      if best is None
      else f"{_count(len(self.answers), 'answer')}, best reward {best.reward:g}"
    )
    return (
      f"{_count(self.simulations, 'simulation')}, "
      f"{_count(self.tokens, 'token')} read, "
      f"{_count(len(self.nodes), 'node')}, {found}"
    )

  def __str__(self) -> str:
    return self.text()

  def __repr__(self) -> str:
    return f"Tree({self._facts()})"

  def save(self, file: str | pathlib.Path) -> pathlib.Path:
    """Writes a page to explore the tree in, which needs no server.

    Args:
      file: such as tree.html.

    Returns:
      The file.

    Raises:
      UserError: it cannot be written.
    """
    return explorer.save(file, [self.data()])

  def data(self, name: str = "tree") -> dict[str, Any]:
    """The tree as its page has it, fit for JSON.

    Args:
      name: what it is called beside others.
    """
    return explorer.tree_data(
      self.arrays,
      0,
      self.tokenizer,
      name=name,
      prompt=self.prompt,
      facts={"tokens read": f"{self.tokens:,}"},
    )

  def _repr_html_(self) -> str:
    """The tree as notebooks show it."""
    return explorer.frame([self.data()], self.text())


def search(
  model: Model,
  prompt: Prompt,
  reward: Reward,
  *,
  num_simulations: int | None = None,
  step_tokens: int | None = None,
  num_candidates: int | None = None,
  max_tokens: int | None = None,
  stop_when_solved: bool | None = None,
  reply: str = "",
  raw: bool = False,
  step_ends: str = "\n",
  seed: int = 0,
  config: SearchConfig | None = None,
) -> Tree:
  """Searches a tree of responses to one prompt for one with a high reward.

  A simulation makes a node. By default moves are the model's likeliest tokens,
  and the least surprising move that was not tried comes next.

  Args:
    model: which answers.
    prompt: a text, or the messages of a chat. A text is what a user says where
      the model has a chat template, and else what it continues.
    reward: (prompt, response) -> a number in [0, 1], a Python function that is
      called in this process, once for each finished response; it may not sample
      or search. Its prompt is the text that the model read.
    num_simulations: how often the tree grows; 32 by default.
    step_tokens: most tokens of a move. 1, the default, offers the likeliest
      tokens; more offer steps that are sampled when they are tried.
    num_candidates: moves of a node at most; 8 by default.
    max_tokens: most tokens of a response, the end token included; 32 by
      default, or what the model's positions leave.
    stop_when_solved: end at the first response with reward 1; no by default.
    reply: how the response begins; part of the prompt.
    raw: continue a text even if the model has a chat template.
    step_ends: characters that end a step of several tokens.
    seed: of sampled steps and rollouts.
    config: the rule, what leaves are worth, and the rest; arguments above
      replace what it says.

  Returns:
    The tree.

  Raises:
    UserError: an argument does not fit, or the reward failed.
  """
  chosen = _search_config(
    model,
    config,
    num_simulations=num_simulations,
    step_tokens=step_tokens,
    num_candidates=num_candidates,
    stop_when_solved=stop_when_solved,
  )
  question = model.read(prompt, reply=reply, raw=raw)
  grader = programs.Grader(question.text, reward)
  arrays, tokens = programs.grow(
    model.graphdef,
    model.params,
    model.tokenizer,
    question.ids,
    grader,
    chosen,
    max_tokens=model.room(question, max_tokens),
    step_ends=step_ends,
    seed=seed,
  )
  nodes = view.nodes_of(arrays, 0, model.tokenizer)
  return Tree(
    prompt=question.text,
    nodes=nodes,
    answers=_answers(nodes, model.tokenizer, grader),
    simulations=nodes[0].visits - 1,
    tokens=tokens,
    arrays=arrays,
    tokenizer=model.tokenizer,
  )


def _search_config(
  model: Model, config: SearchConfig | None, **settings: Any
) -> SearchConfig:
  """How to search; settings that are None are the config's.

  Raises:
    UserError: it cannot be searched so, or not with this model.
  """
  settings = {k: v for k, v in settings.items() if v is not None}
  if config is None:
    lazy = settings.get("step_tokens", 1) > 1
    rule = BestFirst(stop_when_solved=False, lazy=lazy)
    config = SearchConfig(rule, num_simulations=NUM_SIMULATIONS)
  try:
    if "stop_when_solved" in settings:  # The rule's own.
      stop = settings.pop("stop_when_solved")
      rule = dataclasses.replace(config.rule, stop_when_solved=stop)
      settings["rule"] = rule
    config = dataclasses.replace(config, **settings)
  except ValueError as error:
    raise UserError(str(error).replace("search.", "")) from None
  model.check_value(config)
  if config.leaf == "progress":
    raise UserError(
      "leaf=progress is for the rewards of runs: a function on the host judges "
      "finished answers alone: use leaf=rollout or none"
    )
  if config.too_many_candidates(model.config.vocab_size):
    raise UserError(
      f"num_candidates={config.num_candidates} exceeds the "
      f"{model.config.vocab_size} tokens of {model.name}"
    )
  return config


def _answers(
  nodes: Mapping[int, TreeNode], tokenizer: Tokenizer, grader: programs.Grader
) -> tuple[Answer, ...]:
  """The answers that nodes hold, best first."""
  found: list[Answer] = []
  for n in view.answers(nodes, tokenizer):
    text = view.said(tokenizer, nodes[n].answer or ())
    # As it was given: the tree holds it rounded to float32.
    reward = grader.grade(text)
    found.append(Answer(text, reward, nodes[n].answer_log_prob, n))
  return tuple(found)


def _count(n: int, noun: str) -> str:
  return f"{n:,} {noun}{'s' * (n != 1)}"
