"""Writes the numbers into the pages: the value of each expression behind its comment.

Command:   python -m experiments.residual_study.report

    It gains <!-- gain("book", 18, 0.005) -->+1.0 points<!-- end -->.

The expression calls a method of `analysis.Study`.
"""

import re
from pathlib import Path

from .analysis import Study

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "experiments/README.md", ROOT / "README.md")
MARK = re.compile(r"<!-- (\w+\([^>]*\)) -->(.*?)<!-- end -->", re.DOTALL)


def filled(page: str, study: Study) -> str:
    """The page with every number as the data have it."""
    return MARK.sub(lambda m: f"<!-- {m[1]} -->{value(m[1], study)}<!-- end -->", page)


def value(expression: str, study: Study) -> str:
    """What an expression comes to."""
    return str(eval(expression, {"__builtins__": {}}, study.names))


if __name__ == "__main__":
    study = Study()
    for path in PAGES:
        path.write_text(filled(path.read_text(), study))
