"""Write the measured numbers into the Markdown pages.

Command:   python -m experiments.tables            (every page, from the committed results)
           python -m experiments.tables --check    (changes nothing; 1 where a page differs)
Result:    the pages of `PAGES`

A page marks the place of a number or of a table, by a name or by a call with literal arguments.
What stands between the marks is the script's; nobody types it:

    <!-- speed -->
    | a table |
    <!-- end speed -->

    The shortcut gains <!-- gain("book", 18, 0.005) -->+0.4 points<!-- end -->.
"""

import argparse
import ast
import importlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARK = re.compile(
    r"<!-- (?P<name>(?P<function>\w+)(?:\((?P<arguments>[^>]*)\))?) -->.*?"
    r"(?P<end><!-- end(?: \w+)? -->)",
    re.DOTALL,
)
# The modules whose functions the marks of a page call; `values()` where they are no module's own.
PAGES = {
    "README.md": (
        "presets.measure",
        "residual_study.analysis",
        "cpu_speed.plot",
        "cifar10.figure",
    ),
    "docs/scaling.md": ("scaling.paper", "scaling.decode"),
    "experiments/README.md": ("residual_study.analysis", "residual_study.torchvision"),
    "experiments/cifar10/README.md": ("cifar10.figure",),
    "experiments/cpu_speed/README.md": ("cpu_speed.plot",),
    "experiments/export_speed/README.md": ("export_speed.measure",),
    "experiments/fine_tuning/README.md": ("fine_tuning.run",),
    "experiments/gpu_speed/README.md": ("gpu_speed.__main__",),
    "experiments/folder_preset/README.md": ("folder_preset.summary",),
    "experiments/input_pipeline/README.md": ("input_pipeline.measure",),
    "experiments/mnist_record/README.md": ("mnist_record.figure",),
    "experiments/photos/README.md": ("photos.measure",),
    "experiments/presets/README.md": ("presets.measure",),
    "experiments/saliency/README.md": ("saliency.measure",),
    "experiments/scaling/README.md": ("scaling.plot", "scaling.decode"),
}


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    head = list(map(str, head))
    lines = [head, ["---"] * len(head), *(map(str, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def numbers(page: Path) -> dict[str, str]:
    """Compute the text behind every mark of a page, by the mark's name."""
    modules = PAGES[str(page.relative_to(ROOT))]
    functions, texts = {}, {}
    for module in (importlib.import_module(f"experiments.{name}") for name in modules):
        functions |= module.values() if hasattr(module, "values") else vars(module)
    for mark in MARK.finditer(page.read_text()):
        if mark["function"] not in functions:
            raise ValueError(f"{page}: none of {', '.join(modules)} computes {mark['name']}")
        arguments = ast.literal_eval(f"({mark['arguments']},)") if mark["arguments"] else ()
        texts[mark["name"]] = functions[mark["function"]](*arguments)
    return texts


def replaced(content: str, name: str, text: str) -> str:
    """The content of a page with this text behind the mark, a table on lines of its own."""
    line = "\n" if text.startswith("|") else ""

    def between(mark: re.Match[str]) -> str:
        return (
            f"<!-- {name} -->{line}{text}{line}{mark['end']}" if mark["name"] == name else mark[0]
        )

    return MARK.sub(between, content)


def write(page: Path, name: str, text: str) -> None:
    page.write_text(replaced(page.read_text(), name, text))


def differing(page: Path) -> list[str]:
    """The marks of a page behind which stands something else than the results have."""
    content = page.read_text()
    return [n for n, text in numbers(page).items() if replaced(content, n, text) != content]


def main() -> int:
    """Write the pages; with --check say what differs, and return 1 if anything does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if a page differs")
    options = parser.parse_args()
    code = 0
    for page in (ROOT / name for name in PAGES):
        for name in differing(page):
            if options.check:
                print(f"{page}: {name} differs; run python -m experiments.tables")
                code = 1
            else:
                write(page, name, numbers(page)[name])
    return code


if __name__ == "__main__":
    sys.exit(main())
