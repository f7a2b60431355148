"""Comparisons of stored metrics, TensorBoard's events, and what verbs read of runs and images."""

import dataclasses
import errno
import json
import os
import time
from pathlib import Path
from unittest import mock

import matplotlib
import numpy as np
import pandas as pd
import pytest
from make_datasets import picture, refused
from PIL import Image

import resnet_jax as rj
from resnet_jax.config import replaced
from resnet_jax.data.image import DecodeSpec, read_image
from resnet_jax.inspection import classify, plots, report
from resnet_jax.training.callbacks import Events
from resnet_jax.training.run_folder import Record, RunFolder


def stored(path: Path, config: rj.TrainConfig, accuracy: float | None) -> Path:
    """Create a run's folder with metrics but no parameters."""
    path.mkdir()
    folder = RunFolder(path)
    folder.write_record(Record(config, "f" * 64, ("a", "b"), (28, 28, 1)))
    row = {"step": 9, "epoch": 1.0, "loss": round(1 - (accuracy or 0), 4), "seconds": 10.0}
    rows = [{**row, "kind": "train", "accuracy": 0.5, "learning_rate": 0.1, "images_per_s": 1.0}]
    rows += [{**row, "kind": "validation", "accuracy": 0.5}]
    if accuracy is not None:
        more = {"kind": "test", "split": "test", "last": 9}
        rows += [{**row, **more, "accuracy": accuracy, "checkpoint": "best"}]
        rows += [{**row, **more, "accuracy": 0.0, "checkpoint": "latest"}]
    folder.append_metrics(*rows)
    return path


@pytest.fixture
def four(tmp_path) -> list[str]:
    plain = rj.TrainConfig()
    reading = {"data.workers": 3, "data.streaming": "never", "data.memory-limit": 1.0}
    fast = replaced(plain, {"optim.learning-rate": 0.2, "log-every": 7})
    made = [
        stored(tmp_path / "a0", plain, 0.90),
        stored(tmp_path / "a1", replaced(plain, reading | {"seed": 1}), 0.94),
        stored(tmp_path / "b0", fast, 0.80),
        stored(tmp_path / "b3", replaced(fast, {"seed": 3}), None),
    ]
    return list(map(str, made))


def test_runs_that_differ_in_the_seed_are_one_row(four, command):
    slow, fast = json.loads(command("compare", *four, "--json")[1])
    # Only the rate tells the rows apart: how metrics are logged and data are read does not count.
    results = [f"test {name}" for name in ("accuracy", "accuracy sd", "loss", "loss sd")]
    assert set(slow) == {"optim.learning-rate", "runs", "seeds", *results, "seconds"}
    assert (slow["optim.learning-rate"], fast["optim.learning-rate"]) == (0.1, 0.2)
    assert (slow["runs"], slow["seeds"]) == (2, "0 1")
    assert slow["test accuracy"] == pytest.approx(0.92)
    assert slow["test accuracy sd"] == pytest.approx(0.04 / 2**0.5)  # n - 1
    assert (fast["runs"], fast["seeds"], fast["test accuracy sd"]) == (1, "0 3", None)


def test_a_run_that_goes_on_after_its_end_has_not_ended(four, command):
    """A run that was given more epochs was still compared by the results of its earlier end."""
    row = {"step": 12, "epoch": 1.3, "kind": "train", "loss": 0.1, "accuracy": 0.5, "seconds": 12.0}
    RunFolder(Path(four[2])).append_metrics(row)
    slow, fast = json.loads(command("compare", *four, "--json")[1])
    assert (slow["runs"], slow["test accuracy"]) == (2, pytest.approx(0.92))
    assert (fast["runs"], fast["seeds"], fast["test accuracy"]) == (0, "0 3", None)
    shown = [rj.Run.open(path)._repr_html_() for path in (four[0], four[2])]
    assert ["test, best" in html for html in shown] == [True, False]


