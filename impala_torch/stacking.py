"""Stacks of K frames, made where the network runs from single frames and episode starts.

A stack never reaches across an episode's start: frames of the episode before are zeros. The
actor's ``FrameStacker`` (a step at a time) and the learner's ``stack_frames`` (an unroll at a
time) give the same stacks. Both lay memory out with the frames last, which is the order that
convolutions want (``channels_last``): one pass over the pixels instead of two.
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
    frames = [observation[stack - 1 :]]
    started = torch.zeros_like(done)  # whether an episode started after the frame at hand
    for age in range(1, stack):
        started = started.clone()
        started[age - 1 :] |= done[: rows - age + 1]
        frame = observation[stack - 1 - age : stack - 1 - age + rows]
        frames.append(frame * ~started.view(*started.shape, *(1,) * (frame.dim() - 2)))
    return torch.stack(frames[::-1], dim=-1).movedim(-1, 2)


class FrameStacker:
    """The last K frames of E environments, as a step comes in."""

    def __init__(self, num_envs: int, shape: tuple[int, ...], dtype: torch.dtype, stack: int):
        self._frames = [torch.zeros((num_envs, *shape), dtype=dtype) for _ in range(stack)]

    @property
    def frames(self) -> list[torch.Tensor]:
        """The K frames of the stacks, oldest first, each [E, *shape]."""
        return self._frames

    def push(self, frame: torch.Tensor, done: torch.Tensor) -> torch.Tensor:
        """Adds ``frame`` [E, *shape]; ``done`` [E]. Returns the stacks [E, K, *shape]."""
        before = self._frames[1:]
        if done.any():
            keep = ~done.view(-1, *(1,) * (frame.dim() - 1))
            before = [frame * keep for frame in before]
        self._frames = [*before, frame.clone()]
        return self._stacked(self._frames)

    def peek(self, frame: torch.Tensor) -> torch.Tensor:
        """The stacks as they would be with ``frame`` in the same episodes."""
        return self._stacked([*self._frames[1:], frame])

    @staticmethod
    def _stacked(frames: list[torch.Tensor]) -> torch.Tensor:
        if len(frames) == 1:
            return frames[0].unsqueeze(1)
        return torch.stack(frames, dim=-1).movedim(-1, 1)
