"""The documentation holds: links, commands, flags and code of every page.

A block of Python in a page is run, unless an HTML comment just before it says
why not. Comments that the test reads, each on a line of its own:

  <!-- not run: why -->       the block is shown only
  <!-- file: my_reward.py --> the block is a module, there for the whole page
  <!-- continues -->          the block needs the one before it
  <!-- fixture: NAME -->      what is there when it runs; see `_FIXTURES`
"""

import ast
import contextlib
import functools
import importlib
import json
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

import pytest

from tests.imports_test import ORDER
from tsd_jax.base import config as config_lib
from tsd_jax.base.errors import ConfigError, UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [
  *(
    ROOT / f"{n}.md" for n in "README WORKSPACE CONTRIBUTING CHANGELOG".split()
  ),
  *sorted((ROOT / "docs").rglob("*.md")),
  ROOT / "launch" / "README.md",
  ROOT / "experiments" / "README.md",
  ROOT / "tsd_jax" / "models" / "README.md",
]
# Their commands are checked too: results, findings, experiments' lab notes, and
# what launch commands say of themselves.
NOTES = [
  ROOT / "experiments" / "RESULTS.md",
  ROOT / "experiments" / "results" / "NOTES.md",
  *sorted((ROOT / "experiments").glob("*.py")),
  *sorted((ROOT / "launch").glob("*.py")),
]


def name_of(file: pathlib.Path) -> str:
  return str(file.relative_to(ROOT))


class Block(NamedTuple):
  """A fenced block of a page."""

  page: str
  line: int
  language: str
  text: str
  comments: dict[str, str]  # What stands in comments just before it.


_COMMENT = re.compile(r"<!--\s*([\w ]+?)(?::\s*(.*?))?\s*-->")


def read_blocks(page: str, text: str) -> list[Block]:
  """Fenced blocks, with the comments that stand between one and the text."""
  blocks, comments, fence, inside = [], {}, None, []
  for number, line in enumerate(text.splitlines(), 1):
    if fence is not None:
      if line.strip() == "```":
        blocks.append(Block(page, *fence, "\n".join(inside) + "\n", comments))
        fence, comments = None, {}
      else:
        inside.append(line)
    elif line.lstrip().startswith("```"):
      fence, inside = (number, line.strip()[3:]), []
    elif found := _COMMENT.fullmatch(line.strip()):
      comments[found[1]] = found[2] or ""
    elif line.strip():
      comments = {}
  assert fence is None, f"{page}: the block of line {fence[0]} has no end"
  return blocks


BLOCKS = [b for p in PAGES for b in read_blocks(name_of(p), p.read_text())]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def test_every_block_says_its_language():
  known = {"python", "bash", "json", "text"}
  odd = [f"{b.page}:{b.line}" for b in BLOCKS if b.language not in known]
  assert not odd


def test_comments_are_ones_that_are_read():
  known = {"not run", "file", "continues", "fixture"}
  for block in BLOCKS:
    assert block.comments.keys() <= known, (block.page, block.line)
    if block.comments.keys() & {"not run", "file", "fixture"}:
      assert all(v for k, v in block.comments.items() if k != "continues")


# Modules that a page shows, such as my_experiment.py.
SHOWN = {b.comments["file"] for b in PYTHON if "file" in b.comments}


# --- Blocks of Python ---------------------------------------------------------


def _smollm2(folder):
  """SmolLM2 under the name that the pages call it by."""
  from experiments.recipes import fetch_smollm2

  if not fetch_smollm2.PATH.is_file():
    pytest.skip("needs python -m experiments.recipes.fetch_smollm2")
  (folder / "SmolLM2-135M-Instruct.gguf").symlink_to(fetch_smollm2.PATH)


def _text(folder):
  """A random model with a small tokenizer in FOLDER, and problems.jsonl."""
  pytest.importorskip("tokenizers", reason="needs the extra: text")
  pytest.importorskip("jinja2", reason="needs the extra: text")
  from tests import small_text
  from tsd_jax.models import hf

  tokenizer, config, params = small_text.random_model(folder)
  hf.save(folder / "FOLDER", config, params, tokenizer, max_length=512)
  lines = [{"prompt": f"Write {n}", "answer": n} for n in range(20)]
  (folder / "problems.jsonl").write_text(
    "".join(json.dumps(line) + "\n" for line in lines)
  )


def _reward(folder):
  """A random reward model of symbols, as a training of one leaves it."""
  pytest.importorskip("tokenizers", reason="needs the extra: text")
  from tests.published import reward_model

  reward_model(folder / "runs" / "rm" / "model")


_FIXTURES = {"smollm2": _smollm2, "text": _text, "reward": _reward}
_SLOW = {"smollm2", "text"}  # Both take more than a few seconds.


