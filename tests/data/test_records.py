"""Records of TFDS that are not what their description says, and shards that changed."""

import io
import os

import numpy as np
import pytest
from make_datasets import build
from PIL import Image

import resnet_jax as rj
from resnet_jax.cli import main


def encoded(height, width, kind="png", **options):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def plain(root, **splits):
    """Prepares `plain`, images of 8x8 and ten labels; returns its first training shard."""
    folder = build(root, splits, name="plain", shape=(8, 8, 1))
    return folder / "plain-train.array_record-00000-of-00001"


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_record_of_another_size_is_refused_and_named(tmp_path, kind, capsys):
    """It was resized without a word."""
    pairs = [(encoded(8, 8, kind), k % 10) for k in range(20)]
    pairs[7] = (encoded(8, 9, kind), 7)
    shard = plain(tmp_path, train=pairs)

    def read(streaming):
        data = rj.load_dataset("plain", tmp_path, validation=0, streaming=streaming)
        data.train.batch(np.arange(20))

    for streaming in ("never", "always"):
        with pytest.raises(rj.ResNetJaxError, match=r"record \d+: .*9x8.*8x8") as error:
            read(streaming)
        assert str(shard) in str(error.value)
        assert "\n" not in str(error.value)
    assert main(["verify", "plain", "--data.dir", str(tmp_path)]) == 1
    assert "9x8 pixels, not 8x8" in " ".join(capsys.readouterr().out.split())


def test_transparency_in_a_record_is_refused_as_in_a_file(tmp_path):
    """Levels that the file calls transparent were read as any other."""
    pairs = [(encoded(8, 8), k) for k in range(9)]
    plain(tmp_path, train=[*pairs, (encoded(8, 8, transparency=166), 9)])
    with pytest.raises(rj.ResNetJaxError, match="transparent pixels"):
        rj.load_dataset("plain", tmp_path, validation=0)


def test_a_shard_that_changed_in_place_with_its_times_kept_is_noticed(tmp_path):
    """Size and time alone told whether the arrays of the cache are still true."""
    shard = plain(tmp_path, train=[(encoded(8, 8), k % 10) for k in range(20)])
    rj.load_dataset("plain", tmp_path)
    times, content = shard.stat(), bytearray(shard.read_bytes())
    content[content.rindex(b"IDAT") + 10] ^= 1
    shard.write_bytes(content)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(rj.ResNetJaxError, match="is damaged"):
        rj.load_dataset("plain", tmp_path)
