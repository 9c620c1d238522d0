"""The streaming resampler: length, delay, block splits, frequency response."""

from fractions import Fraction

import numpy as np
import pytest

from emo_jax.media.resampling import resample_blocks

RATES = [8000, 11025, 22050, 24000, 32000, 44099, 44100, 48000, 96000, 192000]


def resample(signal, rate_in, rate_out, blocks=1):
    pieces = ((rate_in, block) for block in np.array_split(np.asarray(signal, np.float32), blocks))
    return np.concatenate(list(resample_blocks(pieces, rate_out)))


def tone(rate, hertz, seconds=1.0, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def level_db(signal):
    """Level of the middle half relative to a tone of amplitude 0.5."""
    middle = signal[len(signal) // 4 : 3 * len(signal) // 4]
    return 20 * np.log10(np.sqrt(2 * np.mean(middle**2)) / 0.5 + 1e-12)


@pytest.mark.parametrize("rate_in", RATES)
@pytest.mark.parametrize("rate_out", [16000, 44100])
def test_length_is_exact(rate_in, rate_out):
    for samples in (1, 2, 3, 7, 1234, 30011):
        output = resample(np.ones(samples), rate_in, rate_out)
        assert len(output) == round(Fraction(samples * rate_out, rate_in)) and output.dtype == np.float32


@pytest.mark.parametrize(("rate_in", "rate_out"), [(44100, 16000), (24000, 16000), (16000, 44100), (44099, 16000)])
def test_output_does_not_depend_on_the_blocks(rate_in, rate_out):
    signal = np.random.default_rng(0).standard_normal(30011) * 0.3
    expected = resample(signal, rate_in, rate_out)
    for blocks in (2, 17, 3000):
        np.testing.assert_array_equal(resample(signal, rate_in, rate_out, blocks), expected)


@pytest.mark.parametrize(("rate_in", "rate_out"), [(44100, 16000), (48000, 16000), (16000, 44100), (8000, 16000)])
def test_passband_has_no_delay_and_is_flat(rate_in, rate_out):
    nyquist = min(rate_in, rate_out) / 2
    for share in (0.1, 0.5, 0.9):
        output = resample(tone(rate_in, share * nyquist), rate_in, rate_out)
        middle = slice(len(output) // 4, 3 * len(output) // 4)
        expected = tone(rate_out, share * nyquist)[: len(output)]
        assert np.abs(output[middle] - expected[middle]).max() < 6e-4  # -58 dB; a delay of 0.01 samples fails


@pytest.mark.parametrize("rate_in", [24000, 44100, 48000])
def test_stopband_is_below_minus_120_db(rate_in):
    for share in (1.0, 1.05, 1.25, 1.45):
        assert level_db(resample(tone(rate_in, share * 8000), rate_in, 16000)) < -120


def test_upsampling_adds_no_images():
    output = resample(tone(16000, 7000), 16000, 48000)
    spectrum = np.abs(np.fft.rfft(output * np.blackman(len(output))))
    frequency = np.fft.rfftfreq(len(output), 1 / 48000)
    assert spectrum[frequency > 8200].max() < 1e-6 * spectrum.max()


def test_square_wave_overshoots_instead_of_clipping():
    square = np.sign(tone(48000, 100.5)) * 0.99
    assert 1.0 < np.abs(resample(square, 48000, 16000)).max() < 1.2


def test_equal_rates_copy_the_input():
    signal = np.random.default_rng(0).standard_normal(999).astype(np.float32)
    np.testing.assert_array_equal(resample(signal, 16000, 16000, 3), signal)


def test_rate_change_within_the_stream():
    blocks = [(44100, np.ones(4410, np.float32)), (48000, np.ones(4801, np.float32)), (16000, np.ones(5, np.float32))]
    assert sum(map(len, resample_blocks(blocks, 16000))) == 1600 + 1600 + 5
