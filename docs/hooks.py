"""
Prepares the sources of the site's pages: rewrites links to files of the repository that are not part of the site, and
formats examples and references such as [`RegionLearnerModel`] in docstrings.
"""

import html
import re
from pathlib import Path

import griffe

_LINK_OUT = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)[^)]*\)")
_EXAMPLE = re.compile(r"^(Example.*:)\n\n?((?: {4}.*\n|\n)* {4}.*)(?:\n|$)", re.MULTILINE)
_TYPE = re.compile(r"^( {4,}[\w, ]+ \()((?:`|of shape ).+?)(\):)", re.MULTILINE)
_REFERENCE = re.compile(r"\[<code>~?([\w.]+)</code>\](?![\[(])")


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Links to files beside docs/ go to the repository, if `repo_url` names it; otherwise they become their path."""
    if "/" in page.file.src_uri:
        return markdown

    def without_link(match: re.Match) -> str:
        text, path = match[1], match[2].rstrip("/")
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path})"
        return f"`{path}`" if path.endswith(text.strip("`")) else f"{text} (`{path}`)"

    return _LINK_OUT.sub(without_link, markdown)


class Docstrings(griffe.Extension):
    """Makes code of the examples in docstrings, which are indented, and plain text of types such as (`int`)."""

    def on_object(self, *, obj: griffe.Object, **kwargs):
        if obj.docstring is not None:
            text = _EXAMPLE.sub(_with_fences, obj.docstring.value).replace("```python\n>>>", "```pycon\n>>>")
            obj.docstring.value = _TYPE.sub(lambda match: match[1] + re.sub("[`*]", "", match[2]) + match[3], text)


def _with_fences(match: re.Match) -> str:
    lines = [line.removeprefix("    ") for line in match[2].splitlines()]
    return "\n".join([match[1], "", "```python", *lines, "```", ""])


def _documented(docs_dir: str) -> dict[str, str]:
    """Returns the full name of each object of the API reference, by its last part."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in sorted(Path(docs_dir, "api").glob("*.md")))
    return {name.rpartition(".")[2]: name for name in re.findall(r"^::: ([\w.]+)", pages, re.MULTILINE)}


def on_page_content(content: str, page, config, files) -> str:
    """References in docstrings become links, where the API reference has what they name."""
    known = _documented(config.docs_dir) if page.file.src_uri.startswith("api/") else {}

    def link(match: re.Match) -> str:
        first, dot, rest = match[1].partition(".")
        code = f"<code>{html.escape(match[1])}</code>"
        if first not in known:
            return code
        return f'<autoref optional identifier="{known[first]}{dot}{rest}">{code}</autoref>'

    return _REFERENCE.sub(link, content)
