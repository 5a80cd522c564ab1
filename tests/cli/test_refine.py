"""``etude refine`` and ``etude blend`` as a user calls them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from etude.core.predictions import Predictions
from etude.journal.record import RunRecord
from etude.refine.chain import Chain

CLASSES = ("cat", "dog", "eel")


def model_output(
    seed: int,
    count: int = 300,
    shares: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3),
    *,
    sure: float = 0.5,
    views: int = 1,
    noise: int = 0,
) -> Predictions:
    """What a model, one for each ``noise``, says about images drawn by ``seed``."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, count, p=shares)
    own = np.random.default_rng((seed, noise))
    seen = np.eye(3)[labels] + rng.normal(scale=0.4, size=(count, 3)) + own.normal(scale=0.6, size=(views, count, 3))
    features = seen[0].astype(np.float32)
    return Predictions([f"{seed}-{i}.png" for i in range(count)], CLASSES, sure * seen / 0.5, features, labels)


def as_csv(path: Path, one: Predictions, labels: bool = False) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *one.classes, *(["label"] if labels else [])])
        for row, name in enumerate(one.ids):
            told = [one.classes[one.labels[row]]] if labels and one.labels is not None else []
            writer.writerow([name, *one.probabilities()[row].tolist(), *told])
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def accuracy(path: Path, truth: Predictions) -> float:
    rows = {row["id"]: row for row in rows_of(path)}
    guesses = [max(CLASSES, key=lambda name: float(rows[image][name])) for image in truth.ids]
    assert truth.labels is not None
    return float(np.mean([truth.classes[label] == guess for label, guess in zip(truth.labels, guesses, strict=True)]))


@pytest.fixture
def shifted(tmp_path: Path) -> tuple[Path, Path, Predictions]:
    target = model_output(1, shares=(0.85, 0.1, 0.05))
    return as_csv(tmp_path / "v.csv", model_output(0, 500), True), as_csv(tmp_path / "t.csv", target), target


def test_tables_of_another_tool_are_refined(etude, tmp_path, shifted):
    valid, target, truth = shifted
    ended = etude("refine", valid, target, "--prior", "estimate", "--out", "better/r.csv")
    assert ended.code == 0, ended.err
    assert "Gain in accuracy, cross-fitted on 500 labelled images" in ended.out
    assert max(len(line) for line in ended.out.splitlines()[:-1] if "left out" not in line) <= 80
    assert [name for name in ("temperature", "vector_scaling", "prior", "all kept") if name not in ended.out] == []
    assert "*" in ended.out
    assert accuracy(tmp_path / "better" / "r.csv", truth) > accuracy(target, truth) + 0.02
    chain = Chain.load(tmp_path / "better" / "refine.json")
    assert "prior" in chain.described
    assert [row["id"] for row in rows_of(tmp_path / "better" / "r.csv")] == list(truth.ids)


