"""The command as users type it: what it prints, and its exit codes."""

import csv
import io
import json
import os
import re
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import resnet_jax as rj
from resnet_jax import __main__, cli, cli_train
from resnet_jax.cli import main
from resnet_jax.memory import tuned

# With `tiny_options`, the run of `finished_run`.
SAME = ["--optim.schedule", "cosine", "--optim.warmup", "0.2", "--log-every", "4"]
SAME += ["--eval-every", "5"]
MEETING = "train --distributed --coordinator {} --num-processes {} --process-id {}"


@pytest.fixture
def digits(tmp_path) -> list[Path]:
    images = rj.load_dataset("mnist_5k").test.images
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(images[100 * number, :, :, 0]).save(paths[-1])
    return paths


def test_evaluate_prints_the_promised_json(finished_run, command):
    code, out, _ = command("evaluate", finished_run.path, "--split", "test_all", "--json")
    assert code == 0
    found = json.loads(out)
    assert set(found) == {"accuracy", "loss", "correct", "count", "per_class", "confusion"}
    assert found["count"] == 500
    assert found["accuracy"] == found["correct"] / 500
    assert np.trace(found["confusion"]) == found["correct"]
    assert [row["count"] for row in found["per_class"].values()] == [50] * 10


def test_evaluate_prints_a_table(finished_run, command):
    code, out, _ = command("evaluate", finished_run.path)
    assert (code, "recall" in out) == (0, True)
    assert "of 30" in out


def test_predict_agrees_with_python(finished_run, digits, command):
    images = np.stack([np.asarray(Image.open(path))[..., None] for path in digits])
    expected = finished_run.predict(images)
    for topk in (2, 10):
        code, out, _ = command("predict", finished_run.path, *digits, "--json", "--topk", topk)
        assert code == 0
        for row, path, p in zip(json.loads(out), digits, expected, strict=True):
            assert row["path"] == str(path)
            assert row["label"] == str(p.argmax())
            assert row["probability"] == pytest.approx(p.max(), rel=1e-6)
            assert [name for name, _ in row["topk"]] == [str(k) for k in np.argsort(-p)[:topk]]
    code, out, _ = command("predict", finished_run.path, digits[0].parent, "--csv")
    table = csv.DictReader(io.StringIO(out))
    assert table.fieldnames == ["path", "label", "probability"]
    assert (code, [row["path"] for row in table]) == (0, list(map(str, digits)))
    code, out, _ = command("predict", finished_run.path, digits[0])
    assert (code, "label" in out) == (0, True)


def test_one_bad_file_or_folder_does_not_stop_the_others(finished_run, digits, tmp_path, command):
    broken, empty = tmp_path / "broken.png", tmp_path / "empty"
    broken.write_bytes(digits[0].read_bytes()[:60])
    empty.mkdir()
    for paths, count, said in (
        ((digits[0], broken, digits[1]), 3, r"broken\.png(.*\n)*.*\b1 of 3\b"),
        ((empty, digits[0]), 2, re.escape(str(empty))),
    ):
        code, out, err = command("predict", finished_run.path, *paths, "--csv")
        assert (code, len(out.splitlines())) == (1, count)
        assert re.search(said, err)


def test_the_same_command_says_that_the_run_is_finished_and_its_result(
    own_run, tiny_options, command
):
    code, out, _ = command("train", "quickstart", "--run-dir", own_run, *tiny_options, *SAME)
    assert (code, "finished" in out) == (0, True)
    accuracy = rj.Run.open(own_run).evaluate("test", "best").accuracy
    (line,) = [line for line in out.splitlines() if line.startswith("test, best parameters")]
    assert f"accuracy {accuracy:.2%}" in line


def test_from_the_command_to_the_library_are_two_calls(monkeypatch, tmp_path):
    """And the entry point before them."""
    frames = []

    def train(*arguments, **settings):
        frames.extend(frame.filename for frame in traceback.extract_stack())
        raise rj.ResNetJaxError("enough")

    monkeypatch.setattr("resnet_jax.run.train", train)
    assert main(["train", "--run-dir", str(tmp_path / "run")]) == 1
    package = Path(rj.__file__).parent
    assert len([name for name in frames if Path(name).is_relative_to(package)]) == 2


