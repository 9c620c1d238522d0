"""The training stages as rows of a table (Section 3.3), and which parameters each trains."""

import dataclasses

from emo_jax.models.parts import PARTS, part_of


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage trains, what it is fed and what it starts from.

    Attributes:
        trains: parts of PARTS with gradients and optimizer state; all others are frozen.
        video: fed clips of f frames behind n motion frames; otherwise single frames.
        sound: fed audio. speed: fed head rotation speeds, where it trains the speed layers.
        after: the stage whose weights it starts from; None: from fresh ones.
    """

    trains: tuple[str, ...]
    video: bool
    sound: bool
    after: str | None

    @property
    def speed(self):
        return "speed_layers" in self.trains


def _parts(stage):
    return tuple(part.name for part in PARTS if stage in part.stages)


STAGES = {
    "vae": Stage(_parts("vae"), video=False, sound=False, after=None),
    "image": Stage(_parts("image"), video=False, sound=False, after="vae"),
    "video": Stage(_parts("video"), video=True, sound=True, after="image"),
    "speed": Stage(_parts("speed"), video=True, sound=True, after="video"),
}


def get_stage(name):
    """The stage of that name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in STAGES:
        raise ValueError(f"train.stage is {name!r}; expected one of {', '.join(STAGES)}")
    return STAGES[name]


def stage_of(config):
    """The stage of a config's `train`, with the parts of `train.also` among those that it trains.

    Raises:
        ValueError: an unknown stage or part.
    """
    stage, parts = get_stage(config.train.stage), [part.name for part in PARTS]
    unknown = [part for part in config.train.also if part not in parts]
    if unknown:
        raise ValueError(f"train.also has {unknown[0]!r}; expected some of {', '.join(parts)}")
    return dataclasses.replace(stage, trains=(*stage.trains, *config.train.also))


def stages_before(name):
    """The stages that come before one, first to last: 'video' -> ['vae', 'image']."""
    before = get_stage(name).after
    return [] if before is None else [*stages_before(before), before]


def split(flat, stage):
    """Splits flat params {path: array} into (trained, frozen) for a stage.

    Raises:
        ValueError: the config has switched off every part that the stage trains.
    """
    trained = {path: a for path, a in flat.items() if part_of(path) in stage.trains}
    if not trained:
        raise ValueError(f"this stage trains {' and '.join(stage.trains)}, which the config's `model` switches off")
    return trained, {path: a for path, a in flat.items() if path not in trained}


def clip_of(config, stage):
    """The `clip` config that a stage is fed: single frames unless it trains on video; no context unless it listens."""
    clip = config.clip.copy_and_resolve_references()
    if not stage.video:
        clip.update(frames=1, motion_frames=0)
    if not stage.sound:
        clip.update(audio_context=0.0)
    return clip
