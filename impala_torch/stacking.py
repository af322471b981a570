"""Stacks of K frames, made where the network runs from single frames and episode starts.

A stack never reaches across an episode's start: frames of the episode before are zeros. The
actor's ``FrameStacker`` (a step at a time) and the learner's ``stack_frames`` (an unroll at a
time) give the same stacks.
"""

import torch


def stack_frames(observation: torch.Tensor, done: torch.Tensor, stack: int) -> torch.Tensor:
    """The stacks of an unroll.

    Args:
      observation: [T + K, B, *shape], K - 1 frames before row 0 (zeros where they belong to an
        episode before row 0's), then rows 0..T.
      done: [T + 1, B] bool, true where a row starts an episode.
      stack: K.

    Returns:
      [T + 1, B, K, *shape], oldest frame first; ``observation`` itself if K is 1.
    """
    if stack == 1:
        return observation
    rows = done.shape[0]
    stacked = torch.stack([observation[k : k + rows] for k in range(stack)], dim=2)
    # valid[t, b, k]: no episode started after the frame k, so none of rows t-(K-1-k)+1 .. t.
    valid = torch.ones((rows, done.shape[1], stack), dtype=torch.bool, device=done.device)
    for age in range(1, stack):
        started = done.clone()
        for back in range(1, age):
            started[back:] |= done[: rows - back]
        valid[:, :, stack - 1 - age] = ~started
    return stacked.mul_(valid.view(*valid.shape, *(1,) * (observation.dim() - 2)))


class FrameStacker:
    """The last K frames of E environments (``stacks`` [E, K, *shape]), as a step comes in."""

    def __init__(self, num_envs: int, shape: tuple[int, ...], dtype: torch.dtype, stack: int):
        self.stacks = torch.zeros((num_envs, stack, *shape), dtype=dtype)

    def push(self, frame: torch.Tensor, done: torch.Tensor) -> torch.Tensor:
        """Adds ``frame`` [E, *shape]; ``done`` [E]. Returns the stacks [E, K, *shape], no copy."""
        self.stacks = self.peek(frame)
        if done.any():
            self.stacks[done, :-1] = 0
        return self.stacks

    def peek(self, frame: torch.Tensor) -> torch.Tensor:
        """The stacks as they would be with ``frame`` in the same episodes."""
        return torch.cat([self.stacks[:, 1:], frame.unsqueeze(1)], dim=1)