def table(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_single_columns_are_blended_and_written_as_they_are(etude, tmp_path):
    table(tmp_path / "1.csv", "image,target", "b.png,0.2", "a.png,0.9", "c.png,1")
    table(tmp_path / "2.csv", "id,target", "a,0.5", "b,0.4", "c,0.0")
    assert etude("blend", "1.csv", "2.csv", "--out", "mean.csv").code == 0
    rows = rows_of(tmp_path / "mean.csv")
    assert [row["image"] for row in rows] == ["b.png", "a.png", "c.png"]
    np.testing.assert_allclose([float(row["target"]) for row in rows], [0.3, 0.7, 0.5], atol=1e-6)
    weights = ("--weight", 3, "--weight", 1)
    assert etude("blend", "1.csv", "2.csv", *weights, "--out", "weighted.csv").code == 0
    assert float(rows_of(tmp_path / "weighted.csv")[0]["target"]) == pytest.approx(0.25)
    assert etude("blend", "1.csv", "2.csv", "--method", "geometric", "--out", "geometric.csv").code == 0
    assert float(rows_of(tmp_path / "geometric.csv")[1]["target"]) == pytest.approx(0.75)  # logits are averaged
    table(tmp_path / "sample.csv", "name,p", "c,0.5", "a,0.5", "b,0.5")
    words = ("--sample-submission", "sample.csv", "--positive", "0", "--out", "sampled.csv")
    assert etude("blend", "1.csv", "2.csv", *words).code == 0  # the columns that are read hold that of 0 then too
    sampled = rows_of(tmp_path / "sampled.csv")
    assert [(row["name"], round(float(row["p"]), 6)) for row in sampled] == [("c", 0.5), ("a", 0.7), ("b", 0.3)]
    table(tmp_path / "sample.csv", "name,p", "c,0", "a,1", "b,0")  # labels, and so the file holds labels
    assert etude("blend", "1.csv", "2.csv", "--sample-submission", "sample.csv", "--out", "hard.csv").code == 0
    assert [row["p"] for row in rows_of(tmp_path / "hard.csv")] == ["0", "1", "0"]
    words = ("--sample-submission", "sample.csv", "--probabilities", "--out", "soft.csv")
    assert etude("blend", "1.csv", "2.csv", *words).code == 0
    assert float(rows_of(tmp_path / "soft.csv")[1]["p"]) == pytest.approx(0.7)
    table(tmp_path / "truth.csv", "id,label", "a,1", "b,0", "c,1")
    ended = etude(
        "blend", "1.csv", "2.csv", "--labels", "truth.csv", "--method", "mean", "--out", "scored.csv", "--json"
    )
    assert json.loads(ended.out)["scores"]["1.csv"] == 1


def test_files_of_labels_are_blended_by_vote(etude, tmp_path):
    table(tmp_path / "1.csv", "id,label", "a.png,=cat", "b.png,dog", 'c.png,"eel, big"')
    table(tmp_path / "2.csv", "id,label", "c.png,dog", "b.png,=cat", "a.png,=cat")
    table(tmp_path / "3.csv", "id,label", "a,dog", "b,=cat", "c,dog ")
    ended = etude("blend", "1.csv", "2.csv", "3.csv", "--out", "vote.csv")
    assert ended.code == 0, ended.err
    assert [(row["id"], row["label"]) for row in rows_of(tmp_path / "vote.csv")] == [
        ("a.png", "=cat"), ("b.png", "=cat"), ("c.png", "dog"),
    ]  # fmt: skip
    assert etude("blend", "1.csv", "2.csv", "--out", "tie.csv").code == 0
    assert [row["label"] for row in rows_of(tmp_path / "tie.csv")] == ["=cat", "dog", "eel, big"]
    weights = ("--weight", 1, "--weight", 2)
    assert etude("blend", "1.csv", "2.csv", *weights, "--out", "weighted.csv").code == 0
    assert [row["label"] for row in rows_of(tmp_path / "weighted.csv")] == ["=cat", "=cat", "dog"]
    ended = etude("blend", "1.csv", "2.csv", "--method", "mean", "--out", "no.csv")
    assert (ended.code, "1.csv" in ended.err) == (2, True)
    ended = etude("blend", "1.csv", "2.csv", "--weight", 1, "--out", "no.csv")
    assert (ended.code, "2 weights" in ended.err) == (2, True)
    for words in (("1.csv", "2.csv"), (as_csv(tmp_path / "v.csv", model_output(0, 20), True), "1.csv")):
        ended = etude("refine", *words, "--out", "no.csv")
        assert (ended.code, "1.csv holds a label" in ended.err) == (2, True)
    assert not (tmp_path / "no.csv").exists()


def test_a_single_column_is_refined(etude, tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=300)
    said = 1 / (1 + np.exp(-(4 * truth - 2 + rng.normal(scale=2, size=300)) * 5))
    said = said.clip(1e-6, 1 - 1e-6)
    for name, rows in (("v", range(200)), ("t", range(200, 300))):
        table(tmp_path / f"{name}.csv", "id,target", *(f"{row}.png,{said[row]:.6f}" for row in rows))
    table(tmp_path / "truth.csv", "id,label", *(f"{row},{truth[row]}" for row in range(200)))
    words = ("--labels", "truth.csv", "--metric", "log_loss", "--steps", "temperature", "--out", "r.csv")
    ended = etude("refine", "v.csv", "t.csv", *words)
    assert ended.code == 0, ended.err
    rows = rows_of(tmp_path / "r.csv")
    assert [row["id"] for row in rows] == [f"{row}.png" for row in range(200, 300)]
    refined = np.array([float(row["target"]) for row in rows])
    loss = lambda p: -np.log(np.where(truth[200:], p, 1 - p).clip(1e-9)).mean()  # noqa: E731
    assert loss(refined) < loss(said[200:]) - 0.05


def test_rows_of_images_that_a_run_could_not_read_are_filled(etude, tmp_path):
    run, one = tmp_path / "run", model_output(1, 3)
    run.mkdir()
    for name in ("valid.npz", "test.npz"):
        one.save(run / name)
    record = RunRecord.open(tmp_path / "made", command=(), recipe="quick", settings={}, changed={}, seed=0)
    record.set("data", {"classes": {"cat": 1, "dog": 2, "eel": 1}})
    record.close("finished")
    (tmp_path / "made" / "run.json").rename(run / "run.json")
    table(run / "bad_files.csv", "id,path,reason", "sub/bad.png,/bad.png,truncated")
    table(tmp_path / "sample.csv", "id,cat,dog,eel", *(f"{name},0,0,0" for name in (*one.ids, "sub/bad.png")))
    for words in (("blend", "run", "run"), ("refine", "run", "--steps", "temperature")):
        ended = etude(*words, "--sample-submission", "sample.csv", "--out", "out.csv")
        assert ended.code == 0, ended.err
        assert "'sub/bad.png'" in ended.out
        last = rows_of(tmp_path / "out.csv")[-1]
        assert [round(float(last[name]), 6) for name in CLASSES] == [0.25, 0.5, 0.25]


def test_a_run_is_refined_with_its_own_predictions(etude, tmp_path):
    (tmp_path / "run").mkdir()
    model_output(0, views=3).save(tmp_path / "run" / "valid.npz")
    model_output(1, views=3).save(tmp_path / "run" / "test.npz")
    ended = etude("refine", "run", "--out", "r.npz", "--metric", "log_loss")
    assert ended.code == 0, ended.err
    refined = Predictions.load(tmp_path / "r.npz")
    assert refined.logits.shape == (1, 300, 3)
    for word in ("views", "knn", "views: accuracy"):
        assert word in ended.out
    again = Chain.load(tmp_path / "refine.json").transform(model_output(1, views=3))
    np.testing.assert_array_equal(again.logits, refined.logits)


def test_a_class_without_labelled_images_is_named_and_kept(etude, tmp_path):
    rng = np.random.default_rng(0)

    def written(name: str, kinds: int, labelled: bool) -> Predictions:
        labels = rng.integers(0, kinds, 200)
        logits = rng.normal(size=(1, 200, 3)) + 2 * np.eye(3)[labels]
        one = Predictions([f"{name}{row}" for row in range(200)], ("ant", "bee", "cow"), logits, labels=labels)
        as_csv(tmp_path / f"{name}.csv", one, labels=labelled)
        return one

    written("valid", 2, labelled=True)
    target = written("target", 3, labelled=False)
    ended = etude("refine", tmp_path / "valid.csv", tmp_path / "target.csv", "--out", tmp_path / "out.csv", "--quiet")
    assert ended.code == 0, ended.err
    assert "'cow'" in ended.out + ended.err
    assert "'ant'" not in ended.out + ended.err
    best = [max(target.classes, key=lambda name: float(row[name])) for row in rows_of(tmp_path / "out.csv")]
    before = target.predicted() == 2
    assert (np.array(best) == "cow")[before].all()


def test_labels_may_come_from_a_file_of_their_own(etude, tmp_path, shifted):
    _, target, _ = shifted
    valid = model_output(0, 500)
    assert valid.labels is not None
    lines = [f"{name},{CLASSES[label]}" for name, label in zip(valid.ids, valid.labels, strict=True)]
    (tmp_path / "truth.csv").write_text("\n".join(["id,label", *lines]))
    bare = as_csv(tmp_path / "bare.csv", valid)
    ended = etude(
        "refine", bare, "--target", target, "--labels", "truth.csv", "--steps", "temperature", "--out", "r.csv"
    )
    assert ended.code == 0, ended.err
    assert rows_of(tmp_path / "r.csv")[0].keys() == {"id", *CLASSES}


def test_the_columns_of_both_files_may_be_in_another_order(etude, tmp_path, shifted):
    valid, target, truth = shifted
    order = ["dog", "eel", "cat"]
    lines = [",".join([row["id"], *(row[name] for name in order)]) for row in rows_of(target)]
    (tmp_path / "turned.csv").write_text("\n".join([",".join(["id", *order]), *lines]))
    for name, file in (("one.csv", target), ("two.csv", "turned.csv")):
        assert etude("refine", valid, file, "--steps", "prior", "--prior", "estimate", "--out", name).code == 0
    assert accuracy(tmp_path / "one.csv", truth) == accuracy(tmp_path / "two.csv", truth)


def test_known_shares_are_assigned(etude, tmp_path, shifted):
    valid, target, _ = shifted
    (tmp_path / "shares.csv").write_text("class,share\ncat,0.85\ndog,0.10\neel,0.05\n")
    words = ("--prior", "shares.csv", "--steps", "assignment", "--no-probabilities")
    ended = etude("refine", valid, target, *words, "--out", "r.csv")
    assert ended.code == 0, ended.err
    labels = [row["label"] for row in rows_of(tmp_path / "r.csv")]
    assert {name: labels.count(name) for name in CLASSES} == {"cat": 255, "dog": 30, "eel": 15}


def test_json_is_told_in_place_of_the_table(etude, shifted):
    valid, target, _ = shifted
    ended = etude("refine", valid, target, "--metric", "macro_f1", "--out", "r.csv", "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert [row["name"] for row in told["steps"]] == ["temperature", "vector_scaling", "thresholds"]
    assert told["metric"] == "macro_f1"


def test_a_sample_submission_is_followed(etude, tmp_path, shifted):
    valid, target, truth = shifted
    ids = list(reversed(truth.ids))
    (tmp_path / "sample.csv").write_text("\n".join(["image,eel,cat,dog", *(f"{name},0,0,1" for name in ids)]))
    words = ("--steps", "temperature", "--sample-submission", "sample.csv")
    assert etude("refine", valid, target, *words, "--out", "r.csv").code == 0
    found = rows_of(tmp_path / "r.csv")
    assert list(found[0]) == ["image", "eel", "cat", "dog"]
    assert [row["image"] for row in found] == ids


def test_a_runs_own_training_features_are_found(etude, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name, seed, count in (("valid", 0, 300), ("test", 1, 200), ("train", 2, 400)):
        model_output(seed, count).save(run / f"{name}.npz")
    steps = ("--steps", "knn,last_layer")
    found = etude("refine", "run", "--out", "found.npz", *steps, "--json")
    assert found.code == 0, found.err
    assert [row["name"] for row in json.loads(found.out)["steps"]] == ["knn", "last_layer"]
    given = etude("refine", "run", "--train", "run", "--out", "given.npz", *steps)
    assert given.code == 0, given.err
    np.testing.assert_array_equal(*(Predictions.load(tmp_path / f"{name}.npz").logits for name in ("found", "given")))
    (run / "train.npz").unlink()
    alone = etude("refine", "run", "--out", "alone.npz", *steps)
    assert (alone.code, "--train FILE.npz" in alone.err) == (2, True)
    missing = etude("refine", "run", "--train", "run", "--out", "alone.npz")
    assert (missing.code, "holds no train.npz" in missing.err) == (2, True)


def test_steps_that_miss_something_are_named(etude, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    valid, test = model_output(0, 100, views=2), model_output(1, 50)
    valid.save(run / "valid.npz")
    test.save(run / "test.npz")
    ended = etude("refine", "run", "--out", "r.npz")
    assert ended.code == 0, ended.err
    assert "last_layer is left out: it needs features of the training images" in ended.out
    assert "views is left out: there are 2 of the labelled images and 1 of the others" in ended.out
    as_csv(run / "other.csv", test)
    other = etude("refine", "run", "run/other.csv", "--out", "r.npz")
    assert "knn and last_layer are left out: the predictions to refine hold no features" in other.out
    asked = etude("refine", "run", "--out", "r.npz", "--steps", "temperature")
    assert "left out" not in asked.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("v.csv", "--out", "r.csv"), "no predictions to refine were given"),
        (("t.csv", "v.csv", "--out", "r.csv"), "--labels FILE"),
        (("v.csv", "t.csv", "--out", "r.txt"), ".csv or .npz"),
        (("v.csv", "t.csv", "--out", "refine.npz"), "choose another"),
        (("v.csv", "t.csv", "--out", "r.npz", "--no-probabilities"), "give a .csv"),
        (("v.csv", "t.csv", "--out", "r.csv", "--metric", "acuracy"), "Did you mean 'accuracy'"),
        (("v.csv", "t.csv", "--out", "r.csv", "--steps", "knn"), "needs the features"),
        (("v.csv", "t.csv", "--out", "r.csv", "--steps", "temprature"), "Did you mean 'temperature'"),
        (("v.csv", "t.csv", "--out", "r.csv", "--prior", "unifrom"), "Did you mean 'uniform'"),
        (("v.csv", "gone.csv", "--out", "r.csv"), "gone.csv does not exist"),
        (("v.csv", "odd.csv", "--out", "r.csv"), "has '-1' in column 'dog'"),
        (("v.csv", "two.csv", "--out", "r.csv"), "lacks 'eel'"),
        ((".", "--out", "r.csv"), "holds no valid.npz"),
    ],
)
def test_mistakes_end_in_one_sentence(etude, tmp_path, shifted, words, told):
    (tmp_path / "odd.csv").write_text("id,cat,dog,eel\na,0.5,-1,0.5\n")
    (tmp_path / "two.csv").write_text("id,cat,dog\na,0.5,0.5\n")
    ended = etude("refine", *words)
    assert ended.code == 2, ended.out
    assert told in ended.err
    assert ended.err.startswith("etude: ")
    assert len(ended.err.strip().splitlines()) == 1
    assert not (tmp_path / "r.csv").exists()


def test_two_models_are_blended_and_their_errors_compared(etude, tmp_path):
    one, other = (model_output(0, noise=number) for number in (1, 2))
    one.save(tmp_path / "a.npz")
    as_csv(tmp_path / "b.csv", other)
    ended = etude("blend", "a.npz", "b.csv", "--out", "c.csv")
    assert ended.code == 0, ended.err
    for word in ("accuracy on 300 labelled images", "How differently they err", "disagree", "Q", "Cross-fitted gain"):
        assert word in ended.out
    assert max(map(len, ended.out.splitlines()[:4])) <= 80
    assert accuracy(tmp_path / "c.csv", one) > max(
        accuracy(as_csv(tmp_path / "a.csv", one), one), accuracy(tmp_path / "b.csv", one)
    )


@pytest.mark.parametrize("method", ["mean", "geometric", "rank", "weights", "select", "auto"])
def test_every_method_blends(etude, tmp_path, method):
    for number in (1, 2):
        model_output(0, 100, noise=number).save(tmp_path / f"{number}.npz")
    ended = etude("blend", "1.npz", "2.npz", "--method", method, "--out", "c.npz", "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert sum(told["weights"].values()) == pytest.approx(1)
    assert set(told["scores"]) == {"1.npz", "2.npz", "blend"}
    assert Predictions.load(tmp_path / "c.npz").ids == model_output(0, 100).ids


def test_weights_come_from_validation_predictions(etude, tmp_path):
    for number, sure in ((1, 0.5), (2, -0.5)):  # the second model is always wrong
        (tmp_path / f"run{number}").mkdir()
        for name, seed in (("valid", 0), ("test", 1)):
            model_output(seed, noise=number, sure=sure).save(tmp_path / f"run{number}" / f"{name}.npz")
    runs = etude("blend", "run1", "run2", "--method", "weights", "--out", "a.npz", "--json")
    assert runs.code == 0, runs.err
    assert json.loads(runs.out)["weights"]["run1"] > 0.9
    files = [f"run{number}/test.npz" for number in (1, 2)]
    valid = [word for number in (1, 2) for word in ("--valid", f"run{number}/valid.npz")]
    named = etude("blend", *files, *valid, "--method", "weights", "--out", "b.npz")
    assert named.code == 0, named.err
    np.testing.assert_array_equal(
        Predictions.load(tmp_path / "a.npz").logits, Predictions.load(tmp_path / "b.npz").logits
    )


def test_without_labels_the_mean_is_taken(etude, tmp_path):
    for number in (1, 2):
        as_csv(tmp_path / f"{number}.csv", model_output(0, 50, noise=number))
    ended = etude("blend", "1.csv", "2.csv", "--out", "c.csv")
    assert ended.code == 0, ended.err
    assert "mean of 2 models" in ended.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("1.csv", "--out", "c.csv"), "two models or more"),
        (("1.csv", "2.csv", "--out", "c.csv", "--method", "medium"), "--method is 'medium'"),
        (("1.csv", "2.csv", "--out", "c.csv", "--method", "weights"), "labelled images"),
        (("1.csv", "3.csv", "--out", "c.csv"), "same ids"),
        (("1.csv", "2.csv", "--out", "c.csv", "--valid", "1.csv"), "--valid came 1 times for 2 models"),
        (("1.csv", "2.csv", "--out", "c.txt"), ".csv or .npz"),
    ],
)
def test_mistakes_of_a_blend_end_in_one_sentence(etude, tmp_path, words, told):
    for number, count in ((1, 20), (2, 20), (3, 19)):
        as_csv(tmp_path / f"{number}.csv", model_output(0, count, noise=number))
    ended = etude("blend", *words)
    assert ended.code == 2, ended.out
    assert told in ended.err
    assert len(ended.err.strip().splitlines()) == 1


def test_refining_loads_no_torch(tmp_path):
    as_csv(tmp_path / "v.csv", model_output(0, 60), True)
    as_csv(tmp_path / "t.csv", model_output(1, 60))
    code = (
        "import sys; from etude.cli.main import main\n"
        "sys.argv = ['etude', 'refine', 'v.csv', 't.csv', '--steps', 'temperature', '--out', 'r.csv', '--quiet']\n"
        "main_failed = None\n"
        "try: main()\n"
        "except SystemExit as stop: main_failed = stop.code\n"
        "print(main_failed, sorted({'torch', 'lightning', 'timm', 'cv2'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert told.stdout.strip() in ("0 []", "None []"), told.stdout + told.stderr
