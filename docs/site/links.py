"""Reads a built site: where its links lead, and what its pages load."""

import pathlib
import re
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

# What a browser reads by itself when it shows a page.
_LOADED = {
  ("img", "src"),
  ("script", "src"),
  ("source", "src"),
  ("source", "srcset"),
  ("iframe", "src"),
  ("link", "href"),
}


class Page(HTMLParser):
  """The links and anchors of a page."""

  def __init__(self):
    super().__init__()
    self.anchors: set[str] = set()
    self.links: list[tuple[bool, str]] = []  # (whether it is loaded, where).

  def handle_starttag(self, tag, attrs):
    """Notes where it leads, and what may lead to it."""
    given = dict(attrs)
    self.anchors |= {v for k, v in attrs if k in ("id", "name") and v}
    for key in ("href", "src", "srcset"):
      if link := given.get(key):
        loaded = (tag, key) in _LOADED and given.get("rel") != "canonical"
        self.links.append((loaded, link))


def read(file: pathlib.Path) -> Page:
  """A page of the site."""
  page = Page()
  page.feed(file.read_text(encoding="utf-8"))
  return page


def check(site: pathlib.Path) -> list[str]:
  """What is wrong with the links of a built site, a line each.

  Args:
    site: its folder.
  """
  site = site.resolve()
  pages = {file: read(file) for file in sorted(site.rglob("*.html"))}
  wrong = []
  for file, page in pages.items():
    if file.name == "404.html":  # Its links are from the root of a host.
      continue
    for loaded, link in dict.fromkeys(page.links):
      place = urlsplit(link)
      if place.scheme or place.netloc:
        if loaded and place.scheme != "data":
          wrong.append(f"{file.name} loads {link}")
        continue
      path = unquote(place.path)
      target = (file.parent / path).resolve() if path else file
      known = pages[target].anchors if target in pages else None
      if not target.exists():
        wrong.append(f"{file.name}: {link} is not there")
      elif place.fragment and known is not None:
        if unquote(place.fragment) not in known:
          wrong.append(f"{file.name}: {link} has no such anchor")
  for file in site.rglob("*.css"):
    for link in re.findall(r"url\([\"']?(https?:[^)\"']+)", file.read_text()):
      wrong.append(f"{file.name} loads {link}")
  return wrong
