"""The site: links as they become in it, formulas, and what its check refuses.

`.ci/run` builds the whole of it with `mkdocs build --strict`.
"""

import importlib.util
import pathlib
import re
import sys

import pytest

from tests.docs_test import PAGES, ROOT, name_of
from tsd_jax import api

pytest.importorskip("mkdocs", reason="needs the extra: docs")
pytest.importorskip("latex2mathml", reason="needs the extra: docs")

from mkdocs.config import load_config
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from mkdocs.structure.pages import Page

FOLDER = ROOT / "docs" / "site"


def load(name):
  """A module of the folder, which is no package."""
  spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


links = load("links")


@pytest.fixture(scope="module")
def hooks():
  yield load("hooks")
  sys.path.remove(str(FOLDER))
  for name in ("api_page", "links"):
    sys.modules.pop(name, None)


@pytest.fixture
def shown(hooks):
  """Shows a text as a page of the site has it."""
  config = load_config(str(ROOT / "mkdocs.yml"))

  def show(text, page, sources=""):
    config.extra["sources"] = sources
    file = File(page, config.docs_dir, config.site_dir, False)
    return hooks.on_page_markdown(text, Page(None, file, config), config, None)

  return show


# --- Links --------------------------------------------------------------------


@pytest.mark.parametrize(
  "page, link, expected",
  [
    ("index.md", "docs/method.md#losses", "method.md#losses"),
    ("index.md", "launch/README.md", "launch.md"),
    ("method.md", "#losses", "#losses"),
    ("method.md", "../README.md", "index.md"),
    ("method.md", "README.md", "index.md"),
    ("tutorials/game.md", "../../WORKSPACE.md#a", "../workspace.md#a"),
    ("tutorials/game.md", "text.md", "text.md"),
    ("tutorials/game.md", "../../tsd_jax/__init__.py", "../api.md"),
    ("notes.md", "../../docs/results.md", "results.md"),
    ("text.md", "../../docs/models.md", "models.md"),
    ("text.md", "https://example.org/a", "https://example.org/a"),
  ],
)  # fmt: skip
def test_a_link_leads_to_where_the_page_is_in_the_site(
  shown, page, link, expected
):
  assert shown(f"See [`it`]({link}).", page) == f"See [`it`]({expected})."


def test_a_file_that_is_no_page_is_text_or_leads_to_the_sources(shown):
  text = "[cite](CITATION.cff) it"
  assert shown(text, "index.md") == "cite it"
  there = shown(text, "index.md", sources="https://host/main/")
  assert there == "[cite](https://host/main/CITATION.cff) it"


def test_a_file_that_is_not_there_is_left_for_mkdocs_to_refuse(shown):
  assert shown("[a](docs/none.md)", "index.md") == "[a](none.md)"


def test_a_link_that_says_a_pages_file_says_its_heading(shown):
  assert shown("[docs/speed.md](docs/speed.md#sampling)", "index.md") == (
    "[Speed](speed.md#sampling)"
  )
  assert shown("[NOTES.md](results/NOTES.md)", "experiments.md") == (
    "[Ideas tried for search and learning](notes.md)"
  )
  assert shown("[RESULTS.md](../experiments/RESULTS.md)", "results.md") == (
    "[the tables](tables.md)"
  )


def test_what_is_fenced_stays_as_it_is(shown):
  text = "```text\n[a](CITATION.cff) <!-- b -->\n```\n"
  assert shown(text, "index.md") == text


def test_a_block_that_is_a_file_says_its_name(shown):
  text = "<!-- file: a.py -->\n<!-- fixture: text -->\n```python\nx = 1\n```\n"
  assert shown(text, "index.md") == '```python title="a.py"\nx = 1\n```\n'


def test_a_picture_of_two_themes_is_two_pictures(shown):
  readme = (ROOT / "README.md").read_text()
  page = shown(readme, "index.md")
  found = re.findall(r"!\[Held-out [^\]]*\]\((.*?)\)", page)
  assert found == [
    f"images/curves-{theme}.svg#only-{theme}" for theme in ("light", "dark")
  ]
  assert "<picture>" not in page and "<!--" not in page


def test_a_list_in_a_list_is_nested_as_python_markdown_wants_it(shown):
  text = "1. one\n   - two\n     goes on\n- three\n"
  assert shown(text, "index.md") == text.replace("   - two", "    - two")


def test_every_page_is_in_the_navigation(hooks):
  config = load_config(str(ROOT / "mkdocs.yml"))
  named = set(re.findall(r"[\w/]+\.md", str(config.nav)))
  outside = {ROOT / source for source in hooks.JOINED}
  inside = {name_of(p).removeprefix("docs/") for p in set(PAGES) - outside}
  joined = {*hooks.JOINED.values(), *hooks.NOTEBOOKS.values(), "api.md"}
  assert named == (inside - {"README.md"}) | joined
  assert hooks.NOTEBOOKS.keys() == {
    str(file.relative_to(ROOT)) for file in ROOT.glob("experiments/*.ipynb")
  }


