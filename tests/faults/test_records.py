"""TFDS records with an impossible label or image size."""

import numpy as np
import pytest
from make_datasets import build, encoded, refusal, refused

import resnet_jax as rj

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_split_without_labels_is_left_out_and_another_label_is_refused(tmp_path, command):
    """The label -1, which stands for an unpublished label, ended in a traceback."""
    image = encoded(np.zeros((28, 28), np.uint8))
    build(tmp_path, {"train": [(image, 0)] * 9, "test": [(image, -1)] * 5}, name="mnist")
    assert "label -1, not 0 to 9" in refusal(tmp_path, "mnist")
    labelled = [(image, k % 10) for k in range(20)]
    build(tmp_path, {"train": labelled, "test": [(image, -1)] * 5})
    data = rj.load_dataset("digits", tmp_path)
    assert (len(data.train) + len(data.validation), len(data.test)) == (20, 0)
    assert command("verify", "digits", "--data.dir", tmp_path)[0] == 0
    folder = build(tmp_path, {"train": labelled}, name="larger")
    text = (folder / "features.json").read_text()
    (folder / "features.json").write_text(text.replace('"10"', '"9"'))
    assert "label 9, not 0 to 8" in refusal(tmp_path, "larger")


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_record_of_another_size_is_refused_and_named(tmp_path, kind, command):
    noise = np.random.default_rng(0).integers(0, 256, (8, 9), np.uint8)
    pairs = [(encoded(noise[:, :8], kind), k % 10) for k in range(20)]
    pairs[7] = (encoded(noise, kind), 7)
    folder = build(tmp_path, {"train": pairs}, shape=(8, 8, 1))
    code, out, _ = command("verify", "digits", "--data.dir", tmp_path)
    assert (code, "9x8 pixels, not 8x8" in " ".join(out.split())) == (1, True)
    train = rj.load_dataset("digits", tmp_path, streaming="always", validation=0).train
    for line in (refusal(tmp_path, streaming="never"), refused(train.batch, np.arange(20))):
        assert f"{folder}/digits-train.array_record-00000-of-00001 is damaged (record " in line
        assert "9x8 pixels, not 8x8" in line
