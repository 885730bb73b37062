"""The arithmetic of the meters, on a clock that the test turns."""

import pytest
import torch

from vitwarm.training import meters
from vitwarm.training.meters import Meter


class Clock:
    now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(meters, "time", clock)
    return clock


def meter(world=1):
    return Meter(samples_per_step=8, tokens_per_sample=5, flops_per_sample=1e9, device=torch.device("cpu"), world=world)


def steps(clock, meter, *lengths, waited=0.0):
    for length in lengths:
        clock.now += length
        meter.step(waited)


def test_rates_percentiles_and_waiting(clock):
    m = meter()
    steps(clock, m, *[0.1] * 19, 2.1, waited=0.05)
    read = m.read()
    assert read["samples_per_s"] == pytest.approx(20 * 8 / 4.0)
    assert read["tokens_per_s"] == pytest.approx(20 * 40 / 4.0)
    assert read["step_ms_p50"] == pytest.approx(100)
    assert read["step_ms_p95"] == pytest.approx(200)  # NumPy's percentile: 0.05 of the way from 100 to 2100
    assert read["data_wait_pct"] == pytest.approx(100 * 1.0 / 4.0)
    assert read["tflops"] == pytest.approx(20 * 8e9 / 4.0 / 1e12)
    assert read["mfu_pct"] is None  # no honest peak of a CPU
    assert read["memory_gib"] > 0


def test_pauses_count_nowhere(clock):
    m = meter()
    steps(clock, m, 1.0)
    m.pause()
    clock.now += 50
    assert m.seconds == pytest.approx(1.0)
    m.resume()
    steps(clock, m, 1.0, 1.0)
    read = m.read()
    assert read["samples_per_s"] == pytest.approx(8)
    assert read["step_ms_p95"] == pytest.approx(1000)
    assert m.seconds == pytest.approx(3.0)


def test_a_window_ends_with_its_reading(clock):
    m = meter()
    steps(clock, m, 1.0, 1.0)
    m.read()
    steps(clock, m, 0.5)
    assert m.read()["samples_per_s"] == pytest.approx(16)
    assert m.seconds == pytest.approx(2.5)


def test_the_wait_for_the_device_before_the_reading_belongs_to_the_window(clock):
    """On a GPU the host is ahead: steps are queued in no time, and the reading of the sums waits for them."""
    m = meter()
    steps(clock, m, 0.01, 0.01)
    clock.now += 1.98
    assert m.read()["samples_per_s"] == pytest.approx(8)


@pytest.mark.parametrize(
    ("card", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce GTX 1080", None),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA L40", None),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
    ],
)
def test_the_peak_is_the_cards_own_or_none(monkeypatch, card, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: card)
    assert meters.PEAK_FLOPS.get(meters.known_card(torch.device("cuda"))) == peak


def test_utilisation_is_of_all_the_processes_cards(clock, monkeypatch):
    monkeypatch.setattr(meters, "known_card", lambda _: "slow")
    monkeypatch.setitem(meters.PEAK_FLOPS, "slow", 1e10)
    m = meter(world=4)
    steps(clock, m, 1.0)
    assert m.read()["mfu_pct"] == pytest.approx(100 * 8e9 / 4e10)


def test_the_pace_is_that_of_the_first_steps_without_the_odd_one_and_without_pauses(clock):
    m = meter()
    steps(clock, m, 60.0, *[0.5] * 10)  # the first compiles
    m.read()
    m.pause()
    clock.now += 500
    m.resume()
    steps(clock, m, *[0.7] * 9, *[9.0] * 30)
    assert m.pace() == pytest.approx((0.5 + 0.7) / 2)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "1 s"),
        (99.4, "99 s"),
        (99.6, "2 min"),
        (3569, "59 min"),
        (3571, "1 h 0 min"),
        (7800, "2 h 10 min"),
        (86400 * 3 + 3600 * 4, "3 days 4 h"),
        (86400, "1 day 0 h"),
    ],
)
def test_a_duration_in_words(seconds, said):
    assert meters.duration(seconds) == said
