from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import ValidationError

from etude.core.errors import EtudeError
from etude.recipe import NAMED, Recipe, changed_settings, flat, load_recipe
from etude.recipe.timeline import nominal_timeline, timeline_of

NAMES = ", ".join(NAMED)


@pytest.fixture
def toml(tmp_path: Path):
    """``toml(text)`` writes a recipe file and returns its name."""

    def write(text: str) -> str:
        (tmp_path / "my.toml").write_text(text, encoding="utf-8")
        return str(tmp_path / "my.toml")

    return write


def test_named_recipes():
    assert load_recipe() == load_recipe("default")
    assert load_recipe().stages == Recipe().stages
    assert load_recipe("quick").stages == ("head",)
    assert load_recipe("quick", ["stages=head, finetune"]).stages == ("head", "finetune")
    assert load_recipe("quick").name == "quick"


@pytest.mark.parametrize("name", ["quick", "default"])
def test_changes_do_not_reach_the_named_recipe(name: str):
    before = copy.deepcopy(NAMED)
    recipe = load_recipe(name)
    load_recipe(name, ["train.lr=0.5", "predict.tta=7", 'stages=["finetune"]'])
    assert before == NAMED
    assert load_recipe(name) == recipe


@pytest.mark.each(
    ("change", "key", "value"),
    [
        ("train.lr=0.01", "train.lr", 0.01),
        ("train.lr=1e-3", "train.lr", 0.001),
        ("  train.lr =  0.01 ", "train.lr", 0.01),
        ("train.batch_size=8", "train.batch_size", 8),
        ("train.nesterov=false", "train.nesterov", False),
        ("train.optimizer=sgd", "train.optimizer", "sgd"),
        ('train.optimizer="sgd"', "train.optimizer", "sgd"),
        ("head.inverse_regularization=[0.5, 2]", "head.inverse_regularization", (0.5, 2.0)),
        ('stages=["head"]', "stages", ("head",)),
        ("stages=finetune", "stages", ("finetune",)),
        ("model.weights=/a folder/x=1.safetensors", "model.weights", "/a folder/x=1.safetensors"),
        ("model.backbone=resnet18.a1_in1k", "model.backbone", "resnet18.a1_in1k"),
    ],
)
def test_set_reads_values_as_toml_and_the_rest_as_text(change: str, key: str, value: object):
    recipe = load_recipe("default", [change])
    assert changed_settings(recipe) == {key: value}
    assert type(flat(recipe)[key]) is type(value)


def test_the_last_change_wins():
    assert load_recipe("default", ["train.lr=1", "train.lr=2"]).train.lr == 2


@pytest.mark.parametrize("change", ["train.lr", "=3", "  =3", ""])
def test_a_change_without_key_or_value_is_explained(change: str):
    with pytest.raises(EtudeError, match=r"--set received .*; write it as section.setting=value, such as train.lr=0"):
        load_recipe("default", [change])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("train.lrr=1", "--set train.lrr=1: there is no setting 'train.lrr'. Did you mean 'train.lr'?"),
        ("train.epoch=1", "there is no setting 'train.epoch'. Did you mean 'train.epochs'?"),
        ("data=1", "there is no setting 'data'. Did you mean 'data.fit'?"),
        ("train.lr.x=1", "there is no setting 'train.lr.x'. Did you mean 'train.lr'?"),
    ],
)
def test_an_unknown_setting_is_answered_with_the_nearest(change: str, sentence: str):
    with pytest.raises(EtudeError) as refused:
        load_recipe("default", [change])
    assert sentence in str(refused.value)


def test_a_setting_like_no_other_is_answered_with_the_command_that_lists_them():
    with pytest.raises(EtudeError, match=r"there is no setting 'zzz'\. etude settings lists them all"):
        load_recipe("default", ["zzz=1"])


