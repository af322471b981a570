"""Which arithmetic a device is good at."""

import pathlib

import torch


def resolve(precision: str, device: torch.device | str) -> torch.dtype:
    """The torso's dtype for --precision on a device.

    ``auto`` takes bfloat16 where the processor (AMX, AVX512-BF16) or the GPU has instructions
    for it; emulated, it would be slower than float32.
    """
    if precision == "auto":
        fast = _gpu_has_bfloat16() if torch.device(device).type == "cuda" else _cpu_has_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]


def _gpu_has_bfloat16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_has_bfloat16() -> bool:
    try:
        info = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = next((line for line in info.splitlines() if line.startswith("flags")), "")
    return bool({"amx_bf16", "avx512_bf16"} & set(flags.split()))
