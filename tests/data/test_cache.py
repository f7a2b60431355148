"""The cache only saves time, whatever happens to it or to the files."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import PIL
import pytest
from make_datasets import flip, picture, refusal
from PIL import Image, ImageFile

from resnet_jax.data import cache, image, image_folder
from resnet_jax.data.cache import cached_arrays, cached_facts
from resnet_jax.data.load import load_dataset

ARRAYS = (np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1), np.zeros(0, np.int32))


def test_a_link_in_a_datasets_folder_is_not_followed(tmp_path, monkeypatch):
    """One to the folder itself filled the memory."""
    monkeypatch.setenv("RESNET_JAX_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/loop").symlink_to(".")
    for _ in range(2):
        cached_facts("name", tmp_path, [tmp_path / "data"], str)
    (file,) = (tmp_path / "cache").iterdir()
    assert file.stat().st_size < 2000


def reader():
    return mock.Mock(return_value=ARRAYS)


def opened(folder, read, key="key"):
    for array, expected in zip(cached_arrays("name", folder, key, read), ARRAYS, strict=True):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


def files():
    return sorted(cache.cache_root().iterdir())


def test_arrays_are_read_once_for_each_key(tmp_path):
    read = reader()
    for _ in range(3):
        opened(tmp_path, read)
    assert read.call_count == 1
    (file,) = files()  # and no temporary file stays
    opened(tmp_path, read, key="other")
    assert read.call_count == 2
    assert files() == [file]  # replaced in its place
    opened(tmp_path / "elsewhere", read, key="other")
    assert read.call_count == 3


def test_any_damage_to_the_arrays_is_noticed_and_mended(tmp_path):
    read = reader()
    opened(tmp_path, read)
    (file,) = files()
    good = file.read_bytes()
    rng = np.random.default_rng(0)
    for position in [*range(0, 400, 13), *rng.integers(0, len(good), 25).tolist()]:
        file.write_bytes(good)
        flip(file, position, 1 << int(rng.integers(8)))
        opened(tmp_path, read)
    assert read.call_count > 25  # not every byte of a zip file means something
    cut = (good[: len(good) // 2], good[:200], good[:10], good[:-1], b"", b"{}\n")
    for content in (*cut, good.replace(b"arr_1", b"arr_0"), good.replace(b"arr_1", b"arr_2")):
        read.reset_mock()
        file.write_bytes(content)
        for _ in range(2):
            opened(tmp_path, read)
        assert read.call_count == 1


def test_a_cache_that_cannot_be_written_is_only_slower(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("RESNET_JAX_CACHE_DIR", str(blocked / "below"))  # fails even for root
    read = reader()
    for _ in range(2):
        opened(tmp_path, read)
        assert cached_facts("name", tmp_path, [blocked], len_of, workers=1) == [0]
    assert read.call_count == 2


def test_a_full_disk_leaves_no_half_cache(tmp_path, monkeypatch):
    def full(file, *args, **kwargs):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    opened(tmp_path, reader())
    assert not files()


def test_several_may_write_the_cache_at_once(tmp_path):
    ones = np.ones((3000, 28, 28, 1), np.uint8)

    def use(key):
        (found,) = cached_arrays("name", tmp_path, str(key % 2), lambda: [ones])
        assert found.sum() == ones.size

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(use, range(30)))
    assert len(files()) == 1


def len_of(path):
    return len(path.read_bytes())


def test_facts_are_looked_up_again_where_a_file_changed(tmp_path):
    paths = [tmp_path / name for name in ("a", "below/b", "c")]
    (tmp_path / "below").mkdir()
    for path in paths:
        path.write_bytes(b"12")
    looked = []

    def look(path):
        looked.append(path.name)
        return path.read_text()

    def facts(**more):
        looked.clear()
        return cached_facts("name", tmp_path, paths, look, workers=1, **more), list(looked)

    assert facts() == (["12", "12", "12"], ["a", "b", "c"])
    assert facts() == (["12", "12", "12"], [])
    assert facts(refresh=True)[1] == ["a", "b", "c"]
    flip(paths[0], 1)  # in place: same size, and the times set back
    assert facts() == (["13", "12", "12"], ["a"])
    shutil.copy2(paths[0], tmp_path / "d")  # of equal size and times, to replace another
    (tmp_path / "d").rename(paths[2])
    assert facts() == (["13", "12", "13"], ["c"])
    del paths[1]
    assert facts() == (["13", "13"], [])
    (file,) = files()
    good = file.read_bytes()
    assert b"below" not in good
    for damage in (good.replace(b'"13"', b'"35"'), good[:-5], b"[" * 100_000):
        assert damage != good
        file.write_bytes(damage)
        assert facts() == (["13", "13"], ["a", "c"])
        assert facts() == (["13", "13"], [])


@pytest.mark.parametrize("refresh", [False, True])
def test_what_ends_a_long_scan_loses_one_round(refresh, tmp_path, monkeypatch):
    """It lost every fact; with ``refresh``, the old facts of files not yet looked at must stay."""
    monkeypatch.setattr(cache, "ROUND", 2)
    paths = [tmp_path / name for name in "abcdef"]
    looked, look = [], partial(cached_facts, "name", tmp_path, paths, workers=1)
    for path in paths:
        path.write_text(path.name)
    if refresh:
        look(Path.read_text)

    def interrupted(path):
        looked.append(path.name)
        if path.name == "e":
            raise KeyboardInterrupt
        return path.read_text()

    with pytest.raises(KeyboardInterrupt):
        look(interrupted, refresh=refresh)
    assert looked == list("abcde")
    looked.clear()
    found = look(lambda path: looked.append(path.name) or path.read_text())
    assert (found, looked) == (list("abcdef"), [] if refresh else list("ef"))


def test_facts_of_a_folder_hang_on_its_files(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    looked = []

    def look(path):
        looked.append(threading.current_thread())
        return 1

    for name, content in (("a", "12"), ("b", ""), ("a", "34")):
        (folder / name).write_text(content)
        for _ in range(2):
            assert cached_facts("name", tmp_path, [folder], look) == [1]
    # Signals arrive in the main thread: they could not end a read of a dataset in another one.
    assert looked == [threading.main_thread()] * 3


def test_a_read_error_is_gone_when_it_is_gone(flat, monkeypatch):
    def failing(path):
        if path.endswith("40.png"):
            raise OSError(5, "Input/output error")  # as a network disk has at times
        return image.read_bytes(path)

    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "read_bytes", failing)
        assert len(load_dataset("folder", flat, skip_bad=True).train) == 48
    assert len(load_dataset("folder", flat, skip_bad=True).train) == 49


def test_images_on_disk_are_read_wherever_the_process_is_by_then(flat, digits, monkeypatch):
    """In a notebook, `%cd` after the dataset was opened by a relative path."""
    for name, folder in (("folder", flat), ("digits", digits)):
        monkeypatch.chdir(folder.parent)
        data = load_dataset(name, folder.name, size=8, streaming="always")
        monkeypatch.chdir("/")
        assert len(data.train.batch(np.arange(3))[0]) == 3


def test_what_one_process_lets_pillow_read_is_no_verdict_for_others(flat, monkeypatch):
    """From the cache the cut file was whole to them, but unreadable, also with --data.skip-bad."""
    cut = picture(flat / "cat/cut.jpg", 99, (64, 64))
    cut.write_bytes(cut.read_bytes()[:-500])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as notebooks do
    whole = load_dataset("folder", flat, size=8)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    assert "1 of 61 image files" in refusal(flat, "folder", size=8)
    assert load_dataset("folder", flat, size=8, skip_bad=True).fingerprint != whole.fingerprint


def test_a_folder_has_one_cache_however_it_is_spelt_and_for_each_decoder_another(flat, monkeypatch):
    opened = mock.Mock(wraps=Image.open)
    monkeypatch.setattr(Image, "open", opened)
    monkeypatch.chdir(flat.parent)
    (flat.parent / "link").symlink_to(flat)

    def decoded(*folders):
        opened.reset_mock()
        for folder in folders:
            load_dataset("folder", folder)
        return opened.call_count

    assert decoded(flat) >= 60
    assert decoded(flat.name, flat.parent / "link") == 0
    clear = picture(flat / "cat" / "clear.png", 99, mode="RGBA")
    assert "cannot be used" in refusal(flat, "folder")
    load_dataset("folder", flat, background=0)  # whose verdicts are others
    clear.unlink()
    assert PIL.__version__ in cache.DECODING_VERSION
    monkeypatch.setattr(cache, "DECODING_VERSION", "another")
    assert decoded(flat) >= 60
