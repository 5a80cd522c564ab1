"""``etude fit --resume``: a run that was stopped ends as the uninterrupted one, or says why not."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save

from etude.journal.runs import is_locked, working_on
from etude.models.backbones import TinyNet
from picture_folders import picture, write_classes, write_flat
from recorded_runs import code_of, forked, forked_etude, wait_for

SMALL = (
    "train.epochs=4",
    "train.batch_size=4",
    "train.dropout=0.2",
    "augment.mixup=0.2",
    "train.checkpoint_every=0.001s",
)
FINETUNE = 'stages=["finetune"]'
STEPS = 19  # 19 images to train on, 4 a step, 4 epochs
MADE = ("model.safetensors", "submission.csv", "valid.npz", "test.npz")


def words(*settings: str) -> list[str]:
    return [word for setting in (*SMALL, *settings) for word in ("--set", setting)]


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def edit_record(folder: Path, **changes: object) -> None:
    (folder / "run.json").write_text(json.dumps({**record_of(folder), **changes}))


def sentence_of(ended: Any) -> str:
    assert ended.code == 2, ended.out
    assert len(ended.err.strip().splitlines()) == 1
    assert ended.err.startswith("etude: ")
    return ended.err


def same_files(one: Path, other: Path, names: tuple[str, ...] = MADE) -> None:
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_flat(tmp_path / "test")
    return write_classes(tmp_path / "train")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of runs that several tests begin with, each made by the first that asks for it."""
    return tmp_path_factory.mktemp("kept")


def copy_or_make(kept: Path, run: Path, make: Callable[[], object]) -> None:
    """Copy a run of that name with the cache, or make it and keep a copy."""
    if not (kept / run.name).is_dir():
        make()
        for part in (run, run.parent / "cache"):
            shutil.copytree(part, kept / run.name / part.name)
    for part in (kept / run.name).iterdir():
        shutil.copytree(part, run.parent / part.name, dirs_exist_ok=True)


@pytest.fixture
def whole(etude, images, tmp_path, kept) -> tuple[object, ...]:
    """Return the words of a run that was left alone in ``whole``."""
    run = ("fit", images, "--test", tmp_path / "test", *words(FINETUNE))

    def make() -> None:
        assert etude(*run, "--out", "whole").code == 0

    copy_or_make(kept, tmp_path / "whole", make)
    return run


@pytest.mark.slow
def test_stopped_by_hand_and_resumed_twice(etude, whole, tmp_path, stop_at):
    """Not by Ctrl-C in the terminal alone, and from another folder too."""
    begun = stop_at(8, signal.SIGINT)
    ended = etude(*whole, "--set", "train.checkpoint_every=30m", "--out", "run")
    # A validation follows the eighth step, and a checkpoint the ninth.
    assert (ended.code, len(begun)) == (130, 9)
    assert ended.err.endswith("etude resume run\n")
    assert record_of(tmp_path / "run")["state"] == "interrupted"
    (tmp_path / "run" / ".history.csv.99999.tmp").touch()  # as a kill -9 leaves it
    begun = stop_at(6, signal.SIGTERM)
    assert etude("resume", "run").code == 143
    assert begun == list(range(9, 15))
    begun = stop_at(0)
    (tmp_path / "elsewhere").mkdir()
    with contextlib.chdir(tmp_path / "elsewhere"):
        ended = etude("resume", "../run")
    assert ended.code == 0, ended.err
    assert begun == list(range(15, STEPS))
    same_files(tmp_path / "run", tmp_path / "whole")
    record = record_of(tmp_path / "run")
    assert (record["state"], record["error"], len(record["resumed"])) == ("finished", None, 2)
    (training,) = [stage for stage in record["stages"] if stage["name"] == "fine-tune"]
    assert (training["state"], training["attempts"], training["notes"]["steps"]) == ("finished", 3, STEPS)
    assert record["result"] == record_of(tmp_path / "whole")["result"]
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not list((tmp_path / "run").glob("**/.*"))
    assert not (tmp_path / "whole" / "checkpoints").exists()


@pytest.mark.slow
def test_both_stages_with_the_rate_searched_for(etude, images, tmp_path, stop_at):
    """Features, head and policy come out again; the learning rate is not searched for again."""
    run = ("fit", images, "--test", tmp_path / "test", "--lr", "auto", *words("model.feature_size=32"))
    assert etude(*run, "--out", "whole").code == 0
    stop_at(10)
    assert etude(*run, "--out", "run").code == 130
    assert (tmp_path / "run" / "model.json").is_file()  # so that stage 1 can predict
    begun = stop_at(0)
    assert etude(*run, "--out", "run", "--resume").code == 0
    assert begun[0] > 0
    same_files(tmp_path / "run", tmp_path / "whole")
    record = record_of(tmp_path / "run")
    assert record["lr_find"] == record_of(tmp_path / "whole")["lr_find"]
    assert [stage["name"] for stage in record["stages"]].count("lr-find") == 1


