"""Reading prepared files, the cache, and what happens when either is damaged."""

import io
import json
import os
import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from resnet_jax.data import cache, load_dataset, prepare, prepared, verify_prepared
from resnet_jax.data.prepared import parse_examples, read_info, read_prepared
from resnet_jax.errors import ResNetJaxError


@pytest.fixture
def copy_5k(tfds_5k, tmp_path):
    """A copy of the prepared `mnist_5k`, to be damaged: its TFDS folder and the dataset's."""
    root = tmp_path / "copy"
    shutil.copytree(tfds_5k, root)
    return root, root / "mnist_5k" / "1.0.0"


def flip(path, position, bit=1):
    content = bytearray(path.read_bytes())
    content[position] ^= bit
    path.write_bytes(content)


def refusal(root, **kwargs):
    with pytest.raises(ResNetJaxError) as error:
        load_dataset("mnist_5k", root, **kwargs)
    text = str(error.value)
    assert "\n" not in text
    return text


def is_5k(root):
    fingerprint = load_dataset("mnist_5k", root).fingerprint
    return fingerprint == "76ee8207164ee67cc5aea835712b2cd232914b87afc59d3b6817000ac5951489"


def cached_file(root):
    return cache._cache_file("mnist_5k", root / "mnist_5k" / "1.0.0", "arrays")


# Reading


def test_the_fast_path_reads_what_tfds_reads(tfds_5k):
    folder = tfds_5k / "mnist_5k" / "1.0.0"
    arrays = read_prepared(read_info(folder))
    sources = tfds.builder_from_directory(folder).as_data_source()
    assert set(arrays) == set(sources) == {"train", "validation", "test"}
    for split in ("validation", "test"):
        images, labels = arrays[split]
        assert len(sources[split]) == len(labels)
        for ours, label, theirs in zip(images, labels, sources[split], strict=True):
            np.testing.assert_array_equal(ours, theirs["image"])
            assert label == theirs["label"]


def test_examples_are_parsed_as_their_message_class_parses_them():
    from tensorflow_datasets.proto import tf_example_pb2

    def message(image, label, key="label", more=()):
        example = tf_example_pb2.Example()
        example.features.feature["image"].bytes_list.value.append(image)
        example.features.feature[key].int64_list.value.append(label)
        for name in more:
            example.features.feature[name].int64_list.value.append(1)
        return example.SerializeToString()

    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (90, 90), np.uint8)
    Image.fromarray(noise).save(file, "png")  # longer than two bytes of length can say
    small = b"\x89PNG\n\x05label\x12 IEND\xaeB`\x82"  # looks like an entry inside
    cases = [(file.getvalue(), 0), (small, 9), (small, 127), (small, 128), (small, 100_000)]
    files, labels = parse_examples([message(*case) for case in cases], "image", "label")
    assert list(zip(files, labels.tolist(), strict=True)) == cases
    for other in (
        message(small, 1, more=["id"]),
        message(b"\xff\xd8\xff", 1),
        message(small, 1, key="labels"),
        message(small, 1)[:-1],
        b"",
    ):
        with pytest.raises(prepared.UnsupportedPng):
            parse_examples([other], "image", "label")


