"""Write the measured numbers into the Markdown pages.

Command:   python -m experiments.tables    (every page, from the committed results)
Result:    the pages of `PAGES`; the tests say where one differs from its results

A page marks the place of a number or of a table, by a name or by a call with literal arguments.
What stands between the marks is the script's; nobody types it:

    <!-- speed -->
    | a table |
    <!-- end speed -->

    The shortcut gains <!-- gain("book", 18, 0.005) -->+0.4 points<!-- end -->.
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
# The modules whose functions the marks of a page call; `values()` where they are no module's own.
PAGES = {
    "README.md": ("presets.measure", "residual_study.analysis", "cpu_speed.plot", "cifar10.figure"),
    "docs/scaling.md": ("scaling.paper", "scaling.decode"),
    "experiments/README.md": ("residual_study.analysis", "residual_study.torchvision"),
    "experiments/cifar10/README.md": ("cifar10.figure",),
    "experiments/cpu_speed/README.md": ("cpu_speed.plot",),
    "experiments/export_speed/README.md": ("export_speed.measure",),
    "experiments/fine_tuning/README.md": ("fine_tuning.run",),
    "experiments/gpu_speed/README.md": ("gpu_speed.__main__",),
    "experiments/folder_preset/README.md": ("folder_preset.__main__",),
    "experiments/input_pipeline/README.md": ("input_pipeline.measure",),
    "experiments/mnist_record/README.md": ("mnist_record.figure",),
    "experiments/photos/README.md": ("photos.measure",),
    "experiments/presets/README.md": ("presets.measure",),
    "experiments/saliency/README.md": ("saliency.measure",),
    "experiments/scaling/README.md": ("scaling.plot", "scaling.decode"),
}


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    head, rows = list(head), list(rows)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) if rows else MISSING


def crossed(cells: Mapping[tuple[str, ...], str], *head: str) -> str:
    """A table of cells by the names of their row and by their column, in the order of the cells."""
    rows, columns = dict.fromkeys(k[:-1] for k in cells), dict.fromkeys(k[-1] for k in cells)
    lines = ([*row, *(cells.get((*row, column), "") for column in columns)] for row in rows)
    return table([*head, *columns], lines)


def functions_of(page: Path) -> dict[str, Callable[..., str]]:
    found: dict[str, Callable[..., str]] = {}
    for name in PAGES[str(page.relative_to(ROOT))]:
        module = importlib.import_module(f"experiments.{name}")
        found |= module.values() if hasattr(module, "values") else vars(module)
    return found


def filled(content: str, functions: Mapping[str, Callable[..., str]]) -> str:
    """The content of a page with what the functions say behind the marks, a table on own lines."""

    def between(mark: re.Match[str]) -> str:
        arguments = ast.literal_eval(f"({mark['arguments']},)") if mark["arguments"] else ()
        text = functions[mark["function"]](*arguments)
        line = "\n" if text.startswith("|") else ""
        return f"<!-- {mark['name']} -->{line}{text}{line}{mark['end']}"

    return MARK.sub(between, content)


if __name__ == "__main__":
    for name in PAGES:
        page = ROOT / name
        page.write_text(filled(page.read_text(), functions_of(page)))
