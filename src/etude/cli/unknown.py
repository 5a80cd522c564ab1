"""What to give instead of an option that etude does not have, but other tools do."""

from __future__ import annotations

from cyclopts.exceptions import CycloptsError, UnknownOptionError

from etude.core.errors import plain

_INSTEAD = {
    "model arch architecture network": "--backbone NAME, any of timm's",
    "imgsz img-size image-size input-size resize resolution": "--size PX",
    "learning-rate": "--lr",
    "bs": "--batch-size",
    "output output-dir save-dir project": "--out FOLDER",
    "time time-limit max-time": "--budget TIME",
    "target": "--label-column NAME",
    "config": "--recipe FILE.toml",
}
_NOT_NEEDED = {
    "device gpu gpus cuda": "a GPU is used where there is one, and CUDA_VISIBLE_DEVICES says which, or none",
    "workers num-workers jobs": "the threads follow the number of cores, and --set train.threads=N sets those of torch",
    "pretrained": "weights are pretrained, and --set model.weights=none starts from random ones",
    "amp fp16 bf16": "the precision is chosen by measurement, and --set train.precision=fp32 or bf16 sets it",
}


def explained(problem: CycloptsError) -> str:
    """Return the message about words that no command takes; of an option of other tools with what to give here."""
    if not isinstance(problem, UnknownOptionError):
        return str(problem)
    known = {name for argument in problem.argument_collection for name in argument.names}
    option = (problem.token.keyword or problem.token.value).partition("=")[0]
    name = option.removeprefix("--")
    for names, instead in _INSTEAD.items():
        if name in names.split() and instead.split()[0].rstrip(",") in known:
            return f"There is no option {option}: give {instead}."
    if "--set" in known:
        for names, reason in _NOT_NEEDED.items():
            if name in names.split():
                return f"There is no option {option}: {reason}."
        from etude.recipe.catalogue import FIELDS

        if settings := [key for key in FIELDS if plain(name) in (plain(key), plain(key.rpartition(".")[2]))]:
            return f"There is no option {option}: it is a setting, so give --set {settings[0]}=VALUE."
    return str(problem)