def runnable() -> list:
  """Blocks that are run, with the code that each needs before it."""
  params = []
  for i, block in enumerate(PYTHON):
    if "not run" in block.comments:
      continue
    code, first = [block], i
    while "continues" in code[0].comments:
      first -= 1
      code.insert(0, PYTHON[first])
      assert code[0].page == block.page and "not run" not in code[0].comments
    fixtures = {b.comments["fixture"] for b in code if "fixture" in b.comments}
    slow = [pytest.mark.slow] if fixtures & _SLOW else []
    name = f"{block.page}:{block.line}"
    params.append(pytest.param(code, fixtures, id=name, marks=slow))
  return params


@contextlib.contextmanager
def modules_of(page: str, folder: pathlib.Path):
  """The page's modules, importable for a while."""
  names = [
    block.comments["file"]
    for block in PYTHON
    if block.page == page and "file" in block.comments
  ]
  for block in PYTHON:
    if block.page == page and "file" in block.comments:
      (folder / block.comments["file"]).write_text(block.text)
  importlib.invalidate_caches()
  try:
    yield
  finally:
    for name in names:
      sys.modules.pop(name.removesuffix(".py"), None)


@pytest.mark.parametrize("code, fixtures", runnable())
def test_a_block_of_python_runs(code, fixtures, tmp_path, monkeypatch):
  for name in fixtures:
    _FIXTURES[name](tmp_path)
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  with modules_of(code[0].page, tmp_path):
    scope = {"__name__": "__main__"}
    for block in code:
      if "file" in block.comments:
        module = block.comments["file"].removesuffix(".py")
        found = vars(importlib.import_module(module))
        found.get("get_config", dict)()
        scope |= found
        continue
      source = "\n" * block.line + block.text
      exec(compile(source, ROOT / block.page, "exec"), scope)


@pytest.mark.parametrize(
  "block", [b for b in PYTHON if "not run" in b.comments]
)
def test_a_block_that_is_not_run_is_python_all_the_same(block):
  compile(block.text, block.page, "exec")


# --- Commands -----------------------------------------------------------------

_VALUE = r"""(?:=(?:"[^"]*"|'[^']*'|[^\s`"')]+))?"""
_FLAG = rf"--[\w.]+{_VALUE}"
_MODULE = re.compile(rf"python -m (\w[\w.]*\w)((?:\s+{_FLAG})*)")
_SCRIPT = re.compile(rf"bash ([\w./-]+\.sh)((?:\s+{_FLAG})*)")
_OVERRIDE = re.compile(rf"--config\.[\w.]+{_VALUE}")
# `FILE`, `DIR`, `EXPERIMENT.py`: what a reader puts something in place of.
_PLACEHOLDER = re.compile(r"[A-Z]{2,}(\.\w+)?")
_OUTSIDE = ("mkdocs", "pip", "pytest", "ruff")  # `python -m pip`.


def is_open(name: str) -> bool:
  """Whether a part of a dotted name is a placeholder: `launch.NAME`."""
  return any(_PLACEHOLDER.fullmatch(part) for part in name.split("."))


def joined(text: str) -> str:
  """A text on one line, shell lines that go on included."""
  return " ".join(text.replace("\\\n", " ").split())


def flags_of(text: str) -> list[str]:
  return [
    flag.rstrip(".,;:").replace('"', "").replace("'", "")
    for flag in re.findall(_FLAG, text)
  ]


def texts() -> dict[str, str]:
  """Every text whose commands are checked, on one line, by its file."""
  found = {}
  for file in [*PAGES, *NOTES]:
    if file.name == "CHANGELOG.md":  # It has the old names.
      continue
    text = file.read_text()
    if file.suffix == ".py":
      text = ast.get_docstring(ast.parse(text))
    found[name_of(file)] = joined(text)
  return found


def commands() -> list[tuple[str, str, tuple[str, ...]]]:
  """(file, module, flags) of every command, scripts by their module."""
  found = {}
  for file, text in texts().items():
    for module, rest in _MODULE.findall(text):
      found[file, module, tuple(flags_of(rest))] = None
    for script, rest in _SCRIPT.findall(text):
      module = script.removesuffix(".sh").replace("/", ".")
      if (ROOT / f"{module.replace('.', '/')}.py").is_file():
        found[file, module, tuple(flags_of(rest))] = None
  return [c for c in found if c[1] not in _OUTSIDE and not is_open(c[1])]


COMMANDS = commands()


def source_of(module: str) -> pathlib.Path:
  return ROOT / f"{module.replace('.', '/')}.py"


