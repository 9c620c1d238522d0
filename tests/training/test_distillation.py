"""The loss of stage distill, against closed forms (tests/echo.py), its teacher, and the student's one pass."""

import functools

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from emo_jax.diffusion.sampler import sample
from emo_jax.diffusion.schedule import coefficients, make_schedule, target, timesteps
from emo_jax.diffusion.solvers import make_solver
from emo_jax.generation.guided import mode_of
from emo_jax.generation.sampler import VideoSampler
from emo_jax.models.conditions import Conditions
from emo_jax.models.emo import build
from emo_jax.models.parts import part_of
from emo_jax.training import initial_weights
from emo_jax.training.distillation import check, distillation_loss, teacher_steps
from emo_jax.training.stages import stage_of
from emo_jax.training.step import make_loss, new_state
from emo_jax.weights.checkpoint import Checkpoints
from emo_jax.weights.runs import load_run, save_weights_as_run
from tests.distributed.layouts import smallest_config
from tests.echo import echo
from tests.steps import FAST, fixed_batch, random_params, training_config


def distill_config(**distill):
    config = training_config("distill")
    config.diffusion.min_snr_gamma = 0.0
    config.train.motion_noise = 0.0
    config.train.distill.update(distill)
    return config


def loss_of(config, rule, batch=None, seed=0):
    """Returns the loss with the Backbone's rule (latents, timesteps, conditions) -> prediction."""
    emo, schedule, stage = echo(config, rule), make_schedule(config.diffusion), stage_of(config)
    batch = fixed_batch(config, 4) if batch is None else batch
    loss = functools.partial(distillation_loss, emo, schedule, stage, config.train, config.sampling, {})
    return float(jax.jit(loss, compiler_options=FAST)(batch, jax.random.key(seed))[0])


# ---- guidance


def passes(conditions):
    """Returns (reference, voice) of each sample: the means of its conditions, zero where guidance drops them."""
    size = len(conditions.location)
    reference = conditions.reference["layer"].mean((1, 2, 3, 4)) if conditions.reference is not None else jnp.zeros(0)
    audio = conditions.audio.reshape(len(conditions.audio), -1).mean(1)
    return [jnp.pad(a, (size - len(a), 0))[:, None, None, None, None] for a in (reference, audio)]


def with_guidance(wrong=0.0):
    """Returns a rule: without scales a prediction from the conditions, with scales what guidance makes of it.

    Args:
        wrong: error of the student.
    """

    def rule(latents, t, conditions):
        reference, voice = passes(conditions)
        base = 0.3 * latents + 0.1 * t[:, None, None, None, None] / 1000
        if conditions.scales is None:
            return base + 2 * reference + 3 * voice + 5 * reference * voice
        scales = conditions.scales.T[:, :, None, None, None, None]
        return base + scales[0] * 2 * reference + scales[1] * (3 * voice + 5 * reference * voice) + wrong

    return rule


def test_the_student_s_optimum_is_the_guided_teacher():
    config = distill_config(target="guidance")
    assert loss_of(config, with_guidance()) < 1e-10
    np.testing.assert_allclose(loss_of(config, with_guidance(wrong=0.1)), 0.01, rtol=1e-3)


def test_guidance_of_an_interval_becomes_a_part_of_the_student():
    """Outside the interval the teacher has no guidance, for each sample's timestep."""
    config = distill_config(target="guidance")
    config.sampling.guidance_interval = (0.25, 0.5)

    def rule(latents, t, conditions):
        if conditions.scales is not None:
            inside = (t >= 250) & (t < 500)
            conditions = conditions.replace(scales=jnp.where(inside[:, None], conditions.scales, 1.0))
        return with_guidance()(latents, t, conditions)

    batch = fixed_batch(config, 16)
    assert loss_of(config, rule, batch) < 1e-10 < 1e-4 < loss_of(config, with_guidance(), batch)


def test_scales_are_drawn_between_their_bounds_for_each_sample():
    config, seen = distill_config(target="guidance", reference_scale=(2.0, 3.0), audio_scale=(7.0, 7.0)), []

    def rule(latents, t, conditions):
        if conditions.scales is not None:
            jax.debug.callback(lambda scales: seen.append(np.asarray(scales)), conditions.scales)
        return latents

    loss_of(config, rule, fixed_batch(config, 16))
    jax.effects_barrier()
    [scales] = seen
    assert scales.shape == (16, 2) and len(set(scales[:, 0].tolist())) == 16
    assert 2 <= scales[:, 0].min() < 2.4 < 2.6 < scales[:, 0].max() <= 3 and (scales[:, 1] == 7).all()


