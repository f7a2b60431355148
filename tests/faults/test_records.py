"""Records of TFDS that are not what their description says, and shards that changed."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import resnet_jax as rj
from resnet_jax.cli import main


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET_JAX_CACHE_DIR", str(tmp_path / "cache"))


def command(*arguments):
    """Runs the command; a traceback is a failure of the test that says so."""
    try:
        return main([str(argument) for argument in arguments])
    except Exception as error:
        return pytest.fail(f"the command ends in a traceback: {type(error).__name__}: {error}")


def encoded(height, width, kind="png", **options):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def build(root, **splits):
    """Prepares `plain`, images of 8x8 and ten labels, with TFDS; returns its folder."""

    class Plain(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(8, 8, 1)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(pairs) for name, pairs in splits.items()}

        def _generate_examples(self, pairs):
            for i, (image, label) in enumerate(pairs):
                yield i, {"image": image, "label": label}

    builder = Plain(data_dir=root)
    builder.download_and_prepare(file_format="array_record")
    return Path(builder.data_dir)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_label_that_is_not_published_is_no_traceback(tmp_path, kind):
    train = [(encoded(8, 8, kind), k % 10) for k in range(20)]
    build(tmp_path / "data", train=train, test=[(encoded(8, 8, kind), -1)] * 3)
    assert command("verify", "plain", "--data.dir", tmp_path / "data") == 0
    data = rj.load_dataset("plain", tmp_path / "data")
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 0)


@pytest.mark.parametrize("streaming", ["never", "always"])
@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_record_of_another_size_is_refused_and_named(tmp_path, kind, streaming):
    pairs = [(encoded(8, 8, kind), k % 10) for k in range(20)]
    pairs[7] = (encoded(8, 9, kind), 7)
    folder = build(tmp_path / "data", train=pairs)

    def read():
        data = rj.load_dataset("plain", tmp_path / "data", validation=0, streaming=streaming)
        return (getattr(data.train, "batch", None) or data.train.read)(np.arange(20))

    with pytest.raises(rj.ResNetJaxError, match=r"record \d+: .*9x8.*8x8") as error:
        read()
    assert str(folder / "plain-train.array_record-00000-of-00001") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_size_that_is_not_the_described_one_is_damage(tmp_path, capsys):
    build(tmp_path / "data", train=[(encoded(8, 9), 1)] * 3)
    assert command("verify", "plain", "--data.dir", tmp_path / "data") == 1
    assert "record 0" in " ".join(capsys.readouterr().out.split())


def test_transparency_in_a_record_is_refused_as_in_a_file(tmp_path):
    pairs = [(encoded(8, 8), k) for k in range(9)]
    build(tmp_path / "data", train=[*pairs, (encoded(8, 8, transparency=166), 9)])
    assert encoded(8, 8, transparency=166) != encoded(8, 8)
    with pytest.raises(rj.ResNetJaxError, match="transparent pixels"):
        rj.load_dataset("plain", tmp_path / "data", validation=0)


def test_a_shard_that_changed_in_place_with_its_times_kept_is_noticed(tmp_path):
    folder = build(tmp_path / "data", train=[(encoded(8, 8), k % 10) for k in range(20)])
    rj.load_dataset("plain", tmp_path / "data")
    shard = folder / "plain-train.array_record-00000-of-00001"
    times, content = shard.stat(), bytearray(shard.read_bytes())
    content[content.rindex(b"IDAT") + 10] ^= 1
    shard.write_bytes(content)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(rj.ResNetJaxError, match="is damaged"):
        rj.load_dataset("plain", tmp_path / "data")
