"""The training stages as a table (Section 3.3), and the parameters that each of them trains."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from emo_jax.models.parts import PARTS, part_of, selects


@dataclasses.dataclass(frozen=True)
class Stage:
    """A training stage: what it trains, its inputs, and the stage it starts from.

    Attributes:
        trains: names of the PARTS that get gradients and optimizer state; all others are frozen.
        video: whether it trains on clips of f frames after n motion frames; otherwise on single frames.
        sound: whether it is given audio.
        after: the stage whose weights it starts from; None for fresh parameters.
        only: rows of `train.only`, which restrict the parameters of `trains`; (): none does.
        distills: whether it learns from the predictions of a teacher, a frozen copy of the Backbone.
    """

    trains: tuple[str, ...]
    video: bool
    sound: bool
    after: str | None
    only: tuple[str, ...] = ()
    distills: bool = False

    @property
    def speed(self) -> bool:
        """Whether it is given head rotation speeds: if it trains the speed layers."""
        return "speed_layers" in self.trains


def _trained_parts(stage: str) -> tuple[str, ...]:
    return tuple(part.name for part in PARTS if stage in part.stages)


STAGES = {
    "vae": Stage(_trained_parts("vae"), video=False, sound=False, after=None),
    "image": Stage(_trained_parts("image"), video=False, sound=False, after="vae"),
    "video": Stage(_trained_parts("video"), video=True, sound=True, after="image"),
    "speed": Stage(_trained_parts("speed"), video=True, sound=True, after="video"),
    # After speed, if there is one. Student and teacher share the encoders, whose results they both get.
    "distill": Stage(
        _trained_parts("distill"), video=True, sound=True, after="video", only=("backbone/*",), distills=True
    ),
}


def get_stage(name: str) -> Stage:
    """Returns the stage of a name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in STAGES:
        raise ValueError(f"train.stage is {name!r}; expected one of {', '.join(STAGES)}")
    return STAGES[name]


def stage_of(config: ConfigDict) -> Stage:
    """Returns the stage of a config's `train.stage`, with `train.also` added to `trains`, and with `train.only`.

    Raises:
        ValueError: an unknown stage or part, or further parts for a stage that distils.
    """
    stage, parts = get_stage(config.train.stage), [part.name for part in PARTS]
    unknown = [part for part in config.train.also if part not in parts]
    if unknown:
        raise ValueError(f"train.also has {unknown[0]!r}; expected names out of {', '.join(parts)}")
    only = tuple(config.train.get("only", ())) or stage.only  # absent in configs of earlier versions
    trains = (*stage.trains, *config.train.also)
    if stage.distills:
        if config.train.also:
            raise ValueError(f"train.also is {tuple(config.train.also)}; expected () in stage distill: student and "
                             "teacher share all networks but the Backbone")  # fmt: skip
        if not config.model.speed_layers:  # then it needs no speeds
            trains = tuple(part for part in trains if part != "speed_layers")
    return dataclasses.replace(stage, trains=trains, only=only)


def stages_before(name: str) -> list[str]:
    """Returns the stages that precede one, first to last: 'video' -> ['vae', 'image']."""
    before = get_stage(name).after
    return [] if before is None else [*stages_before(before), before]


def split(flat: Mapping[str, Any], stage: Stage) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits flat params {path: array} into (trained, frozen) for a stage.

    Raises:
        ValueError: the config's `model` switches off every part that the stage trains, or `train.only` has a row that
            selects none of its parameters.
    """
    trained = {path: a for path, a in flat.items() if part_of(path) in stage.trains}
    if not trained:
        raise ValueError(f"this stage trains {' and '.join(stage.trains)}, which the config's `model` switches off")
    for pattern in stage.only:
        if not any(selects(pattern, path) for path in trained):
            raise ValueError(
                f"train.only has {pattern!r}, which selects no parameter of {', '.join(stage.trains)}; expected one of "
                f"these names or a pattern such as {next(iter(trained)).rpartition('/')[0]}/*; train.also adds parts"
            )
    if stage.only:
        trained = {path: a for path, a in trained.items() if any(selects(row, path) for row in stage.only)}
    return trained, {path: a for path, a in flat.items() if path not in trained}


def clip_of(config: ConfigDict, stage: Stage) -> ConfigDict:
    """Returns the `clip` config of a stage's data: single frames unless `video`, no audio context unless `sound`."""
    clip = ConfigDict(config.clip).copy_and_resolve_references()  # an unfrozen copy
    if not stage.video:
        clip.update(frames=1, motion_frames=0)
    if not stage.sound:
        clip.update(audio_context=0.0)
    return clip
