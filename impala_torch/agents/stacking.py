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
        self._stacks = torch.zeros((num_envs, *shape, stack), dtype=dtype)

    @property
    def frames(self) -> torch.Tensor:
        """The K frames of the stacks, oldest first: [K, E, *shape], a view."""
        return self._stacks.movedim(-1, 0)

    def push(self, frame: torch.Tensor, done: torch.Tensor) -> torch.Tensor:
        """Adds ``frame`` [E, *shape]; ``done`` [E].

        Returns:
          The stacks [E, K, *shape]: a view, which the next call overwrites.
        """
        if done.any():
            self._stacks[done] = 0
        _append(self._stacks, frame)
        return self._stacks.movedim(-1, 1)

    def peek(self, frame: torch.Tensor) -> torch.Tensor:
        """The stacks as they would be with ``frame`` in the same episodes."""
        stacks = self._stacks.clone()
        _append(stacks, frame)
        return stacks.movedim(-1, 1)


def _append(stacks: torch.Tensor, frame: torch.Tensor) -> None:
    """Drops the oldest frame of ``stacks`` [E, *shape, K] and puts ``frame`` last."""
    if stacks.dtype == torch.uint8 and stacks.shape[-1] == 4:
        # Four bytes are a word: three passes over words take a quarter of the time of moving bytes.
        words = stacks.numpy().view("<u4")[..., 0]
        newest = frame.numpy().astype("<u4")
        newest <<= 24
        words >>= 8
        words |= newest
    else:
        stacks[..., :-1] = stacks[..., 1:].clone()
        stacks[..., -1] = frame
