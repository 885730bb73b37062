"""Throughput, waiting, memory and utilisation of a stage, without synchronising the device."""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# Dense bf16 tensor-core peaks in FLOP/s, from the vendors' data sheets; the longest matching name counts.
PEAK_FLOPS = {
    "A100": 312e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "L4": 121e12,
    "L40S": 362e12,
    "V100": 125e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H200": 989e12,
    "B200": 2250e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Peak bf16 FLOP/s of a CUDA device, or None where no honest figure is known (CPU, other cards)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    matches = [k for k in PEAK_FLOPS if k in name]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


def forward_flops(forward: Callable[[], object]) -> float:
    """FLOPs of the matrix products in `forward`; element-wise work is not counted.

    Attention runs as two plain products while it is counted: not every version of torch counts its fused kernel.
    Under a causal mask both products count in full, as is usual.
    """
    counter = FlopCounterMode(display=False)
    account: Any = _NoModules()
    counter.mod_tracker = account
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        forward()
    return float(counter.get_total_flops())


class _NoModules:
    """In place of the counter's account of modules, which raises on a view of a parameter under `no_grad`."""

    parents = ("Global",)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def count_flops(forward: Callable[[], object]) -> float:
    """FLOPs of a training step through `forward`: those of the forward pass, times three.

    The backward pass of a matrix product costs two products of the same size.
    """
    return 3.0 * forward_flops(forward)


class Meter:
    """Times the steps of a stage between log lines.

    A GPU works behind the host, so its steps are timed by events on its own clock, and the length of a window ends
    after the synchronisation that every log line needs anyway.

    Args:
        samples_per_step: global batch.
        tokens_per_sample: trunk tokens a sample.
        flops_per_sample: training FLOPs a sample.
        device: where the steps run.
        world: processes.
    """

    def __init__(
        self, samples_per_step: int, tokens_per_sample: int, flops_per_sample: float, device: torch.device, world: int
    ):
        self.samples = samples_per_step
        self.tokens = samples_per_step * tokens_per_sample
        self.flops = samples_per_step * flops_per_sample
        self.device = device
        peak = peak_flops(device)
        self.peak = peak * world if peak else None
        self._seconds_before = 0.0
        self._paused: float | None = None
        self._start_window()

    def _start_window(self) -> None:
        self._steps: list[tuple[Any, Any]] = []  # stamps before and behind each step
        self._waited = 0.0
        self._window_start = time.perf_counter()
        self._mark = self._stamp()

    def _stamp(self) -> "float | torch.cuda.Event":
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    @property
    def seconds(self) -> float:
        """Training time so far, without pauses."""
        now = time.perf_counter() if self._paused is None else self._paused
        return self._seconds_before + now - self._window_start

    def pause(self) -> None:
        """Leave out what happens until `resume` (evaluation, checkpoints); waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._paused = time.perf_counter()

    def resume(self) -> None:
        """Time what follows again."""
        assert self._paused is not None
        self._window_start += time.perf_counter() - self._paused
        self._paused = None
        self._mark = self._stamp()

    def step(self, waited: float) -> None:
        """Note that a step is over; `waited` seconds of it were spent waiting for data."""
        stamp = self._stamp()
        self._steps.append((self._mark, stamp))
        self._waited += waited
        self._mark = stamp

    def read(self) -> dict[str, float | None]:
        """Figures of the window, which ends here; call it just after the device was synchronised."""
        seconds = time.perf_counter() - self._window_start
        rate = len(self._steps) / seconds
        on_gpu = self.device.type == "cuda"
        p50, p95 = np.percentile([a.elapsed_time(b) if on_gpu else 1e3 * (b - a) for a, b in self._steps], [50, 95])
        out = {
            "samples_per_s": self.samples * rate,
            "tokens_per_s": self.tokens * rate,
            "step_ms_p50": float(p50),
            "step_ms_p95": float(p95),
            "data_wait_pct": 100 * self._waited / seconds,
            "memory_gib": self._memory(),
            "tflops": self.flops * rate / 1e12,
            "mfu_pct": 100 * self.flops * rate / self.peak if self.peak else None,
        }
        self._seconds_before += seconds
        self._start_window()
        return out

    def _memory(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
