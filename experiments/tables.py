"""Write the measured numbers into the Markdown pages.

Command:   python -m experiments.tables    (every page, from the committed results)
Result:    the pages; a test fails where one differs from its results

A page marks each number or table with the function that writes it, and literal arguments if any.
The page's last comment names the modules of experiments/ with these functions; a module may return
them from `values()`. The script writes the text between the marks; nobody types it:

    <!-- speed -->
    | a table |
    <!-- end speed -->

    The shortcut gains <!-- gain("book", 18, 0.005) -->+0.4 points<!-- end -->.

    <!-- numbers by cpu_speed.plot, residual_study.analysis -->
"""

import ast
import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
MISSING = "not yet measured"
MARK = re.compile(
    r"<!-- (?P<name>(?P<function>\w+)(?:\((?P<arguments>[^>]*)\))?) -->.*?"
    r"(?P<end><!-- end(?: \w+)? -->)",
    re.DOTALL,
)
MODULES = re.compile(r"<!-- numbers by ([\w., ]+) -->")


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    head, rows = list(head), list(rows)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) if rows else MISSING


def crossed(cells: Mapping[tuple[str, ...], str], *head: str) -> str:
    """Return a table of cells, in their order; keys are the names of the row, then the column."""
    rows, columns = dict.fromkeys(k[:-1] for k in cells), dict.fromkeys(k[-1] for k in cells)
    lines = ([*row, *(cells.get((*row, column), "") for column in columns)] for row in rows)
    return table([*head, *columns], lines)


def pages() -> list[Path]:
    """Return the pages with marks."""
    found = ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/**/*.md")
    return sorted(page for page in found if "<!-- " in page.read_text())


def functions_of(content: str) -> dict[str, Callable[..., str]]:
    found: dict[str, Callable[..., str]] = {}
    for name in MODULES.search(content)[1].split(", "):
        module = importlib.import_module(f"experiments.{name}")
        found |= module.values() if hasattr(module, "values") else vars(module)
    return found


def filled(content: str, functions: Mapping[str, Callable[..., str]]) -> str:
    """Return a page with the functions' texts between its marks, tables on lines of their own."""

    def between(mark: re.Match[str]) -> str:
        arguments = ast.literal_eval(f"({mark['arguments']},)") if mark["arguments"] else ()
        text = functions[mark["function"]](*arguments)
        line = "\n" if text.startswith("|") else ""
        return f"<!-- {mark['name']} -->{line}{text}{line}{mark['end']}"

    return MARK.sub(between, content)


if __name__ == "__main__":
    for page in pages():
        content = page.read_text()
        page.write_text(filled(content, functions_of(content)))