@pytest.mark.slow
def test_seeds_repeat_and_are_summed_up(one_unit, tmp_path, command, tiny_options, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = command(
        "train", *tiny_options, "--epochs", 0.5, "--ema", "None", "--eval-every", 5, "--seeds", 2
    )
    assert code == 0
    assert out.count("  BN 73% initial\n") == 2  # three steps: chance, by young statistics
    # Settings that change what is learnt are in the folders' names.
    folders = sorted((tmp_path / "runs").iterdir())
    assert [folder.name[-6:] for folder in folders] == ["-seed0", "-seed1"]
    assert all(folder.name.startswith("quickstart-") for folder in folders)
    of_best = "split == 'test_all' and checkpoint == 'best'"
    found = [rj.Run.open(folder).metrics().query(of_best) for folder in folders]
    accuracies, losses = ([rows[name].item() for rows in found] for name in ("accuracy", "loss"))
    assert losses[0] != losses[1]
    # As `compare` shows them.
    assert f"{np.mean(accuracies):.2%} ± {np.std(accuracies, ddof=1):.2%}" in out
    assert f"{np.mean(losses):.4f} ± {np.std(losses, ddof=1):.4f}" in out


@pytest.mark.slow
def test_a_grid_takes_the_run_that_is_there_trains_the_rest_and_compares(
    one_unit, tmp_path, command, tiny_options, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    short = ["train", *tiny_options, "--epochs", 0.5, "--ema", "None", "--eval-every", 5]
    assert command(*short, "--run-dir", "runs/quickstart-seed0")[0] == 0
    for finished in (1, 2):
        code, out, _ = command(*short, "--grid", "optim.learning-rate=0.05,0.1")
        assert code == 0
        assert out.count("is finished; nothing to do") == finished
        assert re.search(r"\n *optim\.learning-rate +0\.05 +0\.1 *\n", out)
        folders = {path.name for path in Path("runs").iterdir()}
        assert len(folders) == 2
        assert "quickstart-seed0" in folders


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("summary", ["11,175,370"]),
        (
            "summary resnet50 --num-classes 1000 --image-size 224 --channels 3",
            ["25,557,032", "4,089,184,256"],  # torchvision's 4.089 GMAC
        ),
        ("summary --no-residual", ["11,001,546"]),
        ("summary --image-size 1000000", ["250000x250000x64"]),  # none of it is in memory
        ("data list", ["mnist_5k", "mnist", "fashion_mnist"]),
    ],
)
def test_what_needs_no_data_is_shown(words, shown, command):
    code, out, _ = command(*words.split())
    assert code == 0
    for text in shown:
        assert text in out


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["train", "mnit"], ["mnit", "mnist"]),
        (["train", "--data.name", "mnist5k"], ["mnist5k", "mnist_5k"]),
        (["train", "--batch-size", "0"], ["--batch-size", "0"]),
        (["train", "--batch-size", "4001"], ["4001", "4000"]),
        (["train", "--optim.learning-rate", "-1"], ["--optim.learning-rate", "-1"]),
        (["train", "--optim.learning-rate", "nan"], ["--optim.learning-rate", "nan"]),
        (["train", "--seeds", "0"], ["--seeds", "0"]),
        (["train", "--seeds", "2", "--seed", "3"], ["--seeds", "--seed"]),
        # The defaults would be another preset's.
        (["train", "--epochs", "1", "mnist"], ["mnist"]),
        (["train", "--epochs", "1", "mnit"], ["mnit", "mnist"]),
        (["train", "--data.mean", "0.1", "0.2"], ["--data.mean", "2"]),
        (["evaluate", "nowhere"], ["nowhere", "resnet-jax train"]),
        (["predict", "nowhere", "a.png"], ["nowhere", "resnet-jax train"]),
        (["evaluate", "RUN", "--split", "tset"], ["tset", "test"]),
        (["predict", "RUN"], ["PATH"]),
        (["predict", "RUN", "EMPTY"], ["EMPTY"]),
        (["predict", "RUN", "missing.png"], ["missing.png", "No such file"]),
        (["predict", "RUN", "missing.png", "--topk", "11"], ["--topk", "11", "10"]),
        (["predict", "RUN", "missing.png", "--json", "--csv"], ["--json", "--csv"]),
        (["train", "--run-dir", "RUN"], ["RUN", "--epochs", "8"]),
        (["summary", "resnet19"], ["resnet19", "resnet18"]),
        (["summary", "--channels", "0"], ["--channels", "0"]),
        (["summary", "resnext50_32x4d", "--width", "24"], ["--model.width", "24", "16"]),
        (["summary", "resnet18d", "--width", "1"], ["--model.width", "1", "2"]),
        (["train", "--process-id", "1"], ["--distributed"]),
        (["train", "--meet-within", "60"], ["--distributed"]),
        (["train", "--distributed", "--meet-within", "0"], ["--meet-within", "0", "1"]),
        (
            ["train", "--distributed", "--process-id", "1"],
            ["--process-id", "--coordinator", "--num-processes"],
        ),
        (MEETING.format("host", 2, 0).split(), ["--coordinator", "host", "HOST:PORT"]),
        (MEETING.format("host:1", 2, 2).split(), ["--process-id", "2", "1"]),
        (MEETING.format("host:1", 0, 0).split(), ["--num-processes", "0", "1"]),
        (["verify", "EMPTY", "--data.background", "300"], ["--data.background", "300"]),
        (["verify", "/dev/null"], ["/dev/null", "folder"]),  # it was to become a run
        (["data", "prepare"], ["NAME"]),
        (["data", "list", "mnist"], ["mnist", "NAME"]),
        (["data", "list", "--dir", "here"], ["here", "NAME or folder"]),
        (["data", "prepare", "imagnet"], ["imagnet"]),
        (["data", "prepare", "folder"], ["folder", "--data.dir"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(
    arguments, names, finished_run, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    places = {"RUN": str(finished_run.path), "EMPTY": str(empty)}
    code, _, err = command(*(places.get(word, word) for word in arguments))
    (line,) = [line for line in err.splitlines() if "1 of 1" not in line]
    assert (code, line[:12]) == (1, "resnet-jax: ")
    for name in names:  # as words: not the 0 of a 10
        word = re.escape(places.get(name, name))
        assert re.search(rf"(?<![\w.-]){word}(?![\w-])", line), (name, line)
    assert list(tmp_path.iterdir()) == [empty]  # nothing was written


WRONG = ["", "trian", "train --nothing 1", "evaluate"]
WRONG += ["E", "train --epochs E", "export r --format E", "verify r --E"]


@pytest.mark.parametrize("words", WRONG)
def test_wrong_usage_is_the_parsers_text_and_exit_code_2(words, capsys):
    """What it quotes is shown escaped."""
    with pytest.raises(SystemExit) as ended:
        main(words.replace("E", "a\x1b]0;b\x07").split())
    shown = "".join(capsys.readouterr())
    assert (ended.value.code, "resnet-jax" in shown) == (2, True)
    assert (r"a\x1b]0;b\x07" in shown.replace("\\\\", "\\")) == ("E" in words)
    assert not {"\x1b", "\x07"} & set(shown)


def test_verify_names_what_is_damaged(own_run, command):
    assert command("verify", own_run)[0] == command("verify", "mnist_5k")[0] == 0
    steps = sorted((own_run / "checkpoints").iterdir())
    victim = next(path for path in (steps[0] / "state").rglob("*") if path.is_file())
    victim.write_bytes(victim.read_bytes()[:-1])
    code, out, err = command("verify", own_run)
    assert code == 1
    assert f"damaged  {victim}" in out
    assert f"good     {steps[1]}" in out
    assert "1 of" in err


def test_who_calls_from_python_gets_signals_back_as_they_were(capsys):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    assert main(["data", "list"]) == 0
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_what_only_uses_a_run_reserves_no_memory_of_a_gpu(monkeypatch):
    """JAX takes three quarters of it, of which a training may need some."""
    found = []
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    monkeypatch.setenv(name, "")  # so that what was there comes back
    monkeypatch.setattr(__main__, "restart_tuned", lambda: found.append(os.environ.get(name)))
    monkeypatch.setattr(cli, "main", lambda: 0)
    monkeypatch.setattr(__main__, "end_at_a_signal", lambda: None)
    for verb, user in (("train", None), ("demo", None), ("predict", "true")):
        monkeypatch.setattr(sys, "argv", ["resnet-jax", verb])
        monkeypatch.setenv(name, user) if user else monkeypatch.delenv(name, raising=False)
        assert __main__.main() == 0
    assert found == [None, "false", "true"]


def test_the_command_restarts_with_settings_of_malloc_unless_the_user_has_some(tmp_path, python):
    """In the same process, and once; commands that compute nothing do not."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        f"with open({str(tmp_path / 'starts')!r}, 'a') as starts:\n"
        "    print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), file=starts)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])

    def starts(*arguments, code=0, user=None):
        (tmp_path / "starts").unlink(missing_ok=True)
        python("-m", "resnet_jax", *arguments, code=code, GLIBC_TUNABLES=user, PYTHONPATH=path)
        lines = (tmp_path / "starts").read_text().splitlines()
        pids, found = zip(*(line.split() for line in lines), strict=True)
        assert len(set(pids)) == 1
        return found

    refused = ["train", "--seeds", "0"]
    ours = tuned({})["GLIBC_TUNABLES"]
    expected = ("None", ours) if sys.platform == "linux" else ("None",)
    assert starts(*refused, code=1) == expected
    users = "glibc.malloc.check=0"
    assert starts(*refused, code=1, user=users) == (users,)
    assert starts("data", "list") == starts("evaluate", "--help") == ("None",)


def test_a_signal_while_the_report_is_made_ends_the_command(
    finished_run, one_unit, tiny_options, tmp_path, command, monkeypatch
):
    """It was acknowledged, nothing stopped, and the code was 0."""

    def report(*_):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.01)

    monkeypatch.setattr(cli_train, "make_report", report)
    words = [word for word in tiny_options if word != "--no-report"]
    code, _, errors = command("train", *words, "--epochs", 0.2, "--run-dir", tmp_path / "run")
    assert (code, "stopped by a signal" in errors) == (75, True)
