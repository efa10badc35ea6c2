"""Which arithmetic a device is made for, and why it was chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pm.errors import TrainingError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BF16_WIDTH = 256
"""A network narrower than this is slower in bf16 on a processor: casting costs more than its products save
(`benchmarks.training --width` tells)."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Arithmetic of the forward pass; the head, the loss and the weights stay in fp32 whatever it is."""

    name: str
    why: str

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.name]

    @property
    def autocast(self) -> bool:
        return self.name != "fp32"

    @property
    def scaled(self) -> bool:
        """fp16's range is short: losses are scaled up before the gradients are taken."""
        return self.name == "fp16"

    @classmethod
    def choose(cls, device: torch.device, wanted: str, width: int) -> Precision:
        """What `device` does fast with a network of this width for `auto`, else what is wanted."""
        if wanted != "auto":
            return cls(wanted, "as configured")
        if device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(device)
            return cls.for_cuda(torch.cuda.get_device_name(device), major, minor)
        if device.type == "cpu":
            return cls.for_cpu(_cpu_has_bf16(), width)
        return cls("fp32", f"nothing is known of {device.type} devices")

    @classmethod
    def for_cuda(cls, name: str, major: int, minor: int) -> Precision:
        """By compute capability: bf16 from 8.0 (A100) on, fp16 with tensor cores from 7.0 (V100, T4) on."""
        if major >= 8:
            return cls("bf16", f"{name} (capability {major}.{minor}) has bf16 tensor cores")
        if major >= 7:
            return cls("fp16", f"{name} (capability {major}.{minor}) has fp16 tensor cores and no bf16 ones")
        return cls("fp32", f"{name} (capability {major}.{minor}) has no tensor cores")

    @classmethod
    def for_cpu(cls, bf16: bool, width: int) -> Precision:
        if not bf16:
            return cls("fp32", "this processor has no bf16 units")
        units = "this processor has bf16 units (AVX512-BF16 or AMX)"
        if width < BF16_WIDTH:
            return cls("fp32", f"{units}, which pay from a train.width of {BF16_WIDTH} on")
        return cls("bf16", units)


def choose_device(wanted: str) -> torch.device:
    """`auto` takes a GPU where there is one. Raises TrainingError for a device that this machine lacks."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise TrainingError(f"train.device {wanted!r} is not on this machine; write auto or cpu") from None
    return device


def _cpu_has_bf16() -> bool:
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(check()) for check in checks if check is not None)