@pytest.mark.each(
    ("change", "sentence"),
    [
        ("train.lr=abc", "train.lr received 'abc', but it should be a valid number"),
        ("train.lr=", "train.lr received '', but it should be a valid number"),
        ("train.lr=0", "train.lr received 0, but it should be greater than 0."),
        ("train.lr=nan", "train.lr received nan, but it should be a finite number."),
        ("train.lr=inf", "train.lr received inf, but it should be a finite number."),
        ("data.valid=1.5", "data.valid received 1.5, but it should be less than 1."),
        ("data.valid=[0.1]", "data.valid received [0.1], but it should be a valid number."),
        ("data.fit=stretch", "data.fit received 'stretch', but it should be 'auto', 'squash', 'crop' or 'letterbox'."),
        ("train.batch_size=3.5", "train.batch_size received 3.5, but it should be a valid integer"),
        ("train.nesterov=maybe", "train.nesterov received 'maybe', but it should be a valid boolean"),
        ("model.backbone=3", "model.backbone received 3, but it should be a valid string."),
        ("stages=hed", "stages received 'hed', but it must be head, finetune or head,finetune"),
        ("stages=[]", "stages received [], but it must be head, finetune or head,finetune"),
        ("stages=finetune,head", "stages received 'finetune,head', but it must be head, finetune or head,finetune"),
        ("stages=3", "stages received 3, but it must be head, finetune or head,finetune"),
        ("head.inverse_regularization=[1, -1]", "head.inverse_regularization received -1, but it should be greater"),
        ("head.folds=1", "head.folds received 1, but it should be greater than or equal to 2."),
        ("predict.tta=0", "predict.tta received 0, but it should be greater than or equal to 1."),
        ("timeline.warmup=0.9", "warmup 0.9 and finish 0.2 leave nothing of the run between them"),
    ],
)
def test_a_value_that_is_not_accepted_is_told_in_one_sentence(change: str, sentence: str):
    with pytest.raises(EtudeError) as refused:
        load_recipe("default", [change])
    assert str(refused.value).startswith(f"recipe 'default': {sentence}")
    assert "\n" not in str(refused.value)


@pytest.mark.each(
    ("name", "recipe"),
    [
        ("defualt", "default"),
        ("QUICK", "quick"),
        ("fast", "quick"),
        ("pseudolabel", "pseudo-label"),
        ("pseudo_labels", "pseudo-label"),
        ("onecycle", "one-cycle"),
        ("five_minutes", "five-minutes"),
        ("distillation", "distill"),
        ("FixMatch", "consistency"),
        ("lamb", "large-batch"),
    ],
)
def test_an_unknown_recipe_is_answered_with_the_one_that_is_meant(name: str, recipe: str):
    with pytest.raises(EtudeError, match=f"Did you mean '{recipe}'"):
        load_recipe(name)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("quik", f"there is no recipe 'quik'; the named ones are {NAMES}, or give a .toml file."
         " Did you mean 'quick'?"),
        ("recipe.yaml", f"there is no recipe 'recipe.yaml'; the named ones are {NAMES}, or give a .toml file."),
        ("", f"there is no recipe ''; the named ones are {NAMES}, or give a .toml file."),
    ],
)  # fmt: skip
def test_an_unknown_recipe(name: str, sentence: str):
    with pytest.raises(EtudeError) as refused:
        load_recipe(name)
    assert str(refused.value) == sentence


def test_a_file_starts_from_its_base(toml):
    recipe = load_recipe(toml('base = "quick"\n[train]\nlr = 0.1\n[data]\nfit = "crop"\n'))
    own = dict(flat(recipe).items() - flat(load_recipe("quick")).items())
    assert own == {"name": "my", "train.lr": 0.1, "data.fit": "crop"}


def test_a_file_without_base_starts_from_default_and_may_name_itself(toml):
    assert load_recipe(toml('name = "cells"\n[predict]\ntta = 4\n')) == Recipe.model_validate(
        {"name": "cells", "predict": {"tta": 4}}
    )