def test_a_notebook_is_a_page_of_its_cells(hooks):
  cells = [
    {"cell_type": "markdown", "source": ["# Title\n", "\n", "Words."]},
    {"cell_type": "code", "source": ["x = 1\n", "x"]},
  ]
  assert hooks.notebook({"cells": cells}, "a.ipynb") == (
    "# Title\n\n*A notebook, `a.ipynb`: what it prints and draws, it shows "
    "there.*\n\nWords.\n\n```python\nx = 1\nx\n```\n"
  )


def test_the_api_is_that_of_the_package(hooks):
  page = hooks.api_page.page()
  found = re.findall(r"^::: ([\w.]+)\.(\w+)$", page, re.MULTILINE)
  assert {name for _, name in found} == set(api.__all__)
  for module, name in found:
    assert getattr(api, name).__module__ == module


def test_a_config_has_a_table_of_its_fields(hooks):
  rows = hooks.api_page.fields(api.EvalConfig).splitlines()[2:]
  assert rows[0] == (
    "| `every` | an integer | `10` | Iterations; 0: at the start and the end "
    "only. |"
  )
  assert rows[1].startswith("| `modes` | a text | `greedy,mean@16` |")
  assert len(rows) == 4
  assert "| `task` | TaskConfig | required |" in hooks.api_page.fields(
    api.Experiment
  )
  # A class whose docstring has its attributes needs none.
  assert hooks.api_page.fields(api.Model) == ""


# --- Formulas -----------------------------------------------------------------


def formulas():
  """What stands between dollars in the pages, outside of code."""
  for page in PAGES:
    text = re.sub(
      r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.M | re.S
    )
    yield from re.findall(r"\$\$(.+?)\$\$", text, re.S)
    yield from re.findall(r"(?<!\$)\$([^$]+)\$(?!\$)", text)


def test_every_formula_can_be_shown(hooks):
  shown = [hooks.mathml(formula, "inline") for formula in formulas()]
  assert len(shown) > 80
  assert not [s for s in shown if "\\" in s]


def test_an_unknown_command_of_latex_is_refused(hooks):
  with pytest.raises(PluginError, match=r"\\nonsense cannot be shown"):
    hooks.mathml(r"a + \nonsense", "inline")


def test_a_formula_of_a_page_becomes_mathml(hooks):
  page = (
    '<p><span class="arithmatex">\\(a &lt; b\\)</span></p>'
    '<div class="arithmatex">\n\\[c\\]</div>'
  )
  shown = hooks.on_page_content(page, None, None, None)
  assert "arithmatex" not in shown and shown.count("<math ") == 2
  assert "<mo>&#x0003C;</mo>" in shown  # And not &lt;'s four letters.
  assert '<div class="formula"><math' in shown


# --- The check of what was built ----------------------------------------------


def site(folder: pathlib.Path, body: str) -> pathlib.Path:
  """A site of two pages and a picture."""
  (folder / "a").mkdir()
  (folder / "index.html").write_text(body)
  (folder / "a" / "b.html").write_text('<h2 id="here">x</h2>')
  (folder / "a" / "c.svg").write_text("<svg/>")
  return folder


def test_a_whole_site_passes(tmp_path):
  body = """
    <link rel="canonical" href="https://host/index.html">
    <a href="a/b.html#here">1</a> <a href="#top" id="top">2</a>
    <img src="a/c.svg#only-light"> <a href="https://elsewhere.org/x#y">3</a>
    <img src="data:image/png;base64,AA"> <a href="mailto:a@b.org">4</a>
  """
  assert links.check(site(tmp_path, body)) == []


@pytest.mark.parametrize(
  "body, word",
  [
    ('<a href="none.html">', "none.html is not there"),
    ('<a href="a/b.html#gone">', "no such anchor"),
    ('<a href="#gone">', "no such anchor"),
    ('<img src="a/none.svg">', "is not there"),
    ('<script src="https://cdn.org/x.js">', "loads https://cdn.org"),
    ('<link rel="stylesheet" href="//fonts.org/x">', "loads //fonts.org"),
    ('<img src="https://host/x.png">', "loads https://host"),
  ],
)
def test_what_is_wrong_is_named(tmp_path, body, word):
  (found,) = links.check(site(tmp_path, body))
  assert word in found


def test_a_style_that_loads_a_font_is_named(tmp_path):
  site(tmp_path, "")
  (tmp_path / "x.css").write_text("@font-face{src:url(https://fonts.org/f)}")
  assert links.check(tmp_path) == ["x.css loads https://fonts.org/f"]