class Coloured(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images of other kinds than MNIST's, with a further feature."""

    VERSION = tfds.core.Version("1.2.0")
    encoding = "png"
    sizes = ((6, 5),)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "picture": tfds.features.Image(shape=(None, None, 3)),
                    "animal": tfds.features.ClassLabel(names=["cat", "dog"]),
                    "id": tfds.features.Text(),
                }
            ),
            supervised_keys=("picture", "animal"),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        for i in range(7):
            file = io.BytesIO()
            height, width = self.sizes[i % len(self.sizes)]
            pixels = np.full((height, width, 3), i * 9, np.uint8)
            Image.fromarray(pixels).save(file, self.encoding)
            yield i, {"picture": file.getvalue(), "animal": i % 2, "id": str(i)}


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_other_images_are_read_as_they_are(tmp_path, encoding):
    builder = Coloured(data_dir=tmp_path)
    builder.encoding = encoding
    builder.download_and_prepare(file_format="array_record")
    info = read_info(prepared.find_prepared("coloured", tmp_path))
    assert info.class_names == ("cat", "dog")
    data = load_dataset("coloured", tmp_path, size=6, validation=0)
    images, labels = data.train.images, data.train.labels
    assert images.shape == (7, 6, 6, 3)
    images = images[:, :, :5]
    assert sorted(images[:, 0, 0, 0]) == [0, 9, 18, 27, 36, 45, 54]
    np.testing.assert_array_equal(labels, images[:, 0, 0, 0] // 9 % 2)


def test_images_of_several_sizes_are_refused(tmp_path):
    builder = Coloured(data_dir=tmp_path)
    builder.sizes = ((6, 5), (4, 4))
    builder.download_and_prepare(file_format="array_record")
    with pytest.raises(ResNetJaxError, match=r"several sizes: .*--data\.image-size"):
        load_dataset("coloured", tmp_path)
    assert load_dataset("coloured", tmp_path, size=8).image_shape == (8, 8, 3)


def test_the_newest_version_is_read(tmp_path):
    for version in ("1.9.0", "1.10.0", "2.0.0.incomplete", "1.11.0"):
        folder = tmp_path / "mnist" / version
        folder.mkdir(parents=True)
        if version != "1.11.0":  # not described: not finished
            (folder / "dataset_info.json").touch()
    assert prepared.find_prepared("mnist", tmp_path).name == "1.10.0"
    assert prepared.find_prepared("fashion_mnist", tmp_path) is None


# Damaged prepared files

SHARD = "mnist_5k-{}.array_record-00000-of-00001"


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_damaged_shards_are_named_when_the_dataset_is_opened(copy_5k, split):
    root, folder = copy_5k
    shard = folder / SHARD.format(split)
    good = shard.read_bytes()
    for damage in (
        lambda: flip(shard, 100_000),
        lambda: flip(shard, 70),
        lambda: shard.write_bytes(good[: len(good) // 2]),
        lambda: shard.write_bytes(good[:1000]),
        lambda: shard.write_bytes(b""),
        lambda: shard.unlink(),
    ):
        damage()
        text = refusal(root)
        assert str(shard) in text
        assert f"resnet-jax data prepare mnist_5k --dir {root}" in text
        shard.write_bytes(good)
    assert is_5k(root)


@pytest.mark.parametrize("content", [b"zero\none\n", b"", b"\xff\xfe"])
def test_damaged_class_names_are_no_smaller_network(copy_5k, content):
    root, folder = copy_5k
    names = folder / "label.labels.txt"
    names.write_bytes(content)
    assert str(names) in refusal(root)


def test_a_flipped_byte_anywhere_is_noticed_or_harmless(copy_5k):
    _, folder = copy_5k
    info = read_info(folder)
    shard = folder / SHARD.format("test")
    good = shard.read_bytes()
    images, labels = prepared.read_shard(info, "test", 0)
    rng, noticed = np.random.default_rng(0), 0
    for position in rng.integers(0, len(good), 60):
        flip(shard, int(position), 1 << int(rng.integers(8)))
        try:
            ours = prepared.read_shard(info, "test", 0)
        except ResNetJaxError:
            noticed += 1
        else:  # a byte that pads the file
            np.testing.assert_array_equal(ours[0], images)
            np.testing.assert_array_equal(ours[1], labels)
        shard.write_bytes(good)
    assert noticed > 30


def test_a_shard_with_another_number_of_examples_is_named(copy_5k):
    root, folder = copy_5k
    shutil.copy(folder / SHARD.format("test"), folder / SHARD.format("train"))
    assert "holds 500 examples of 4000" in refusal(root)


def test_damaged_descriptions_are_named(copy_5k):
    root, folder = copy_5k
    description = folder / "dataset_info.json"
    good = description.read_text()
    for text, named in (
        (good[:100], "dataset_info.json is damaged"),
        ("", "dataset_info.json is damaged"),
        ("[]", "does not describe images with labels"),
        ("{}", "does not describe images with labels"),
        (good.replace("array_record", "tfrecord"), "prepared as tfrecord"),
        (good.replace('"image"', '"imaje"'), "does not describe images with labels"),
    ):
        description.write_text(text)
        assert named in refusal(root)
    description.write_text(good)
    (folder / "features.json").unlink()
    assert "features.json is damaged" in refusal(root)


@pytest.mark.slow
def test_prepare_mends_a_damaged_dataset_and_leaves_a_whole_one(copy_5k):
    root, folder = copy_5k
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert prepare("mnist_5k", root) == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    for damage in (
        lambda: flip(folder / SHARD.format("train"), 100_000),
        lambda: (folder / SHARD.format("test")).unlink(),
        lambda: (folder / "dataset_info.json").unlink(),
    ):
        damage()
        assert prepare("mnist_5k", root) == folder
        assert is_5k(root)
    assert [path.name for path in root.iterdir()] == ["mnist_5k"]


def test_prepare_never_replaces_a_dataset_in_another_format(copy_5k):
    root, folder = copy_5k
    description = folder / "dataset_info.json"
    theirs = description.read_text().replace("array_record", "tfrecord")
    description.write_text(theirs)  # what TFDS writes by default, hours of work at times
    with pytest.raises(ResNetJaxError, match="prepared as tfrecord"):
        prepare("mnist_5k", root)
    assert description.read_text() == theirs


def test_verify_reports_each_file(copy_5k):
    root, folder = copy_5k
    assert is_5k(root)  # and cached: verifying must not look there
    report = verify_prepared("mnist_5k", root)
    assert report.ok
    assert report.folder == folder
    assert len(report.good) == 5
    position, shard = 100_000, folder / SHARD.format("validation")
    times = shard.stat()
    flip(shard, position)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a failing disk would
    (folder / SHARD.format("test")).unlink()
    report = verify_prepared("mnist_5k", root)
    assert not report.ok
    assert len(report.damaged) == 2
    assert SHARD.format("validation") in report.damaged[0]
    assert SHARD.format("test") in report.damaged[1]
    assert "is missing" in report.damaged[1]
    assert SHARD.format("train") in report.good
    (folder / "dataset_info.json").write_text("{")
    assert "dataset_info.json" in verify_prepared("mnist_5k", root).damaged[0]
    with pytest.raises(ResNetJaxError, match="holds no prepared `mnist`"):
        verify_prepared("mnist", root)


# The cache


def test_a_second_load_reads_the_cache_alone(tfds_5k, monkeypatch):
    assert is_5k(tfds_5k)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "read_prepared", lambda info: pytest.fail("read again"))
        assert is_5k(tfds_5k)
    files = list(cached_file(tfds_5k).parent.iterdir())
    assert files == [cached_file(tfds_5k)]  # no temporary file stays


def test_any_damage_to_the_cache_is_noticed_and_mended(tfds_5k):
    assert is_5k(tfds_5k)
    file = cached_file(tfds_5k)
    good = file.read_bytes()
    header = good.index(b"\n")
    rng = np.random.default_rng(0)
    places = [0, 10, header - 5, header, header + 3, header + 20, header + 90, len(good) - 1]
    for position in [*places, *rng.integers(0, len(good), 8).tolist()]:
        flip(file, position, 1 << int(rng.integers(8)))
        assert is_5k(tfds_5k)
        assert file.read_bytes() == good
    for content in (b"", good[:header], good[: header + 1], good[:-1], good[:2_000_000], b"{}\n"):
        file.write_bytes(content)
        assert is_5k(tfds_5k)
        assert file.read_bytes() == good
    file.unlink()
    assert is_5k(tfds_5k)
    assert file.read_bytes() == good


def test_a_cache_of_other_prepared_files_is_not_used(copy_5k):
    root, folder = copy_5k
    assert is_5k(root)
    file, shard = cached_file(root), folder / SHARD.format("train")
    before = file.read_bytes()
    os.utime(shard, (1, 1))
    assert is_5k(root)
    assert file.read_bytes() != before  # made again, in the same place
    (folder / SHARD.format("test")).unlink()
    assert "is missing" in refusal(root)


def test_a_cache_that_cannot_be_written_is_only_slower(tfds_5k, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("RESNET_JAX_CACHE_DIR", str(blocked / "below"))  # true for root as well
    assert is_5k(tfds_5k)
    assert is_5k(tfds_5k)


def test_a_full_disk_leaves_no_half_cache(tfds_5k, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        assert is_5k(tfds_5k)
    assert not list(cached_file(tfds_5k).parent.iterdir())


def test_two_processes_may_write_the_cache_at_once(tfds_5k):
    code = (
        "import sys; from resnet_jax.data import load_dataset;"
        "print(load_dataset('mnist_5k', sys.argv[1]).fingerprint)"
    )
    command = [sys.executable, "-c", code, str(tfds_5k)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate(timeout=60)[0] for process in processes}
    assert len(answers) == 1
    assert load_dataset("mnist_5k", tfds_5k).fingerprint in answers.pop()


# Where things go


def test_the_first_use_prepares_in_the_tfds_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "new" / "tfds"))
    assert is_5k(None)
    assert (tmp_path / "new" / "tfds" / "mnist_5k" / "1.0.0").is_dir()
    assert [path.name for path in (tmp_path / "new" / "tfds").iterdir()] == ["mnist_5k"]


def test_a_read_only_folder_sends_mnist_5k_to_the_cache(tmp_path, monkeypatch):
    readonly = tmp_path / "readonly"
    readonly.mkdir()
    readonly.chmod(stat.S_IRUSR | stat.S_IXUSR)
    for _ in range(2):
        assert is_5k(readonly)
    assert not list(readonly.iterdir())
    assert (tmp_path / "own-cache" / "tfds" / "mnist_5k" / "1.0.0").is_dir()
    assert prepare("mnist_5k", readonly).is_relative_to(tmp_path / "own-cache")
    with pytest.raises(ResNetJaxError, match="readonly cannot be written"):
        prepare("mnist", readonly)
    readonly.chmod(stat.S_IRWXU)


def test_the_argument_comes_before_the_environment(tfds_5k, copy_5k, monkeypatch):
    root, folder = copy_5k
    flip(folder / SHARD.format("train"), 100_000)
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert is_5k(tfds_5k)
    assert str(folder) in refusal(None)


def test_a_folder_that_is_not_there_or_lacks_the_dataset_is_named(tmp_path, tfds_5k):
    with pytest.raises(ResNetJaxError, match=r"nowhere is no folder.*--data\.dir"):
        load_dataset("mnist_5k", tmp_path / "nowhere")
    with pytest.raises(ResNetJaxError, match=r"holds no prepared `mnist`.*--data\.from-idx"):
        load_dataset("mnist", tfds_5k)


def test_tfds_reads_the_description(tfds_5k):
    info = json.loads((tfds_5k / "mnist_5k" / "1.0.0" / "dataset_info.json").read_text())
    lengths = {split["name"]: split["shardLengths"] for split in info["splits"]}
    assert lengths == {"train": ["4000"], "validation": ["500"], "test": ["500"]}


@pytest.mark.parametrize("template", ["../{SPLIT}", "/etc/passwd", "a/{SHARD_INDEX}"])
def test_a_description_cannot_name_files_elsewhere(copy_5k, template):
    _, folder = copy_5k
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    for split in info["splits"]:
        split["filepathTemplate"] = template
    path.write_text(json.dumps(info))
    with pytest.raises(ResNetJaxError, match="is no file in it"):
        read_info(folder)