def test_a_section_of_a_file_keeps_what_its_base_says(toml, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(NAMED, "quick", {"stages": ["head"], "train": {"lr": 0.5, "epochs": 3}})
    recipe = load_recipe(toml('base = "quick"\n[train]\nepochs = 4\n'), ["train.clip=2"])
    assert (recipe.train.lr, recipe.train.epochs, recipe.train.clip) == (0.5, 4, 2)
    assert NAMED["quick"]["train"] == {"lr": 0.5, "epochs": 3}


def test_set_goes_on_top_of_the_file(toml):
    recipe = load_recipe(toml("[train]\nlr = 0.1\nepochs = 3\n"), ["train.lr=0.2", "head.folds=5"])
    assert changed_settings(recipe) == {"name": "my", "train.lr": 0.2, "train.epochs": 3, "head.folds": 5}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('base = "quikc"', f"my.toml starts from base 'quikc'; the named recipes are {NAMES}."
         " Did you mean 'quick'?"),
        ("base = 3", f"my.toml starts from base 3; the named recipes are {NAMES}."),
        ('base = ["quick"]', f"my.toml starts from base ['quick']; the named recipes are {NAMES}."),
        ("[train]\nlrr = 1", "there is no setting 'train.lrr'. Did you mean 'train.lr'?"),
        ("[trian]\nlr = 1", "there is no setting 'trian'. Did you mean 'train'?"),
        ("train = 3", "train received 3, but it is a section that holds settings of its own."),
        ("[train]\nlr = 'x'", "train.lr received 'x', but it should be a valid number"),
        ("a = [", "my.toml is not valid TOML "),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file(toml, text: str, sentence: str):
    for changes in ((), ("train.lr=0.1",)):
        with pytest.raises(EtudeError) as refused:
            load_recipe(toml(text), changes)
        assert sentence in str(refused.value)
        assert "my.toml" in str(refused.value)


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(EtudeError, match="absent.toml does not exist"):
        load_recipe(str(tmp_path / "absent.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(EtudeError, match="folder.toml is not valid TOML: it is a folder"):
        load_recipe(str(tmp_path / "folder.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EtudeError, match="binary.toml is not valid TOML"):
        load_recipe(str(tmp_path / "binary.toml"))


def test_flat_holds_every_setting_once():
    rows = flat(Recipe())
    assert rows["data.valid"] == Recipe().data.valid
    assert rows["stages"] == ("head", "finetune")
    assert not {"data", "train", "timeline"} & set(rows)
    sections = [section for section in Recipe.model_fields if hasattr(getattr(Recipe(), section), "model_fields_set")]
    leaves = [f"{section}.{leaf}" for section in sections for leaf in type(getattr(Recipe(), section)).model_fields]
    assert set(rows) == {"name", "stages", *leaves}


def test_a_setting_back_at_its_default_is_not_changed():
    default = Recipe().train.lr
    assert changed_settings(load_recipe("default", [f"train.lr={default}"])) == {}
    assert changed_settings(load_recipe("quick")).keys() == {"name", "stages", "predict.tta"}


def test_a_recipe_never_changes():
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().train.lr = 1.0  # type: ignore[misc]


HUGE = "9" * 5_000  # more digits than Python turns into a number
ODD_VALUES = (
    HUGE,
    "9" * 400,
    "-1e400",
    "inf",
    "nan",
    "[" * 3_000,
    "{a=" * 2_000,
    '"\\u0000"',
    f'"{HUGE}GB"',
    "[1e400]",
    "{}",
)


@pytest.mark.each("value", ODD_VALUES)
def test_odd_values_of_any_setting_are_read_or_refused(value: str):
    for key in flat(Recipe()):
        with suppress(EtudeError):
            timeline_of(load_recipe("default", [f"{key}={value}"]))


@pytest.mark.parametrize(
    "lr",
    [
        '{curve="triangular", base=0, peak=1, cycle=1e-320}',
        '{curve="steps", start=1, factor=1e308, milestones=[0.1, 0.2]}',
    ],
)
def test_curves_that_no_float_holds_are_refused(lr: str):
    with pytest.raises(EtudeError, match=r"timeline\.phases"):
        nominal_timeline(load_recipe("default", [f'timeline.phases=[{{name="a", length=1.0, lr={lr}}}]']))


def test_a_recipe_without_bound_is_refused_before_it_is_read(tmp_path: Path):
    path = tmp_path / "long.toml"
    phases = "".join(f'[[timeline.phases]]\nname="p{k}"\nlength={1 / 300}\n' for k in range(300))
    path.write_text(phases)
    with pytest.raises(EtudeError, match="at most 200"):
        load_recipe(str(path))
    path.write_text("#" * 1_000_000)
    with pytest.raises(EtudeError, match=r"long\.toml"):
        load_recipe(str(path))
