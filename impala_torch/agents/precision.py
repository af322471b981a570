"""Which arithmetic a device is good at: told by its instructions, or tried."""

import pathlib
import time
from collections.abc import Callable

import torch

from impala_torch.agents.base import Agent, image_shape
from impala_torch.structures import AgentInput, EnvironmentSpec

_TRIAL_SECS = 0.25
_WARM_ROUNDS = 1  # the first pass of each makes its kernels
# How much faster bfloat16 must be: what rounds less is better where both are as fast.
_WORTH = 0.9


def resolve(precision: str, device: torch.device | str) -> torch.dtype:
    """The torso's dtype for --precision on a device, the same each time: for evaluation.

    ``auto`` takes bfloat16 where the processor (AMX, AVX512-BF16) or the GPU has instructions
    for it; emulated, it would be slower than float32.
    """
    if precision == "auto":
        fast = _gpu_has_bfloat16() if torch.device(device).type == "cuda" else _cpu_has_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]


def choose(
    precision: str,
    device: torch.device | str,
    make: Callable[[torch.dtype], Agent],
    spec: EnvironmentSpec,
    size: int,
    learning: bool,
) -> torch.dtype:
    """The torso's dtype for --precision: ``auto`` takes what a trial found faster.

    Instructions mislead: there are processors on which bfloat16 acts twice as fast as float32 and
    learns slower.

    Args:
      precision: of the flags.
      device: where the agent runs.
      make: an agent of a dtype, on the CPU.
      spec: of the level.
      size: observations that it sees at once.
      learning: with the backward pass, or acting.
    """
    # Without instructions for it, bfloat16 is emulated; vectors are float32 anyway.
    if precision != "auto" or resolve("auto", device) == torch.float32:
        return resolve(precision, device)
    if len(spec.observation.shape) == 1:
        return torch.float32
    with torch.random.fork_rng(devices=[]):  # no random numbers of the run
        trials = {
            dtype: _trial(make(dtype), torch.device(device), spec, size, learning)
            for dtype in (torch.float32, torch.bfloat16)
        }
    best = dict.fromkeys(trials, float("inf"))
    rounds, begun = 0, time.perf_counter()
    while rounds <= _WARM_ROUNDS or time.perf_counter() - begun < _TRIAL_SECS:
        for dtype, trial in trials.items():
            started = time.perf_counter()
            trial()
            if rounds >= _WARM_ROUNDS:
                best[dtype] = min(best[dtype], time.perf_counter() - started)
        rounds += 1
    faster = best[torch.bfloat16] < _WORTH * best[torch.float32]
    return torch.bfloat16 if faster else torch.float32


def name_of(dtype: torch.dtype) -> str:
    """As --precision has it."""
    return str(dtype).removeprefix("torch.")


def _trial(
    agent: Agent, device: torch.device, spec: EnvironmentSpec, size: int, learning: bool
) -> Callable[[], None]:
    """A pass of an agent over ``size`` random observations."""
    agent = agent.to(device) if learning else agent.to(device).for_acting()
    # As stacks are made, with the frames last in memory.
    channels, height, width = image_shape(spec)
    pixels = torch.randint(0, 256, (1, size, height, width, channels), dtype=torch.uint8)
    inputs = AgentInput(
        pixels.movedim(-1, 2).to(device),
        reward=torch.zeros(1, size, device=device),
        done=torch.zeros(1, size, dtype=torch.bool, device=device),
        last_action=torch.zeros(1, size, dtype=torch.int64, device=device),
    )
    state = agent.initial_state(size).to(device)

    def run() -> None:
        if learning:
            outputs, _ = agent(inputs, state)
            (outputs.policy_logits.sum() + outputs.baseline.sum()).backward()
        else:
            with torch.inference_mode():
                agent(inputs, state)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def _gpu_has_bfloat16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_has_bfloat16() -> bool:
    try:
        info = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = next((line for line in info.splitlines() if line.startswith("flags")), "")
    return bool({"amx_bf16", "avx512_bf16"} & set(flags.split()))
