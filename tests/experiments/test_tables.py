"""The pages show what was measured, and nothing else; what was measured holds."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from experiments import measuring
from experiments.measuring import append_row, interval, read_rows
from experiments.tables import MARK, MODULES, ROOT, filled, functions_of, pages, table


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_number_of_a_page_is_that_of_the_results(page):
    content = page.read_text()
    assert MARK.search(content), "no number in it comes from the results"
    assert MODULES.search(content), "it does not say in which modules its functions are"
    assert filled(content, functions_of(content)) == content, "run python -m experiments.tables"


def test_a_number_is_written_between_its_marks_alone():
    before = "<!-- gain(18) -->1<!-- end -->, not <!-- more -->2<!-- end -->.\n"
    before += "<!-- speed -->\n| old |\n<!-- end speed -->\nend\n"
    functions = {"gain": lambda n: str(n + 1), "more": lambda: "2"}
    functions["speed"] = lambda: table(["a", "b"], [[1, 2.5]])
    after = before.replace("1<", "19<").replace("| old |", "| a | b |\n| --- | --- |\n| 1 | 2.5 |")
    assert filled(before, functions) == after


def test_no_number_stands_in_the_answers_but_by_a_mark():
    pages = {"experiments/README.md": r"^\*\*Answer.*?(?=\n\n)", "docs/scaling.md": r"^- \*\*.*?$"}
    for page, pattern in pages.items():
        prose = MARK.sub("", (ROOT / page).read_text())
        answers = re.findall(pattern, prose, re.MULTILINE | re.DOTALL)
        assert len(answers) >= 3
        for answer in answers:
            assert not re.search(r"\d+\.?\d* (points|ms)", answer), answer


def test_a_line_that_a_kill_tore_is_done_again(tmp_path):
    path = tmp_path / "results.jsonl"
    append_row(path, {"seed": 0})
    with path.open("a") as file:
        file.write('{"seed": 1, "te')
    append_row(path, {"seed": 2})
    assert read_rows(path) == [{"seed": 0}, {"seed": 2}]
    assert read_rows(Path("missing.jsonl")) == []


def test_an_interval_is_students_of_one_sample_and_welchs_of_two():
    # Two degrees of freedom: 4.303 standard errors of 1 / sqrt(3).
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.484, 2 + 2.484), abs=1e-3)
    # Beside a sample of almost no variance Welch's test has two; with a pooled variance, three.
    assert interval([1.0, 2.0, 3.0], [1.999, 2.001]) == pytest.approx((-2.484, 2.484), abs=1e-3)
    assert interval(np.array([2.0, 2.0])) == (2.0, 2.0)
    assert np.isnan(interval([2.0])).all()  # said that any difference was certain


def test_cores_are_those_that_may_be_used(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert measuring.machine()["cores"] == 1