# ---- consistency

DEVIATION = 0.6


def gaussian(schedule, steps, follows=True):
    """Returns a rule for data that is normal around 0 with DEVIATION, for which the teacher's trajectory is known.

    Without scales it predicts the mean of x0 given x_t, with scales the end of the teacher's trajectory of DDIM. Each
    step multiplies x by a number that depends on t alone.

    Args:
        schedule: the noise schedule.
        steps: of the teacher.
        follows: False: with scales, too, it predicts the mean.
    """
    alphas, sigmas = np.float64(schedule.alphas), np.float64(schedule.sigmas)
    shares = alphas * DEVIATION**2 / (alphas**2 * DEVIATION**2 + sigmas**2)  # x0 = share * x_t
    ends, following = shares.copy(), -1
    for t in timesteps(schedule, steps, schedule.spacing)[::-1]:
        factor = alphas[following] * shares[t] + sigmas[following] * (1 - alphas[t] * shares[t]) / sigmas[t]
        ends[t] = factor * (1 if following == -1 else ends[following])
        following = t

    def rule(latents, t, conditions):
        table = jnp.asarray(shares if conditions.scales is None or not follows else ends, jnp.float32)
        x0 = table[t][:, None, None, None, None] * latents
        alpha, sigma = coefficients(schedule, t, latents)
        return target(schedule, schedule.prediction, x0, (latents - alpha * x0) / sigma, t)

    return rule


@pytest.mark.parametrize("prediction", ["v", "x0"])
@pytest.mark.parametrize("steps", [1, 8])
def test_the_student_s_optimum_is_the_end_of_the_teacher_s_trajectory(prediction, steps):
    config = distill_config(steps=steps)
    config.diffusion.prediction = prediction
    schedule, batch = make_schedule(config.diffusion), fixed_batch(config, 16)
    assert loss_of(config, gaussian(schedule, steps), batch) < 1e-7
    if steps > 1:  # with one step, the mean is the end
        assert loss_of(config, gaussian(schedule, steps, follows=False), batch) > 1e-3


@pytest.mark.slow
def test_one_step_of_the_student_is_all_steps_of_the_teacher():
    """The closed form itself, in the sampler: equal frames from equal noise."""
    config = distill_config()
    schedule, videos = make_schedule(config.diffusion), []
    for steps, inputs in ((8, False), (1, True)):
        config.model.guidance_inputs = inputs
        config.sampling.update(steps=steps, reference_scale=1.0, audio_scale=1.0, clips=1)
        sampler = VideoSampler(echo(config, gaussian(schedule, 8)), {}, config.sampling)
        batch = fixed_batch(config, 1)
        audio = np.zeros((1, 1000), np.float32)
        frames = sampler.stream(batch["reference"], batch["mask"], audio, key=jax.random.key(0))
        videos.append(np.concatenate(list(frames), axis=1).astype(int))
    assert videos[0].std() > 5 and np.abs(videos[1] - videos[0]).max() <= 1


@pytest.mark.slow
def test_more_steps_of_the_student_have_the_teacher_s_distribution_with_new_noise():
    schedule = make_schedule(distill_config().diffusion)
    rule, conditions = gaussian(schedule, 8), Conditions(scales=jnp.ones(()))
    x = jax.random.normal(jax.random.key(1), (64, 1, 8, 8, 4))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def deviation(name, steps):
        ts = timesteps(schedule, steps, schedule.spacing)
        student = functools.partial(rule, conditions=conditions)
        return sample(student, schedule, make_solver(name, schedule), x, ts, jax.random.key(2)).std()

    one = float(deviation("lcm", 1))
    assert 0.5 * DEVIATION < one < 1.1 * DEVIATION
    assert abs(deviation("lcm", 4) / one - 1) < 0.06 < 0.15 < deviation("ddim", 4) / one - 1


def test_timesteps_of_the_teacher():
    config = distill_config()
    schedule = make_schedule(config.diffusion)  # trailing
    t, t_next = teacher_steps(schedule, 4, jnp.arange(1000))
    assert sorted(set(zip(np.asarray(t).tolist(), np.asarray(t_next).tolist(), strict=True))) == [
        (249, -1), (499, 249), (749, 499), (999, 749),
    ]  # fmt: skip
    assert (np.abs(np.asarray(t) - np.arange(1000)) < 250).all() and np.bincount(np.asarray(t))[999] == 250


# ---- networks


