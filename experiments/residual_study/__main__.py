"""What does the shortcut do, with depth, learning rate and batch norm varied?

Command:   python -m experiments.residual_study     (all 248 runs, three hours; --quick, --list)
Needs:     the full MNIST prepared ($TFDS_DATA_DIR, or `resnet-jax data prepare mnist`)
Result:    results.jsonl, a line for each finished run; README.md and results.ipynb tell the rest
"""

from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path

from experiments import units
from experiments.measuring import Row
from experiments.residual_study.measure import Laboratory, carry_out
from experiments.residual_study.study import QUICK_SETTINGS, RESULTS, SETTINGS, Run, runs
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.load import load_splits
from resnet_jax.training.jax_settings import configured_jax


def main(arguments: list[str] | None = None) -> None:
    options = units.parsed(__doc__, RESULTS, arguments)
    settings = QUICK_SETTINGS if options.quick else SETTINGS

    @cache
    def data(setting: str) -> Dataset:
        return load_splits(settings[setting].data)[0]

    # No more than one network's programs are in memory; its learning rate and seed do not count.
    @lru_cache(maxsize=1)
    def laboratory(any_of_its_runs: Run) -> Laboratory:
        return Laboratory(any_of_its_runs, settings[any_of_its_runs.setting])

    def work(run: Run, _: Path) -> Row:
        return carry_out(run, laboratory(replace(run, rate=0.0, seed=0)), data(run.setting))

    with configured_jax(settings["book"]):
        units.carry_out(runs(options.quick), options, work)


if __name__ == "__main__":
    main()
