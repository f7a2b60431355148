"""How deep a reader has to go: frames of the package between `rj.train` and a step."""

import traceback
from pathlib import Path

import pytest

import resnet_jax as rj
from resnet_jax.training.engine import Engine

PACKAGE = str(Path(rj.__file__).parent)


def test_from_the_library_to_the_step_are_three_frames(
    tiny_config, one_unit, tmp_path, monkeypatch
):
    names, train = [], Engine.train

    def looking(self, *args):
        stack = traceback.extract_stack()
        names[:] = [frame.name for frame in stack if frame.filename.startswith(PACKAGE)]
        return train(self, *args)

    monkeypatch.setattr(Engine, "train", looking)
    with pytest.raises(rj.ResNetJaxError, match=r"enough: saved step 1 of 12 in .* continues"):
        rj.train(tiny_config, tmp_path, quiet=True, should_stop=lambda: "enough")
    assert names == ["train", "fit"]  # and the step, `Engine.train`