@pytest.mark.slow
def test_guidance_inputs_start_without_effect_and_reach_the_prediction_when_trained():
    config = smallest_config("distill")
    config.model.guidance_inputs = True
    emo = build(config)
    fresh = flatten_dict(random_params(emo), sep="/")
    paths = [path for path in fresh if part_of(path) == "guidance_inputs"]
    assert len(paths) == 4
    initial = {path: emo.init_param(path, fresh[path].shape, jax.random.key(0)) for path in paths}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, *emo.latent_shape)), jnp.float32)

    @functools.partial(jax.jit, compiler_options=FAST)
    def run(params, scales):
        conditions = emo.conditions({}, temporal=False)
        t = jnp.array([10, 900])
        return emo.denoise(params, x, t, conditions), emo.denoise(params, x, t, conditions.replace(scales=scales))

    scales = jnp.array([[1.0, 2.0], [3.0, 3.0]])
    plain, same = run(unflatten_dict(fresh | initial, sep="/"), scales)
    np.testing.assert_array_equal(plain, same)
    without = smallest_config("video")  # the network that has no such inputs
    flat = {path: a for path, a in fresh.items() if path not in paths}
    bare = jax.jit(build(without).denoise, compiler_options=FAST)(
        unflatten_dict(flat, sep="/"), x, jnp.array([10, 900]), emo.conditions({}, temporal=False)
    )
    np.testing.assert_allclose(plain, bare, rtol=1e-6, atol=1e-6)
    trained = unflatten_dict(fresh, sep="/")
    one, other = run(trained, scales)[1], run(trained, scales.at[0, 1].set(2.1))[1]
    assert np.abs(one[0] - other[0]).max() > 1e-4
    np.testing.assert_allclose(one[1], other[1], rtol=1e-5, atol=1e-6)


def test_a_student_is_sampled_in_one_pass_and_one_program_for_all_scales():
    config, seen = distill_config(), []

    def rule(latents, t, conditions):
        jax.debug.callback(lambda scales: seen.append(np.asarray(scales).tolist()), conditions.scales)
        return jnp.zeros_like(latents)

    config.sampling.update(steps=1, clips=1, guidance_rescale=0.5, guidance_interval=(0.2, 0.8))
    sampler = VideoSampler(echo(config, rule), {}, config.sampling)
    batch = fixed_batch(config, 1)
    for scales in ((3.0, 2.0), (1.0, 1.0), (2.0, 2.0), (1.0, 4.0)):
        audio = np.zeros((1, 1000), np.float32)
        list(sampler.stream(batch["reference"], batch["mask"], audio, key=jax.random.key(0), scales=scales))
    jax.effects_barrier()
    assert seen == [[[3, 2]], [[1, 1]], [[2, 2]], [[1, 4]]]
    assert sampler.mode == mode_of(config.model, (1.0, 1.0)) == "inputs" and sampler.compilations() == 1


# ---- the run


def test_exactly_the_backbone_is_trained_and_its_copy_is_frozen():
    config = smallest_config("distill")
    params = build(config).abstract_params()
    state = jax.eval_shape(functools.partial(new_state, config), params)
    assert all(path.startswith("backbone/") for path in state.trained)
    flat = flatten_dict(params, sep="/")
    assert set(state.trained) == {path for path in flat if path.startswith("backbone/")}
    teacher = {path.removeprefix("teacher/") for path in state.frozen if path.startswith("teacher/")}
    assert teacher == {p.removeprefix("backbone/") for p in state.trained if part_of(p) != "guidance_inputs"}
    assert set(state.flat()) == set(flat)
    config = smallest_config("distill")
    config.train.distill.guidance = "inputs"
    again = jax.eval_shape(functools.partial(new_state, config), params)
    assert "teacher/guidance_embedding/linear_1/kernel" in again.frozen
    config.train.also = ("face_locator",)
    with pytest.raises(ValueError, match=r"train\.also"):
        stage_of(config)


def test_networks_without_speed_layers_need_no_speeds():
    config = training_config("distill")
    assert stage_of(config).speed
    config.model.speed_layers = False
    assert not stage_of(config).speed and stage_of(config).sound


@pytest.mark.parametrize("field, value", [
    ("target", "progressive"), ("guidance", "none"), ("steps", 0), ("steps", 1001), ("audio_scale", (3.0, 2.0)),
    ("reference_scale", (-1.0, 2.0)),
])  # fmt: skip
def test_wrong_settings_name_the_field(field, value):
    config = training_config("distill")
    check(config.train.distill, 1000)
    config.train.distill[field] = value
    with pytest.raises(ValueError, match=rf"train\.distill\.{field}"):
        make_loss(build(smallest_config("distill")), config)


