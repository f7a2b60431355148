"""The scripts' messages on the command line if they cannot start."""

import runpy
import sys

import pytest

import resnet_jax as rj
from experiments import units
from experiments.input_pipeline import measure
from experiments.tables import ROOT


@pytest.mark.parametrize(
    ("script", "others"),
    [("export_speed/measure.py", []), ("photos/measure.py", []), ("presets/figure.py", ["x.png"])],
)
def test_a_folder_that_is_no_run_is_said_in_one_line(script, others, tmp_path, monkeypatch):
    path = str(ROOT / "experiments" / script)
    monkeypatch.setattr(sys, "argv", [path, str(tmp_path), *others])
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # otherwise it would start this process again
    with pytest.raises(SystemExit, match=r"^/.* is not a run: .*$"):
        runpy.run_path(path, run_name="__main__")


def test_a_step_is_measured_beside_its_reading(one_unit, monkeypatch):
    """With averaged weights, as presets have them, the script failed: its state had none."""
    monkeypatch.setattr(measure, "BLOCKS", 2)
    small = rj.ModelConfig(width=4, lowering="reference")
    config = rj.TrainConfig(small, rj.DataConfig(subset=(40, 10, 10)), ema=0.9, batch_size=10)
    found = measure.rates(config, 10)
    assert {name: len(rates) for name, rates in found.items()} == dict.fromkeys(
        ("pipeline", "step", "together"), 2
    )
    assert all(rate > 0 for rates in found.values() for rate in rates)


def test_a_wrong_regular_expression_is_said_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        units.parsed("Title.", tmp_path / "rows.jsonl", ["--only", "seed[0"])
    *_, line = capsys.readouterr().err.splitlines()
    assert "--only seed[0 is no regular expression: unterminated" in line
