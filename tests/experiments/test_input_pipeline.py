"""The page on the input pipeline shows what was measured, and what was measured holds."""

import json
import shutil
import statistics
from pathlib import Path

from experiments.input_pipeline import measure


def test_the_page_is_what_the_script_makes_of_the_results(tmp_path):
    page = Path(shutil.copy(measure.HERE / "README.md", tmp_path))
    before = page.read_text()
    measure.write_tables(page)
    assert page.read_text() == before


def test_reading_is_faster_than_the_step_and_its_memory_flat():
    found = json.loads((measure.HERE / "results.json").read_text())
    assert set(found["rates"]) == set(measure.CASES)
    for rates in found["rates"].values():
        assert statistics.median(rates["pipeline"]) > statistics.median(rates["step"])
    memory = found["memory"]
    assert memory["decoded"] >= 9.99 * memory["limit"]
    assert memory["last_quarter"] < memory["first_quarter"] + 20
