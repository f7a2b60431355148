"""Extensions of mkdocs.yml: README as first page, links within the site, examples as code."""

import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File

COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)  # the marks between which scripts write numbers
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)]+)\)")


def on_files(files, config):
    readme = (Path(config.config_file_path).parent / "README.md").read_text()
    files.append(File.generated(config, "index.md", content=readme))
    return files


def on_page_markdown(markdown, page, config, files):
    """Show a link to a file that the site does not hold, as to the source, as the file's name."""

    def inside(match):
        text, target = match.groups()
        if page.file.src_uri == "index.md":
            leaves = not target.startswith(("docs/", "http"))
        else:
            leaves = target.startswith("../")
        path = target.removeprefix("../").split("#")[0]
        named = text if path in text else f"{text} (`{path}`)"
        return named if leaves else match[0]

    markdown = LINK.sub(inside, COMMENT.sub("", markdown))
    if page.file.src_uri == "index.md":
        markdown = markdown.replace("](docs/", "](")
    return markdown.replace("```python quote\n", "```python\n")


class Examples(griffe.Extension):
    """Put the examples of docstrings into code blocks, wherever in the docstring they are."""

    LINES = re.compile(r"^( *)>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)

    def on_instance(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = self.LINES.sub(
                lambda match: f"{match[1]}```python\n{match[0]}\n{match[1]}```",
                re.sub(r" *# doctest: .*", "", obj.docstring.value),
            )

    def on_package(self, *, pkg, **_):
        """Make public what a lazy module's stub imports: its `__all__` is not written out."""
        for module in (pkg["inspection"], pkg["interop"]):
            names = module.members.items()
            module.exports = [n for n, m in names if m.is_alias and n != "lazy_loader"]
