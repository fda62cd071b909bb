"""Imports run one way: a module may import only what stands above it."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
ORDER = """
types config_values large_pages config config_json supervisor pod processes
hlo ledger sharding vocabulary models tokenizers text_tokenizer rewards tasks
decode generate scoring search rollout methods returns losses objective learner
evaluate checkpoint workdir data compare samples report progress memory
experiment record train jobs roofline aot costs judge runs
""".split()


def imported(file: pathlib.Path) -> set[str]:
  """First parts of the tsd_jax modules that a file imports."""
  names = set()
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      parts = node.module.split(".")
      if parts[0] == "tsd_jax":
        names |= {parts[1]} if parts[1:] else {a.name for a in node.names}
    elif isinstance(node, ast.Import):
      for alias in node.names:
        parts = alias.name.split(".")
        if parts[0] == "tsd_jax" and parts[1:]:
          names.add(parts[1])
  return names


def part(file: pathlib.Path) -> str:
  return file.relative_to(ROOT / "tsd_jax").parts[0].removesuffix(".py")


def test_imports_run_one_way():
  files = sorted((ROOT / "tsd_jax").rglob("*.py"))
  files = [f for f in files if f.name != "__init__.py"]
  assert len(files) > 20
  wrong = [
    f"{file.relative_to(ROOT)} imports {name}"
    for file in files
    for name in imported(file) - {part(file)}
    if ORDER.index(name) > ORDER.index(part(file))
  ]
  assert not wrong


def test_the_package_never_imports_its_users():
  for file in (ROOT / "tsd_jax").rglob("*.py"):
    text = file.read_text()
    assert "import launch" not in text and "import experiments" not in text


def test_files_fit_in_a_head():
  long = {
    str(f.relative_to(ROOT)): n
    for folder in ("tsd_jax", "launch", "experiments")
    for f in (ROOT / folder).rglob("*.py")
    if (n := len(f.read_text().splitlines())) > 400
  }
  assert not long


def test_what_commands_import_of_experiments_defines_no_flags():
  """A config and a reward are read beside the flags of any command."""
  files = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts): file
    for file in (ROOT / "experiments").rglob("*.py")
  }

  def functions(tree):
    return {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}

  trees = {name: ast.parse(file.read_text()) for name, file in files.items()}
  read = {
    n for n, t in trees.items() if functions(t) & {"get_config", "reward"}
  }
  assert "experiments.countdown" in read and len(read) > 10
  todo = list(read)
  while todo:
    for node in ast.walk(trees[todo.pop()]):
      if isinstance(node, ast.ImportFrom) and node.module in files:
        found = {f"{node.module}.{a.name}" for a in node.names} & files.keys()
      elif isinstance(node, ast.ImportFrom) and node.module == "experiments":
        found = {f"experiments.{a.name}" for a in node.names} & files.keys()
      else:
        continue
      found |= {node.module} & files.keys()
      todo += found - read
      read |= found
  defining = {
    name
    for name in read
    for node in trees[name].body
    if isinstance(node, ast.Assign) and "flags.DEFINE" in ast.unparse(node)
  }
  assert not defining