def sources(module: str) -> list[str]:
  """The module's text, and those of `launch` and `experiments` it imports."""
  done, todo = {}, [module]
  while todo:
    name = todo.pop()
    if name in done or not source_of(name).is_file():
      continue
    done[name] = source_of(name).read_text()
    for found in re.findall(
      r"^from ((?:launch|experiments)[\w.]*) import ([\w, ]+)", done[name], re.M
    ):
      todo += [found[0]]
      todo += [f"{found[0]}.{n.strip()}" for n in found[1].split(",")]
  return list(done.values())


@pytest.mark.parametrize(
  "module", sorted({module for _, module, _ in COMMANDS})
)
def test_a_command_names_a_module_that_runs(module):
  where = [file for file, name, _ in COMMANDS if name == module]
  assert source_of(module).is_file(), f"{module} of {where}"
  assert "__main__" in source_of(module).read_text()


def test_commands_give_flags_that_there_are():
  wrong = []
  shared = pathlib.Path(config_lib.__file__).read_text()  # Of every command.
  for file, module, flags in COMMANDS:
    own = "\n".join(sources(module))
    # A call that defines several, such as a table of flags, has no name here.
    defines = r"(?:DEFINE_\w+|path_flag)\(\s*\"(\w+)\""
    known = set(re.findall(defines, shared)) - {"seed"} | {"help"}
    known |= set(re.findall(defines, own))
    if "config_lib.seed_flag(" in own:
      known.add("seed")
    if "config" in known:
      known.add("print_config")  # As `config_lib.run` defines it.
    for flag in flags:
      name = flag.removeprefix("--").partition("=")[0]
      if not name.startswith("config.") and name not in known:
        wrong.append(f"{file}: {module} has no --{name}")
  assert not wrong


def test_scripts_are_there():
  missing = [
    f"{file}: {script}"
    for file, text in texts().items()
    for script, _ in _SCRIPT.findall(text)
    if not (ROOT / script).is_file()
  ]
  assert not missing


def default_config(module: str) -> str | None:
  """The file that a command reads without `--config`."""
  found = (
    re.search(r'"config",\s*"(experiments/[\w/]+\.py)"', text)
    for text in sources(module)
  )
  return next((f[1] for f in found if f), None)


@functools.lru_cache
def load(file: str):
  """A config; skips where it needs what this machine lacks."""
  try:
    return config_lib.load(file)
  except ConfigError:
    raise
  except UserError as error:  # No SmolLM2, no QWEN2_5_FOLDER.
    pytest.skip(str(error))
  except ImportError as error:
    pytest.skip(f"needs an extra: {error}")


def overrides_of(flags: tuple[str, ...]) -> tuple[dict[str, str], set[str]]:
  """Overrides by name, and those whose value a reader has to fill in."""
  given, open_ = {}, set()
  for flag in flags:
    if not flag.startswith("--config."):
      continue
    name, equals, value = flag.removeprefix("--config.").partition("=")
    if not equals or _PLACEHOLDER.fullmatch(value):
      open_.add(name)
    else:
      given[name] = value
  return given, open_


# Not loaded: it writes half a gigabyte beside the model.
_HEAVY = ("experiments/smollm2_teacher.py",)


def configured() -> list:
  """(config file, flags) of commands that read a config, once each."""
  found = {}
  for file, module, flags in COMMANDS:
    named = [f for f in flags if f.startswith("--config=")]
    config = named[-1].partition("=")[2] if named else default_config(module)
    if config and not _PLACEHOLDER.fullmatch(config) and config not in SHOWN:
      changes = tuple(f for f in flags if f.startswith("--config."))
      found.setdefault((config, changes), file)
  params = []
  for (config, changes), file in found.items():
    reads_model = "smollm2" in config or "text_example" in config
    slow = [pytest.mark.slow] if reads_model else []
    name = f"{file}:{' '.join([config, *changes])}"
    if config not in _HEAVY:
      params.append(pytest.param(config, changes, id=name, marks=slow))
  return params


@pytest.mark.parametrize("file, flags", configured())
def test_overrides_of_a_command_are_accepted(file, flags):
  given, open_ = overrides_of(flags)
  config = load(file)
  for name in open_:
    config_lib._descend(config, name, {})
  if not open_:  # What is open may be what makes the others fit.
    config_lib.override(config, given)


PODS = {flags for _, module, flags in COMMANDS if module == "launch.tpu_pod"}


