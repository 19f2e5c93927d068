"""The arithmetic of forward and backward passes: which there are, and what a device computes in by itself."""

from __future__ import annotations

from typing import Literal

import torch

Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16; others would emulate them slowly."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def autocast(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> torch.autocast:
    """The context of a training's forward passes. auto: bf16 where the device computes in it."""
    on = precision == "bf16" or (precision == "auto" and computes_in_bf16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=on)
