"""What MkDocs does beside its own for this site; `mkdocs.yml` names this file.

The pages are those that GitHub shows: nothing is copied. Those outside `docs/`
join the site here, notebooks too, and their links follow them. The API page is
made from the public names, formulas become MathML, and a build in which a link
leads nowhere or a page reads anything from another host fails.
"""

import html
import json
import pathlib
import posixpath
import re
import sys

from latex2mathml import converter
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import api_page  # noqa: E402  (modules beside this one)
import links  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Pages outside of docs/, and what they are called in the site.
JOINED = {
  "README.md": "index.md",
  "WORKSPACE.md": "workspace.md",
  "CONTRIBUTING.md": "contributing.md",
  "CHANGELOG.md": "changelog.md",
  "launch/README.md": "launch.md",
  "experiments/README.md": "experiments.md",
  "experiments/RESULTS.md": "tables.md",
  "experiments/results/NOTES.md": "notes.md",
  "tsd_jax/models/README.md": "text.md",
}
NOTEBOOKS = {
  "experiments/colab.ipynb": "notebooks/train.md",
  "experiments/thoughts.ipynb": "notebooks/thoughts.md",
}
# What stands for other files: the navigation for the index of docs/.
MOVED = {
  **JOINED,
  **NOTEBOOKS,
  "docs/README.md": "index.md",
  "tsd_jax/__init__.py": "api.md",
}
_SOURCE = {page: source for source, page in (JOINED | NOTEBOOKS).items()}


# --- Pages --------------------------------------------------------------------


def on_files(files, config):
  """Adds the pages outside of `docs/`, the notebooks', and the API's."""
  for source, page in JOINED.items():
    files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
  for source, page in NOTEBOOKS.items():
    text = notebook(json.loads((ROOT / source).read_text()), source)
    files.append(File.generated(config, page, content=text))
  files.append(File.generated(config, "api.md", content=api_page.page()))
  return files


def notebook(content: dict, source: str) -> str:
  """The cells of a notebook as a page, its first heading first.

  Args:
    content: of the .ipynb.
    source: its path in the repository.
  """
  cells = []
  for cell in content["cells"]:
    text = "".join(cell["source"])
    code = cell["cell_type"] == "code"
    cells.append(f"```python\n{text}\n```" if code else text)
  heading, _, rest = cells[0].partition("\n")
  said = f"*A notebook, `{source}`: what it prints and draws, it shows there.*"
  return "\n\n".join([heading, said, rest.strip(), *cells[1:]]) + "\n"


# --- Text ---------------------------------------------------------------------

_FILE = re.compile(
  r"<!-- file: (\S+) -->\n(?:<!--.*-->\n)*```python$", re.MULTILINE
)
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)
_NESTED = re.compile(r"^ {2,3}(?=[-*] |\d+\. )", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
_PICTURE = re.compile(
  r"<picture>\s*<source[^>]*srcset=\"(?P<dark>[^\"]+)\">\s*"
  r"<img src=\"(?P<light>[^\"]+)\" alt=\"(?P<alt>[^\"]*)\">\s*</picture>"
)


def title(page: pathlib.Path) -> str:
  """What a link that says a page's file says instead: its first heading."""
  if page.name == "RESULTS.md":  # Which is called like another page.
    return "the tables"
  headings = re.findall(r"^# (.*)$", page.read_text(), re.MULTILINE)
  return headings[0]


def on_page_markdown(markdown, page, config, files):
  """A page of GitHub as one of the site.

  Links lead from where the page is in the site. A picture of two themes follows
  the site's own switch. A block that is a file says its name. Python-Markdown
  nests lists by four spaces.
  """
  del files
  here = page.file.src_uri
  source = _SOURCE.get(here, f"docs/{here}")
  sources = config.extra["sources"].rstrip("/")

  def in_repository(path: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), path))

  def target(link: str) -> str | None:
    """A link of the repository as one of the site; None where it has none."""
    path, sharp, anchor = link.partition("#")
    if not path or re.match(r"\w+:", link):
      return link
    path = in_repository(path)
    if path in MOVED:
      path = MOVED[path]
    elif path.startswith("docs/"):
      path = path.removeprefix("docs/")
    elif (ROOT / path).exists():
      return f"{sources}/{path}" if sources else None
    path = posixpath.relpath(path, posixpath.dirname(here) or ".")
    return path + sharp + anchor

  def link(found: re.Match) -> str:
    words, place = found[1], target(found[2])
    named = ROOT / in_repository(found[2].partition("#")[0])
    if re.fullmatch(r"[\w./]+\.md", words) and named.is_file():
      words = title(named)  # A page has no file's name in the site.
    return words if place is None else f"[{words}]({place})"

  def picture(found: re.Match) -> str:
    return "\n".join(
      f"![{found['alt']}]({target(found[theme])}#only-{theme})"
      for theme in ("light", "dark")
    )

  markdown = _FILE.sub(r'```python title="\1"', markdown)
  parts = _FENCE.split(markdown)
  for i in range(0, len(parts), 2):  # The others are fenced.
    parts[i] = _NESTED.sub("    ", _COMMENT.sub("", parts[i]))
    parts[i] = _PICTURE.sub(picture, _LINK.sub(link, parts[i]))
  return "".join(parts)


_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S)
_DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]</div>', re.S)


def mathml(latex: str, display: str) -> str:
  """A formula of LaTeX as MathML.

  Raises:
    PluginError: it holds a command that the converter does not know.
  """
  latex = latex.strip().replace(r"\arg", r"\operatorname{arg}")
  formula = converter.convert(latex, display=display)
  if unknown := re.search(r">(\\\w+)", formula):
    raise PluginError(f"{latex}: {unknown[1]} cannot be shown in the site")
  return formula


def on_page_content(html_text, page, config, files):
  """Formulas as MathML, which browsers draw by themselves."""
  del page, config, files

  def inline(found: re.Match) -> str:
    return mathml(html.unescape(found[1]), "inline")

  def display(found: re.Match) -> str:
    formula = mathml(html.unescape(found[1]), "block")
    return f'<div class="formula">{formula}</div>'

  return _INLINE.sub(inline, _DISPLAY.sub(display, html_text))


# --- Checks -------------------------------------------------------------------


def on_post_build(config):
  """Fails where a link leads nowhere, or a page reads from another host."""
  wrong = links.check(pathlib.Path(config.site_dir))
  if wrong:
    raise PluginError("\n".join(["links of the built site:", *wrong]))