@functools.cache
def teacher_weights():
    config = smallest_config("speed")
    return config, flatten_dict(random_params(build(config)), sep="/")


@pytest.mark.slow
def test_student_and_teacher_start_from_any_weights(tmp_path):
    teacher_config, weights = teacher_weights()
    save_weights_as_run(tmp_path / "teacher", teacher_config, weights)
    config = smallest_config("distill")
    with pytest.raises(ValueError, match="init_from"):
        initial_weights.initial_params(config, build(config))
    for fields in (dict(init_from="teacher"), dict(teacher="teacher")):
        config.train.init_from = str(tmp_path / fields["init_from"]) if "init_from" in fields else ""
        config.train.distill.teacher = str(tmp_path / fields["teacher"]) if "teacher" in fields else ""
        params = initial_weights.initial_params(config, build(config))
        flat = flatten_dict(params, sep="/")
        for path, a in weights.items():
            np.testing.assert_array_equal(flat[path], a)
            if path.startswith("backbone/"):
                np.testing.assert_array_equal(flat[f"teacher/{path.removeprefix('backbone/')}"], a)
        assert not np.asarray(flat["backbone/guidance_embedding/linear_2/kernel"]).any()
    config.train.distill.guidance = "inputs"
    with pytest.raises(ValueError, match=r"train\.distill\.guidance"):
        initial_weights.initial_params(config, build(config))


@pytest.mark.slow
def test_a_student_goes_on_with_the_teacher_s_weights_and_other_encoders_are_refused(tmp_path):
    teacher_config, weights = teacher_weights()
    save_weights_as_run(tmp_path / "teacher", teacher_config, weights)
    config = smallest_config("distill")
    config.train.distill.teacher = str(tmp_path / "teacher")
    emo = build(config)
    student = flatten_dict(initial_weights.initial_params(config, emo), sep="/")
    student = {p: np.asarray(a) for p, a in student.items() if not p.startswith("teacher/")}
    kernel = "backbone/conv_in/kernel"
    save_weights_as_run(tmp_path / "student", config, student | {kernel: student[kernel] + 1})
    config.train.init_from = str(tmp_path / "student")
    flat = flatten_dict(initial_weights.initial_params(config, emo), sep="/")
    np.testing.assert_allclose(flat[kernel], weights[kernel] + 1, rtol=1e-6)
    np.testing.assert_array_equal(flat["teacher/conv_in/kernel"], weights[kernel])
    other = "audio_projector/proj1/kernel"
    save_weights_as_run(tmp_path / "other", config, student | {other: student[other] + 1})
    config.train.init_from = str(tmp_path / "other")
    with pytest.raises(ValueError, match="audio_projector"):
        initial_weights.initial_params(config, emo)
    config.train.init_from, config.train.distill.teacher = str(tmp_path / "student"), ""
    with pytest.raises(ValueError, match=r"train\.distill\.guidance"):  # its teacher would be a student
        initial_weights.initial_params(config, emo)


@pytest.mark.slow
def test_checkpoints_hold_the_teacher_and_exports_do_not(tmp_path):
    config, weights = smallest_config("distill"), teacher_weights()[1]
    emo = build(config)
    params = random_params(emo)
    state = new_state(config, params)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state, iter(grain.MapDataset.range(4).to_iter_dataset()), config)
    checkpoints.close()
    found_config, flat = load_run(tmp_path)
    assert set(flat) == set(flatten_dict(params, sep="/")) and found_config.model.guidance_inputs
    assert set(weights) < set(flat)
    again = Checkpoints(tmp_path, keep=1)
    restored = again.restore_newest(jax.eval_shape(lambda: state), iter(grain.MapDataset.range(4).to_iter_dataset()))
    again.close()
    for path in ("teacher/conv_in/kernel", "backbone/conv_in/kernel"):
        kept = {**restored.trained, **restored.frozen}[path]
        np.testing.assert_array_equal(kept, {**state.trained, **state.frozen}[path])


def test_no_condition_is_dropped():
    """With all conditions dropped at random, the denoising loss would see other conditions; this one does not."""
    config = distill_config(target="guidance")
    config.train.update(drop_reference=0.9, drop_audio=0.9, drop_both=0.9)
    assert loss_of(config, with_guidance(), fixed_batch(config, 16)) < 1e-10
