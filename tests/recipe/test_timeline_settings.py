"""What the settings of the timeline, of plateaus, mixing and averaging accept and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from etude.core.errors import EtudeError
from etude.recipe import NAMED, Recipe, changed_settings, flat, load_recipe
from etude.timeline import PRESETS

PARTS = "a share between 0 and 1, such as 0.25 or '25%', or epochs '3ep', steps '500st' or time '10m' or '90s'."
FIXED = "epochs '3ep', steps '500st' or time '10m' or '90s', or 'none'."
PHASES = """
[[timeline.phases]]
name = "up"
length = "2ep"
lr = {curve = "linear", start = 0.0, end = 1.0}
[[timeline.phases]]
name = "down"
length = 1.0
lr = {curve = "cosine", start = 1.0, end = 0.0}
augment = 0.0
"""


@pytest.fixture
def toml(tmp_path: Path):
    """``toml(text)`` writes a recipe file and returns its name."""

    def write(text: str) -> str:
        (tmp_path / "my.toml").write_text(text, encoding="utf-8")
        return str(tmp_path / "my.toml")

    return write


@pytest.mark.each(
    ("change", "key", "value"),
    [
        ("timeline.preset=one-cycle", "timeline.preset", "one-cycle"),
        ("timeline.warmup=3ep", "timeline.warmup", "3ep"),
        ("timeline.warmup=500st", "timeline.warmup", "500st"),
        ("timeline.finish=10m", "timeline.finish", "10m"),
        ("timeline.finish=25%", "timeline.finish", 0.25),
        ("timeline.cycle=0.5", "timeline.cycle", 0.5),
        ("timeline.fade=true", "timeline.fade", True),
        ("timeline.length=5m", "timeline.length", "5m"),
        ("timeline.batch_growth=4", "timeline.batch_growth", 4.0),
        ("timeline.batch_scaling=sqrt", "timeline.batch_scaling", "sqrt"),
        ("timeline.base_batch_size=256", "timeline.base_batch_size", 256),
        ("plateau.metric=valid_accuracy", "plateau.metric", "valid_accuracy"),
        ("plateau.reductions=0", "plateau.reductions", 0),
        ("plateau.reductions=none", "plateau.reductions", None),
        ("augment.mixup=0.2", "augment.mixup", 0.2),
        ("augment.cutmix=1", "augment.cutmix", 1.0),
        ("train.optimizer=lars", "train.optimizer", "lars"),
        ("train.drop_path=0.1", "train.drop_path", 0.1),
        ("train.validate_every=0.5ep", "train.validate_every", "0.5ep"),
        ("train.validate_every=0.1", "train.validate_every", 0.1),
        ("train.checkpoint_every=10m", "train.checkpoint_every", "10m"),
        ('timeline.phases=[{name="a", length=1.0, lr=1}]', "timeline.phases", ({"name": "a", "length": 1.0, "lr": 1},)),
    ],
)  # fmt: skip
def test_set_reads_the_settings_of_the_timeline(change: str, key: str, value: object):
    recipe = load_recipe("default", [change])
    assert changed_settings(recipe) == {key: value}
    assert type(flat(recipe)[key]) is type(value)


@pytest.mark.parametrize(
    "change", ["timeline.length=none", "train.validate_every=auto", "timeline.base_batch_size=none"]
)
def test_a_word_sets_back_what_toml_has_no_word_for(change: str):
    assert changed_settings(load_recipe("default", [change])) == {}


@pytest.mark.each(
    ("change", "sentence"),
    [
        ("timeline.preset=cyclc", "there is no timeline preset 'cyclc'; did you mean 'cyclic'? the presets are "
         + ', '.join(PRESETS)),
        ("timeline.preset=zzz", f"there is no timeline preset 'zzz'; the presets are {', '.join(PRESETS)}"),
        ("timeline.warmup=0", f"timeline.warmup received 0, but it must be {PARTS}"),
        ("timeline.warmup=1.5", f"timeline.warmup received 1.5, but it must be {PARTS}"),
        ("timeline.finish=100%", f"timeline.finish received '100%', but it must be {PARTS}"),
        ("timeline.finish=-3ep", f"timeline.finish received '-3ep', but it must be {PARTS}"),
        ("timeline.cycle=2 parsecs", f"timeline.cycle received '2 parsecs', but it must be {PARTS}"),
        ("timeline.cycle=true", f"timeline.cycle received True, but it must be {PARTS}"),
        ("timeline.warmup={a=1}", f"timeline.warmup received {{'a': 1}}, but it must be {PARTS}"),
        ("timeline.length=0.5", f"timeline.length received 0.5, but it must be {FIXED}"),
        ("timeline.length=soon", f"timeline.length received 'soon', but it must be {FIXED}"),
        ("timeline.batch_growth=0", "timeline.batch_growth received 0, but it should be greater than 0."),
        ("timeline.batch_scaling=square",
         "timeline.batch_scaling received 'square', but it should be 'none', 'linear' or 'sqrt'."),
        ("timeline.phases=3", "timeline.phases received 3, but it should be a valid tuple."),
        ("timeline.phases=[3]", "timeline.phases received 3, but it should be a valid dictionary."),
        ("plateau.metric=loss", "plateau.metric received 'loss', but it should be 'valid_loss' or 'valid_accuracy'."),
        ("plateau.factor=1", "plateau.factor received 1, but it should be less than 1."),
        ("plateau.threshold=2", "threshold of a plateau is 2.0; give a small number, such as 1e-4"),
        ("augment.mixup=-1", "augment.mixup received -1, but it should be greater than or equal to 0."),
        ("train.optimizer=lam",
         "train.optimizer received 'lam', but it should be 'adamw', 'adam', 'sgd', 'lars' or 'lamb'."),
        ("train.drop_path=1", "train.drop_path received 1, but it should be less than 1."),
        ("train.checkpoint_every=3ep",
         "train.checkpoint_every received '3ep', but it must be a time, such as '60s' or '10m'."),
        ("train.validate_every=2", f"train.validate_every received 2, but it must be {PARTS}"),
    ],
)  # fmt: skip
def test_a_value_that_is_not_accepted_is_told_in_one_sentence(change: str, sentence: str):
    with pytest.raises(EtudeError) as refused:
        load_recipe("default", [change])
    assert str(refused.value) == f"recipe 'default': {sentence}"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["timeline.start_size=300", "timeline.final_size=200"], "timeline.start_size=300 is above"),
        (["train.swa=true", "train.ema=0.9"], "it asks for two averages of the weights, swa=true and ema=0.9"),
        (["timeline.length=5m", "train.epochs=3"], "train.epochs=3 and timeline.length=5m both say how long"),
        (["timeline.phases=[{name='a', length='3ep'}]", "train.epochs=3"],
         "train.epochs=3 and timeline.phases of fixed lengths both say how long the run is; "
         "leave out train.epochs, or give a phase a share for its length"),
        (["timeline.phases=[{name='a', length='3ep'}]", "timeline.fade=false"],
         "timeline.phases and timeline.fade were both given"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(changes: list[str], sentence: str):
    with pytest.raises(EtudeError, match="^recipe 'default': ") as refused:
        load_recipe("default", changes)
    assert sentence in str(refused.value)
    for change in changes:  # each of them alone is fine
        load_recipe("default", [change])


def test_swa_replaces_an_ema_that_was_not_asked_for():
    train = load_recipe("default", ["train.swa=true"]).train
    assert (train.swa, train.ema) == (True, 0.0)
    assert load_recipe("default", ["train.swa=true", "train.ema=0"]).train.ema == 0.0
    assert load_recipe("default", ["train.swa=false"]).train.ema == Recipe().train.ema > 0
    assert load_recipe("default", ["train.swa=false", "train.ema=0.9"]).train.ema == 0.9


def test_every_preset_is_a_named_recipe():
    others = {"quick", "best", "few-labels", "fine-grained", "tiny-images", "vgg19-baseline"}
    assert set(NAMED) == {*others, "pseudo-label", "consistency", "distill", *PRESETS}


@pytest.mark.each("name", PRESETS)
def test_the_recipe_of_a_preset_is_the_default_besides(name: str):
    recipe = load_recipe(name)
    assert recipe.name == recipe.timeline.preset == name
    assert recipe.stages == Recipe().stages
    assert recipe.predict.tta == load_recipe("default").predict.tta > 1


def test_what_two_recipes_need_besides():
    assert load_recipe("five-minutes").timeline.length == "5m"
    large = load_recipe("large-batch").train
    assert (large.batch_size, large.optimizer) == (128, "lamb")
    with pytest.raises(EtudeError, match="or set timeline.length=none"):
        load_recipe("five-minutes", ["train.epochs=2"])
    assert load_recipe("five-minutes", ["train.epochs=2", "timeline.length=none"]).train.epochs == 2


def test_phases_of_a_file_replace_the_preset_of_its_base(toml):
    recipe = load_recipe(toml(f'base = "large-batch"\n{PHASES}'))
    assert [phase["name"] for phase in recipe.timeline.phases] == ["up", "down"]
    assert recipe.timeline.preset == "default"
    assert recipe.train.optimizer == "lamb"
    assert NAMED["large-batch"]["timeline"]["preset"] == "large-batch"
    assert json.loads(json.dumps(flat(recipe)))["timeline.phases"][1]["augment"] == 0.0


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ('"linear"', '"liner"', "phase 'up', lr: there is no curve 'liner'"),
        ("augment", "augmnt", "phase 'down': unknown key 'augmnt'"),
        ("length = 1.0", "length = 0.4", "the shares 0.4 sum to 0.4, they must sum to 1"),
        ("length = 1.0", "length = 1.4", "phase 'down' has the share 1.4 of the run; a share is at most 1"),
        ('"2ep"', '"2epochs"', "the length '2epochs' cannot be read"),
        ('name = "up"', 'name = "down"', "phase names must differ"),
        ('name = "up"', "", "the key 'name' is missing"),
        ("augment = 0.0", 'augment = 0.0\nplateau = {metric = "loss"}', "phase 'down' watches the metric 'loss'"),
    ],
)  # fmt: skip
def test_a_mistake_in_phases_is_told_before_anything_runs(toml, before: str, after: str, sentence: str):
    assert before in PHASES
    with pytest.raises(EtudeError) as refused:
        load_recipe(toml(PHASES.replace(before, after)))
    assert str(refused.value).startswith("recipe 'my', timeline.phases: ")
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_preset_beside_phases_is_refused(toml):
    with pytest.raises(EtudeError, match="timeline.phases and timeline.preset were both given"):
        load_recipe(toml(f'[timeline]\npreset = "cyclic"\n{PHASES}'))