def test_runs_with_other_parts_of_ones_own_are_rows_of_their_own(four):
    runs = list(map(rj.Run.open, four[:2]))
    for run, tag in zip(runs, ("rate 0.1", "rate 0.2"), strict=True):
        run.parts = {"optimizer": "my.optimizer", "tag": tag}
    table = rj.inspection.compare_runs(iter(runs))
    assert table["tag"].tolist() == ["rate 0.1", "rate 0.2"]
    assert "optimizer" not in table


def test_a_table_shows_mean_and_spread_and_the_picture_is_written(four, tmp_path, command):
    """A run that has measured nothing yet is accepted too."""
    Path(four[3], "metrics.jsonl").unlink()
    plots.curves(rj.Run.open(four[3]).metrics())  # plotting it is not an error either
    with matplotlib.rc_context({"text.usetex": True}):  # drawn without LaTeX all the same
        code, out, errors = command("compare", *four, "--output", tmp_path / "curves.png")
    assert (code, errors) == (0, "")
    assert "92.00% ± 2.83%" in out
    assert "80.00%" in out
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 500


def test_bad_comparisons_are_one_line(four, refusal, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for arguments, names in (
        ([four[0], four[0]], "twice"),
        ([four[0], "nowhere"], "is not a run"),
        ([four[0], "--output", __file__ + "/x.png"], "x.png cannot be written"),
        ([four[0], "--output", "x.nonsense"], "x.nonsense cannot be written"),
        ([four[0], "--output", "x.pgf"], "x.pgf cannot be written"),  # LaTeX is not on the PATH
    ):
        assert names in refusal("compare", *arguments)
    with pytest.raises(rj.ResNetJaxError, match="checkpoint newest is not known: give best or"):
        rj.inspection.compare_runs([rj.Run.open(four[0])], "newest")


def test_events_are_the_metrics_that_are_left(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    def scalars() -> dict[tuple[str, int], float]:
        (file,) = tmp_path.glob("events*")
        content, found = file.read_bytes(), {}
        while content:  # length, its checksum, the event, its checksum
            size = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            for value in event.summary.value:
                found[value.tag, event.step] = round(value.simple_value, 4)
        return found

    rows = [
        {"step": 1, "epoch": 0.1, "kind": "train", "loss": 2.5},
        {"step": 9, "epoch": 0.9, "kind": "train", "loss": 0.5},
    ]
    test = {"step": 9, "kind": "test", "split": "test", "checkpoint": "best", "accuracy": 0.75}
    first = Events(tmp_path, [])
    for row in rows:
        first.on_metrics(row)
    first.close()
    assert scalars() == {("train/loss", 1): 2.5, ("train/loss", 9): 0.5}
    resumed = Events(tmp_path, rows[:1])  # step 9 came after the last checkpoint
    resumed.on_metrics(test)
    resumed.close()
    assert scalars() == {("train/loss", 1): 2.5, ("test_best/accuracy", 9): 0.75}


def metrics_of(*losses: float) -> pd.DataFrame:
    rows = [{"kind": "train", "epoch": n, "loss": x, "accuracy": 0.5} for n, x in enumerate(losses)]
    return pd.DataFrame([*rows, {**rows[0], "kind": "validation"}])


@pytest.mark.parametrize(("lowest", "scale"), [(0.5, "log"), (-0.5, "linear"), (0.0, "linear")])
def test_a_loss_of_ones_own_may_be_negative(lowest, scale):
    """A logarithmic axis left a negative loss out."""
    metrics = metrics_of(lowest, lowest + 1)
    for figure in (plots.curves(metrics), plots.compared_curves({"a": [metrics]})):
        assert scale in [ax.get_yscale() for ax in figure.axes if "nats" in ax.get_ylabel()]


def test_a_single_measurement_of_speed_is_marked():
    """A short run has two; the first is not shown, and one point makes no line."""
    for losses, marker in (([0.5, 0.4], "."), ([0.5, 0.4, 0.3], "None")):
        figure = plots.curves(metrics_of(*losses).assign(images_per_s=100.0))
        (speed,) = figure.axes[-1].lines
        assert speed.get_marker() == marker


def test_the_legend_shows_both_ends_of_a_long_name():
    """A grid's settings are at the end of the name, and were cut off."""
    names = [f"{'resnet20_cifar10-weight-decay' * 4}: --optim.weight-decay {x}" for x in (1, 2)]
    (legend,) = plots.compared_curves({name: [metrics_of(0.5)] for name in names}).legends
    first, second = (text.get_text() for text in legend.get_texts())
    assert first.startswith(" resnet20_cifar10-weight-decay")
    assert first.endswith(" 1")
    assert second.endswith(" 2")


def test_names_of_runs_are_drawn_as_far_as_the_font_goes():
    figure = plots.compared_curves({"folder-照片": [metrics_of(0.5)], "_a": [metrics_of(0.5)]})
    figure.draw_without_rendering()  # a missing glyph warns, which is an error here
    (legend,) = figure.legends
    assert [text.get_text().strip() for text in legend.get_texts()] == ["folder-??", "_a"]


def test_events_that_cannot_be_written_are_one_line(tmp_path, monkeypatch):
    """tensorboardX's thread died when the disk failed once; its full queue then blocked the run."""
    writer = mock.Mock()
    monkeypatch.setattr(pytest.importorskip("tensorboardX"), "SummaryWriter", writer)
    events = Events(tmp_path, [])
    assert writer.call_args.kwargs["flush_secs"] > 24 * 3600  # its thread never flushes
    full = OSError(errno.ENOSPC, "No space left on device")
    writer.return_value.flush.side_effect = writer.return_value.close.side_effect = full
    with pytest.raises(rj.ResNetJaxError, match="No space left on device"):
        events.on_metrics({"step": 1, "kind": "train", "loss": 2.5})
    events.close()


def test_a_run_shows_itself_and_that_its_metrics_are_damaged(finished_run, own_run):
    shown = finished_run._repr_html_()
    assert "resnet18" in shown
    assert f"accuracy {finished_run.evaluate('test').accuracy:.2%}" in shown
    assert str(rj.Run(str(finished_run.path))) == str(finished_run)
    rows = (own_run / "metrics.jsonl").read_text()
    (own_run / "metrics.jsonl").write_text("{" + rows)
    run = rj.Run.open(own_run)
    for shown in (str(run), run._repr_html_()):
        assert "no readable metrics" in shown


def test_patterns_and_explanations(finished_run, tmp_path, command, monkeypatch):
    """A file that is given twice is explained once, and one that vanishes meanwhile is named."""
    for number, name in enumerate(("a/1.png", "b/1.png", "b/2.png")):
        path = picture(tmp_path / "digits" / name, number, (28, 28), "L")
    pattern, out = tmp_path / "digits" / "*" / "*.png", tmp_path / "out"
    words = ("predict", finished_run.path, pattern, path, "--csv", "--explain", out)
    code, rows, _ = command(*words)
    assert (code, len(rows.splitlines())) == (0, 1 + 4)
    assert sorted(path.name for path in out.iterdir()) == ["1-2.png", "1.png", "2.png"]
    with Image.open(out / "2.png") as drawn:
        assert drawn.size == (224, 224)
    assert "no file fits" in command("predict", finished_run.path, tmp_path / "*.jpg")[2]

    gone = mock.Mock(side_effect=rj.ResNetJaxError("it is gone"))
    monkeypatch.setattr(classify, "open_image", gone)
    code, rows, errors = command(*words)
    assert (code, len(rows.splitlines()), errors.count("it is gone")) == (1, 1, 4)


def test_what_was_not_yet_read_is_not_read_after_the_first_error(
    finished_run, tmp_path, monkeypatch
):
    """All other files of the batch were read."""

    def damaged(*_, **__):
        time.sleep(0.05)
        raise rj.ResNetJaxError("damaged")

    read = mock.Mock(side_effect=damaged)
    monkeypatch.setattr(classify, "read_digit_or_image", read)
    monkeypatch.setattr(classify, "cores", lambda: 1)
    for number in range(20):
        (tmp_path / f"{number}.png").touch()
    with pytest.raises(rj.ResNetJaxError, match="damaged"):
        list(rj.inspection.classify_files(finished_run, tmp_path))
    assert read.call_count < 20


@pytest.mark.parametrize(("option", "value"), [("model.width", 32), ("optim.weight-decay", 3e-12)])
def test_a_setting_is_shown_as_it_was_given(option, value, tmp_path, command):
    """Beside None, 32 was shown as 32.0; a small number was shown as 0."""
    other = replaced(rj.TrainConfig(), {option: value})
    paths = stored(tmp_path / "00", rj.TrainConfig(), 0.9), stored(tmp_path / "10", other, 0.9)
    assert str(value) in command("compare", *paths)[1].split()
    out = command("compare", *paths, "--json")[1]
    assert repr(json.loads(out)[1][option]) == repr(value)


def test_equal_answers_go_to_the_first_class(finished_run, tmp_path, monkeypatch):
    p = np.zeros((1, 400), np.float32)
    p[0, [7, 300]] = 0.5
    monkeypatch.setattr(finished_run, "class_names", tuple(map(str, range(400))))
    monkeypatch.setattr(rj.Run, "predict", lambda *_: p)
    path = picture(tmp_path / "1.png", 1, (28, 28), "L")
    (row,) = rj.inspection.classify_files(finished_run, str(path), topk=2)
    assert row["path"] == str(path)
    assert row["topk"] == [("7", 0.5), ("300", 0.5)]


def test_paths_come_in_any_collection(finished_run, tmp_path):
    """A column of a table ended in pandas' question whether all of it or any of it is true."""
    found = [str(picture(tmp_path / f"{k}.png", k, (28, 28), "L")) for k in range(2)]
    encoded = list(map(os.fsencode, found))
    for paths in (found, iter(found), pd.Series(found), np.array(found), encoded, encoded[0]):
        rows = rj.inspection.classify_files(finished_run, paths)
        assert [row["path"] for row in rows] == found[: 1 if paths is encoded[0] else 2]
    for paths in ([], "", pd.Series([])):
        assert "needs image files" in refused(rj.inspection.classify_files, finished_run, paths)
    assert rj.Run.open(os.fsencode(finished_run.path)).path == finished_run.path
    rj.interop.save_weights(os.fsencode(tmp_path / "w.safetensors"), {"a": np.zeros(1)})
    assert finished_run.split("test", os.fsencode(tmp_path)).labels.size == 30


def test_rows_come_while_predict_goes_on(finished_run, tmp_path, command, monkeypatch):
    """Rows came only after the last of a million files, and not at all if that one failed."""
    path, predict, calls = picture(tmp_path / "1.png", 1, (28, 28), "L"), rj.Run.predict, []

    def predict_once(self, images, checkpoint):
        calls.append(len(images))
        if len(calls) > 1:
            raise MemoryError
        return predict(self, images, checkpoint)

    monkeypatch.setattr(rj.Run, "predict", predict_once)
    batch = finished_run.config.batch_size
    code, out, _ = command("predict", finished_run.path, *[path] * (batch + 1), "--csv")
    assert (code, len(out.splitlines())) == (1, 1 + batch)


def test_explanations_of_equal_names_are_numbered_in_one_pass(tmp_path, monkeypatch):
    files = [Path(f"{k}/0.png") for k in range(100)]
    calls, normalize = [], classify.unicodedata.normalize
    monkeypatch.setattr(
        classify.unicodedata, "normalize", lambda *a: calls.append(a) or normalize(*a)
    )
    names = [path.name for path in classify._explanation_files(files, tmp_path).values()]
    assert names == ["0.png", *(f"0-{k}.png" for k in range(2, 101))]
    long = [Path(f"{'猫' * 84}.{ending}") for ending in ("jpg", "png")]  # 256 bytes with a number
    targets = classify._explanation_files(long, tmp_path).values()
    assert all(len(os.fsencode(target.name)) <= 255 for target in targets)
    assert len(calls) < 300


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