@pytest.mark.slow
def test_stopped_in_the_second_fold_the_first_is_not_trained_again(etude, images, tmp_path, stop_at):
    run = ("fit", images, "--test", tmp_path / "test", "--folds", 2, *words(FINETUNE))
    begun = stop_at(0)
    assert etude(*run, "--out", "whole").code == 0
    one_fold = len(begun) // 2
    stop_at(one_fold + 7)
    assert etude(*run, "--out", "run").code == 130
    begun = stop_at(0)
    assert etude(*run, "--out", "run", "--resume").code == 0
    assert 0 < begun[0] <= 7
    assert begun == list(range(begun[0], one_fold))
    models = tuple(f"fold-{k}/{name}" for k in (1, 2) for name in ("model.safetensors", "model.json", "timeline.png"))
    same_files(tmp_path / "run", tmp_path / "whole", (*models, *MADE[1:]))
    assert not list((tmp_path / "run").glob("**/checkpoints"))


@pytest.mark.parametrize("moment", ["etude.study.run.prepare.make_folds", "etude.study.run.job.finish"])
def test_stopped_before_or_after_training(etude, whole, tmp_path, stop_at, moment):
    run = whole

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moment, stop)
        assert etude(*run, "--out", "run").code == 130
    begun = stop_at(0)
    assert etude(*run, "--out", "run", "--resume").code == 0
    assert begun == ([] if moment.endswith("finish") else list(range(STEPS)))
    same_files(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_killed_and_resumed(etude, whole, tmp_path):
    run = whole
    pid = forked_etude(*run, "--out", "run", output=tmp_path / "said.txt")
    wait_for((tmp_path / "run" / "checkpoints" / "last.ckpt").is_file, pid)
    os.kill(pid, signal.SIGKILL)
    assert code_of(pid) == -signal.SIGKILL
    record = record_of(tmp_path / "run")
    assert record["state"] == "running"
    ended = etude("resume", "run")
    assert ended.code == 0, ended.err
    same_files(tmp_path / "run", tmp_path / "whole")
    record = record_of(tmp_path / "run")
    assert record["state"] == "finished"
    trainings = [stage for stage in record["stages"] if stage["name"] == "fine-tune"]
    assert [(stage["state"], stage["attempts"]) for stage in trainings] == [("finished", 2)]


@pytest.fixture
def stopped(etude, images, tmp_path, stop_at, kept) -> tuple[str | Path, ...]:
    """Return the words of a run in ``run`` that was stopped in training."""
    run = ("fit", images, *words(FINETUNE), "--out", "run")

    def make() -> None:
        stop_at(5)
        assert etude(*run).code == 130
        stop_at(0)

    copy_or_make(kept, tmp_path / "run", make)
    return (*run, "--resume")


def test_what_does_not_fit_is_refused_and_leaves_no_mark(etude, stopped, images, tmp_path):
    """After all refusals the run goes on and ends."""
    before = record_of(tmp_path / "run")
    others = [
        (("--set", "train.epochs=5"), "train.epochs 4.0 (now 5.0)"),
        (("--seed", "1"), "seed 0 (now 1)"),
        (("--folds", "2"), "folds 1 (now 2)"),
        (("--sample", "50%"), "sample None (now '50%')"),
        (("--recipe", "quick"), "predict.tta 4 (now 1)"),
    ]
    for more, told in others:
        said = sentence_of(etude(*stopped, *more))
        assert told in said, more
        assert "without --resume" in said, more
        assert record_of(tmp_path / "run") == before, more
    check_changed_images_are_refused(etude, stopped, images)
    check_another_process_at_work_is_refused(etude, stopped, tmp_path)
    check_there_is_nothing_to_resume(etude, images, tmp_path)
    assert etude(*stopped).code == 0
    assert "run is finished" in sentence_of(etude(*stopped))


def test_a_run_of_a_version_that_knew_fewer_settings_is_refused(etude, stopped, tmp_path):
    record = record_of(tmp_path / "run")
    del record["settings"]["data.range"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    ended = etude(*stopped)
    assert ended.code == 2
    assert "data.range" in sentence_of(ended)
    assert "earlier version" in sentence_of(ended)


def check_changed_images_are_refused(etude, stopped, images):
    picture(0, 999, 24).save(images / "round" / "new.png")
    assert "have changed since run was begun" in sentence_of(etude(*stopped))
    (images / "round" / "new.png").unlink()


def check_another_process_at_work_is_refused(etude, stopped, tmp_path):
    def work() -> None:
        with working_on(tmp_path / "run", lambda text: None):
            time.sleep(60)

    other, before = forked(work), record_of(tmp_path / "run")
    while not is_locked(tmp_path / "run"):
        time.sleep(0.01)
    for command in (stopped, stopped[:-1]):  # to resume it, and to start another one in its folder
        said = sentence_of(etude(*command))
        assert f"process {other} is still at work on run" in said
        assert platform.node() in said
    assert record_of(tmp_path / "run") == before
    os.kill(other, signal.SIGKILL)
    code_of(other)


def test_a_number_that_now_belongs_to_another_program_is_no_obstacle(etude, stopped, tmp_path):
    with subprocess.Popen(["sleep", "60"]) as other:
        edit_record(tmp_path / "run", state="running", pid=other.pid, locked=False, process=None)
        assert etude(*stopped).code == 0
        other.kill()


@pytest.mark.parametrize("changes", [{"pid": os.getppid()}, {"host": "gone", "locked": False, "process": None}])
def test_a_dead_run_can_be_resumed_whoever_has_its_number_and_wherever_it_was(etude, stopped, tmp_path, changes):
    edit_record(tmp_path / "run", state="running", **changes)
    os.utime(tmp_path / "run" / "run.json", (1e9, 1e9))
    assert etude(*stopped).code == 0


def check_there_is_nothing_to_resume(etude, images, tmp_path):
    (tmp_path / "empty").mkdir()
    for out in ("absent", "empty"):
        said = sentence_of(etude("fit", images, "--out", out, "--resume"))
        assert f"{out} holds no run to resume" in said
    assert not (tmp_path / "absent").exists()
    assert list((tmp_path / "empty").iterdir()) == []
    assert "no unfinished run" in sentence_of(etude("fit", images, "--resume"))


@pytest.mark.slow
def test_without_out_it_is_the_newest_unfinished_run_on_these_images(etude, images, tmp_path, stop_at):
    run = ("fit", images, *words(FINETUNE))
    assert etude(*run).code == 0
    for step in (3, 9):
        stop_at(step)
        assert etude(*run).code == 130
    for number, second in ((2, 10), (3, 20)):  # whole seconds: two runs of a test may begin within the same
        edit_record(tmp_path / "runs" / f"train-{number}", started=f"2025-01-01T00:00:{second}+00:00")
    (tmp_path / "runs" / "train-other").mkdir()
    begun = stop_at(0)
    assert etude(*run, "--resume").code == 0
    assert record_of(tmp_path / "runs" / "train-3")["state"] == "finished"
    assert 3 < begun[0] <= 9
    shutil.rmtree(tmp_path / "runs" / "train")  # the next that stands there is newer than train-2
    stop_at(5)
    assert etude(*run).code == 130
    stop_at(0)
    assert etude(*run, "--resume").code == 0
    assert record_of(tmp_path / "runs" / "train-2")["state"] == "interrupted"
    same_files(tmp_path / "runs" / "train", tmp_path / "runs" / "train-3", ("model.safetensors",))


def test_a_transform_weights_or_a_teacher_of_another_content_are_refused(etude, images, tmp_path, stop_at):
    """The setting is the same path or name in each case; only the content has changed."""
    name = f"changes_{tmp_path.name}"
    code, weights, teacher = tmp_path / f"{name}.py", tmp_path / "w.safetensors", tmp_path / "t.csv"
    code.write_text("def change(image):\n    return image\n")
    weights.write_bytes(save({key: value.contiguous() for key, value in TinyNet(3).state_dict().items()}))
    rows = "".join(f"{path.parent.name}/{path.name},0.5,0.5\n" for path in sorted(images.rglob("*.png")))
    teacher.write_text(f"id,round,striped\n{rows}")
    settings = words(FINETUNE, f'augment.transform="{name}:change"', f'model.weights="{weights}"')
    run = ("fit", images, *settings, "--set", "model.backbone=tiny", "--teacher", teacher, "--out", "run")
    stop_at(2)
    assert etude(*run).code == 130
    stop_at(0)
    others = {
        "file of model.weights": (weights, save({key: value + 1 for key, value in TinyNet(3).state_dict().items()})),
        "teachers": (teacher, teacher.read_bytes().replace(b"0.5", b"0.4")),
        "code of augment.transform": (code, b"def change(image):\n    return 255 - image\n"),
    }
    for told, (file, other) in others.items():
        kept = file.read_bytes()
        file.write_bytes(other)
        sys.modules.pop(name, None)
        assert told in sentence_of(etude(*run, "--resume"))
        file.write_bytes(kept)
    sys.modules.pop(name, None)
    assert etude(*run, "--resume").code == 0
