"""What the scripts say on the command line where they cannot start."""

import runpy
import sys

import pytest

from experiments import units
from experiments.tables import ROOT


@pytest.mark.parametrize(
    ("script", "others"),
    [("export_speed/measure.py", []), ("photos/measure.py", []), ("presets/figure.py", ["x.png"])],
)
def test_a_folder_that_is_no_run_is_said_in_one_line(script, others, tmp_path, monkeypatch):
    path = str(ROOT / "experiments" / script)
    monkeypatch.setattr(sys, "argv", [path, str(tmp_path), *others])
    with pytest.raises(SystemExit, match=r"^\S+ is not a run: .*$"):
        runpy.run_path(path, run_name="__main__")


def test_a_wrong_regular_expression_is_said_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        units.parsed("Title.", tmp_path / "rows.jsonl", ["--only", "seed[0"])
    *_, line = capsys.readouterr().err.splitlines()
    assert "--only seed[0 is no regular expression: unterminated" in line
