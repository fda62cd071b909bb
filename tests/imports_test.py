"""Imports run one way: a module imports only what stands before it."""

import ast
import importlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# A folder a line, its modules in order. Each may import what stands before it.
ORDER = """
base: errors outside_files tabular output_files paths types hashing names
  config_values choices temperature large_pages signals config_text config
  config_json ledger progress compilation_cache
parallel: sharding processes supervisor pod
models: operations tokenizer symbols transformer flops families lora presets
  weights names assemble gguf_layout gguf hf pretrained special_tokens
  tokenizer_json chat_template text_worker text_limits text_tokenizer
  gguf_vocabulary gguf_export phrases
rewards: reward around audited algebra abstention constrained guarded noise
  terms channel isolation purity worker pool callback classifier
  verifiers.math verifiers.python_tests
tasks: task maze_problems maze countdown_problems countdown calculator
  text_lines pairs text_tool text data
inference: vocabulary own_keys prefill sampling scoring generate rollout
  reward_model
search: node moves kv_pool transpositions rules best_first config champions
  metrics search view explorer branches
learning: losses advantages loss_terms config methods memory update iteration
  supervised preference
run: checks directory trackers tracking reward_params checkpoint hacking
  experiment costs curves evaluation audit samples drawing plots figures report
  problems live state load inspection train pair_measures preferences
comparison: intervals statistics side_by_side side_by_side_page counts columns
  entrants law tuning config jobs judge
planning: hlo roofline aot
api: programs model tree sampling runs
"""
USERS = ("experiments", "launch")


def order() -> list[str]:
  """Modules such as `search.node`, first to last."""
  folder, modules = "", []
  for word in ORDER.split():
    if word.endswith(":"):
      folder = word[:-1]
    else:
      modules.append(f"{folder}.{word}")
  return modules


def imported(source: str) -> set[str]:
  """Full names of what a file imports, wherever in it and however."""
  names = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.ImportFrom):
      assert not node.level, "an import relative to the file's folder"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
    elif isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.Call):
      # importlib.import_module("x"), __import__("x"), runpy.run_module("x").
      function = ast.unparse(node.func).rpartition(".")[2]
      if function in ("import_module", "__import__", "run_module", "find_spec"):
        names |= {
          a.value
          for a in node.args
          if isinstance(a, ast.Constant) and isinstance(a.value, str)
        }
  return names


def module(name: str) -> str | None:
  """The module of the library that an imported name lies in."""
  parts = name.split(".")
  if parts[0] != "tsd_jax" or not parts[1:]:
    return None
  # `tsd_jax.rewards.verifiers.math`: one folder has folders.
  depth = 4 if parts[1:3] == ["rewards", "verifiers"] else 3
  return ".".join(parts[1:depth])


def files() -> dict[str, pathlib.Path]:
  return {
    ".".join(f.relative_to(ROOT / "tsd_jax").with_suffix("").parts): f
    for f in sorted((ROOT / "tsd_jax").glob("*/**/*.py"))
    if f.name != "__init__.py"
  }


def test_the_list_names_every_module_once():
  assert sorted(order()) == sorted(files())
  assert {f.name for f in (ROOT / "tsd_jax").glob("*.py")} == {"__init__.py"}


def test_imports_run_one_way():
  place = {name: i for i, name in enumerate(order())}
  wrong = [
    f"{name} imports {theirs}"
    for name, file in files().items()
    for theirs in map(module, imported(file.read_text()))
    if theirs is not None and place.get(theirs, -1) >= place[name]
  ]
  assert not wrong


def users_imported(source: str) -> set[str]:
  return {n for n in imported(source) if n.split(".")[0] in USERS}


def test_the_library_never_imports_its_users():
  found = {
    str(file): names
    for file in (ROOT / "tsd_jax").rglob("*.py")
    if (names := users_imported(file.read_text()))
  }
  assert not found


@pytest.mark.parametrize(
  "line",
  [
    "import experiments",
    "import launch.train as train",
    "from experiments import countdown",
    "from experiments.recipes import warm_start",
    "def f():\n  from launch import train",
    "importlib.import_module('experiments.countdown')",
    "import_module('launch')",
    "__import__('experiments')",
  ],
)
def test_every_way_to_import_a_user_is_seen(line):
  assert users_imported(line)


def test_what_commands_import_of_experiments_defines_no_flags():
  """A config and a reward are read beside the flags of any command."""
  files = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts): file
    for file in (ROOT / "experiments").rglob("*.py")
  }
  trees = {name: ast.parse(file.read_text()) for name, file in files.items()}

  def functions(tree):
    return {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}

  read = {
    n for n, t in trees.items() if functions(t) & {"get_config", "reward"}
  }
  assert "experiments.countdown" in read and len(read) > 10
  todo = list(read)
  while todo:
    names = imported(files[todo.pop()].read_text())
    found = names | {name.rpartition(".")[0] for name in names}
    todo += (found & files.keys()) - read
    read |= found & files.keys()
  defining = {
    name
    for name in read
    for node in trees[name].body
    if isinstance(node, ast.Assign)
    and re.search(r"flags\.DEFINE|_flag\(", ast.unparse(node))
  }
  assert not defining


def attributes(tree: ast.AST):
  """Modules of ours by the names that a file gives them, and what it reads.

  Names that the file gives to something else too are left out.
  """
  modules, bound = {}, set()
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
      "tsd_jax"
    ):
      for alias in node.names:
        full = f"{node.module}.{alias.name}"
        if is_module(full):
          modules[alias.asname or alias.name] = full
    elif isinstance(node, ast.arg):
      bound.add(node.arg)
    elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
      bound.add(node.id)
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      name = node.value.id
      if name in modules and name not in bound:
        yield modules[name], node.attr


def is_module(name: str) -> bool:
  """Whether a full name is a module's."""
  path = ROOT.joinpath(*name.split("."))
  return path.with_suffix(".py").is_file() or path.is_dir()


@pytest.mark.parametrize("folder", ["experiments", "launch", "tests"])
def test_what_is_read_of_a_module_is_there(folder):
  """The type checker reads the library alone."""
  missing = [
    f"{file.relative_to(ROOT)}: {module}.{name}"
    for file in sorted((ROOT / folder).rglob("*.py"))
    for module, name in attributes(ast.parse(file.read_text()))
    if not hasattr(importlib.import_module(module), name)
  ]
  assert not missing
