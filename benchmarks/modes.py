"""The precisions that a benchmark runs at, and what of fairchem's each of ours is compared with.

| ``--precision`` | fairchem's networks | ours |
|---|---|---|
| fp32 | float32, without TF32, which fairchem never turns on | ``precision: fp32`` |
| tf32 | float32 with torch's TF32 flag | ``precision: tf32`` |
| amp | fairchem's ``--amp``: autocast to fp16 and a scaled loss | ``precision: fp32`` under the same ``--amp`` |
| bf16 | fairchem's ``--amp``, its fastest; on a CPU, where it has none, float32 | ``precision: bf16`` |

``tf32`` and ``amp`` exist on CUDA alone.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

PRECISIONS = ("fp32", "tf32", "amp", "bf16")
ON_CPU = ("fp32", "bf16")


class Mode(NamedTuple):
    """How a network runs.

    Attributes:
        label: for a reader.
        key: ``precision`` of our backbone.
        tf32: whether torch's TF32 flag is set, which our ``precision: tf32`` does itself, for products on edges.
        amp: whether under fp16 autocast, and with a scaled loss.
    """

    label: str
    key: str = "fp32"
    tf32: bool = False
    amp: bool = False

    @contextlib.contextmanager
    def products(self) -> Iterator[None]:
        """Forward and backward passes belong in here."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def autocast(self) -> torch.autocast:
        """Forward pass and loss belong in here."""
        return torch.autocast("cuda", dtype=torch.float16, enabled=self.amp)

    def scaler(self) -> torch.amp.GradScaler:
        """fairchem's, which without ``amp`` does nothing."""
        return torch.amp.GradScaler("cuda", enabled=self.amp)


class Pairing(NamedTuple):
    """What is compared.

    Attributes:
        fairchem: how fairchem's networks run, and ours with ``fast: false``.
        ours: how ours runs.
        tolerance: of outputs, relative to the largest. In float32 a greater difference is another formula; at lower
            precision untrained forces, which nearly cancel, are mostly rounding, and only NaN is refused.
    """

    fairchem: Mode
    ours: Mode
    tolerance: float = math.inf

    def mode(self, name: str) -> Mode:
        """That of a contestant."""
        return self.ours if name == "ours" else self.fairchem

    @property
    def label(self) -> str:
        """What a ratio must name."""
        return f"{self.ours.label} / fairchem {self.fairchem.label}"


def pairing(precision: str, device: str) -> Pairing:
    """What ``--precision`` means on a device.

    Raises:
        ValueError: for one that the device does not have.
    """
    if device == "cpu" and precision not in ON_CPU:
        raise ValueError(f"--precision {precision} needs --device cuda; a CPU has {', '.join(ON_CPU)}")
    plain, amp = Mode("fp32"), Mode("AMP (fp16)", amp=True)
    return {
        "fp32": Pairing(plain, plain, tolerance=1e-4),
        "tf32": Pairing(Mode("TF32 flag", tf32=True), Mode("tf32", key="tf32")),
        "amp": Pairing(amp, amp),
        "bf16": Pairing(plain if device == "cpu" else amp, Mode("bf16", key="bf16")),
    }[precision]
