"""Each verb uses what it was told, and reads pictures as its run did."""

import dataclasses

import numpy as np
from make_datasets import picture

import resnet_jax as rj
from resnet_jax.config import replaced
from resnet_jax.data.image import DecodeSpec, read_image
from resnet_jax.inspection import report
from resnet_jax.training.run_folder import RunFolder


def test_every_verb_reads_the_checkpoint_that_it_is_told(own_run, command, tmp_path, monkeypatch):
    """In other tests the best step is the latest."""
    asked, read = set(), RunFolder.read_variables
    monkeypatch.setattr(
        RunFolder, "read_variables", lambda f, which: asked.add(which) or read(f, which)
    )
    monkeypatch.setattr(report, "_figures", lambda *_: ())
    digit = picture(tmp_path / "digit.png", 0, (28, 28), "L")
    for verb, *words in (
        ["evaluate"],
        ["predict", digit, "--explain", tmp_path / "out"],
        ["export", "--format", "torchvision"],
        ["report"],
    ):
        asked.clear()
        assert command(verb, own_run, *words, "--checkpoint", "latest")[0] == 0
        assert asked == {"latest"}, verb


def test_pictures_are_read_as_the_run_read_them(own_run, tmp_path, monkeypatch):
    folder, read = RunFolder(own_run), []
    record = folder.read_record()
    config = replaced(record.config, {"data.fit": "crop", "data.background": 200})
    folder.write_record(dataclasses.replace(record, config=config))
    answer = np.eye(10)[:1]
    monkeypatch.setattr(rj.Run, "predict", lambda _, images, __: read.extend(images) or answer)
    path = picture(tmp_path / "a.png", 0, (40, 20), "RGBA")
    list(rj.inspection.classify_files(rj.Run.open(own_run), path))
    np.testing.assert_array_equal(read[0], read_image(path, DecodeSpec((28, 28, 1), "crop", 200)))


def test_verify_puts_the_background_under_transparent_pixels(tmp_path, command):
    for seed, name in enumerate("aabb"):
        picture(tmp_path / name / f"{seed}.png", seed, mode="RGBA")
    assert command("verify", tmp_path)[0] == 1
    assert command("verify", tmp_path, "--data.background", 255)[0] == 0