@pytest.mark.slow
@pytest.mark.parametrize("flags", sorted(PODS))
def test_a_command_for_a_pod_runs_as_far_as_the_cloud(flags):
  done = subprocess.run(
    [sys.executable, "-m", "launch.tpu_pod", *flags, "--dry_run"],
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "-m launch.train --distributed" in done.stdout


EXAMPLES = (
  "countdown", "maze", "noisy", "hybrid", "compare_countdown", "compare_noisy",
)  # fmt: skip


def bare_overrides() -> list[str]:
  """Overrides that a text names without a command."""
  found = {}
  for text in texts().values():
    rest = _SCRIPT.sub(" ", _MODULE.sub(" ", text))
    for flag in _OVERRIDE.findall(rest):
      flag = flag.rstrip(".,;:")
      if not is_open(flag.removeprefix("--").partition("=")[0]):
        found[flag] = None
  return sorted(found)


@pytest.mark.parametrize("flag", bare_overrides())
def test_an_override_named_in_a_text_is_known_somewhere(flag):
  given, open_ = overrides_of((flag,))
  errors = []
  for example in EXAMPLES:
    try:
      config = load(f"experiments/{example}.py")
      for name in open_:
        config_lib._descend(config, name, {})
      config_lib.override(config, given)
      return
    except ConfigError as error:
      if isinstance(error.__cause__, ValueError):
        return  # Known, but refused beside the other fields of this example.
      errors.append(str(error))
  pytest.fail("\n".join(errors))


NAMED = {
  flag.removeprefix("--config=")
  for _, _, flags in COMMANDS
  for flag in flags
  if flag.startswith("--config=")
}


@pytest.mark.parametrize("file", sorted(NAMED))
def test_a_config_file_is_there(file):
  shown = _PLACEHOLDER.fullmatch(file) or file in SHOWN
  assert shown or (ROOT / file).is_file()


# --- Links and shape ----------------------------------------------------------

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")


def anchors(text: str) -> set[str]:
  """Anchors of headings, as GitHub makes them."""
  found: set[str] = set()
  for heading in re.findall(r"^#+ (.*)$", text, re.M):
    slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    slugs = (slug, *(f"{slug}-{n}" for n in range(1, 99)))
    found.add(next(s for s in slugs if s not in found))
  return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
  broken = []
  text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
  for link in (a or b for a, b in _LINK.findall(text)):
    if re.match(r"\w+:", link):
      continue
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
      broken.append(link)
    elif anchor and anchor not in anchors(target.read_text()):
      broken.append(link)
  assert not broken


def test_files_named_in_the_pages_are_there():
  """Such as `experiments/maze.py`, from the root or a folder of the map."""
  missing = []
  folders = (ROOT, ROOT / "tsd_jax", ROOT / "experiments")
  for page in PAGES:
    if page.name == "CHANGELOG.md":
      continue
    spans = re.findall(
      r"`((?:[\w.]+/)+[\w.-]+\.(?:py|md|json|sh|ipynb))`", page.read_text()
    )
    missing += [
      f"{name_of(page)}: {span}"
      for span in spans
      if not re.search(r"\b[A-Z]{2,}_", span)  # `tests/NAME_test.py`
      and not any((folder / span).exists() for folder in folders)
    ]
  assert not missing


def test_the_readme_is_short():
  assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_every_page_of_the_folder_is_in_its_index():
  index = (ROOT / "docs" / "README.md").read_text()
  for page in (ROOT / "docs").rglob("*.md"):
    name = page.relative_to(ROOT / "docs").as_posix()
    assert name == "README.md" or f"({name})" in index, name


def test_the_map_quotes_the_order_of_imports():
  """If this fails: copy ORDER of imports_test.py into WORKSPACE.md."""
  quoted = [b.text for b in BLOCKS if b.page == "WORKSPACE.md"]
  assert ORDER.strip() + "\n" in quoted


def test_one_version_everywhere():
  import tsd_jax

  cited = (ROOT / "CITATION.cff").read_text()
  logged = (ROOT / "CHANGELOG.md").read_text()
  assert re.search(r"^version: (\S+)$", cited, re.M)[1] == tsd_jax.__version__
  assert re.search(r"^## (\S+)", logged, re.M)[1] == tsd_jax.__version__


def test_the_changelog_has_its_order():
  """The newest version first, and the parts of each as docs/release.md says."""
  logged = (ROOT / "CHANGELOG.md").read_text()
  versions, *texts = zip(
    *re.findall(r"^## ([\d.]+)\n(.*?)(?=^## |\Z)", logged, re.M | re.S),
    strict=True,
  )
  numbers = [[int(n) for n in version.split(".")] for version in versions]
  assert len(numbers) > 1 and numbers == sorted(numbers, reverse=True)
  known = ["Added", "Changed", "Removed", "Fixed"]
  for text in texts[0]:
    parts = re.findall(r"^### (.*)$", text, re.M)
    assert parts == [part for part in known if part in parts]
