"""Bookkeeping of returns and lengths: the learner's episodes, and the whole games."""

import numpy as np

from impala_torch.structures import EpisodeResult


class EpisodeTracker:
    """Sums rewards and frames of E environments; returns are unclipped."""

    def __init__(self, num_envs: int, frames_per_step: int) -> None:
        self._frames_per_step = frames_per_step
        # Rows: the learner's episode, the whole game.
        self._returns = np.zeros((2, num_envs), np.float64)
        self._frames = np.zeros((2, num_envs), np.int64)

    def reset(self) -> None:
        self._returns[:] = 0
        self._frames[:] = 0

    def step(
        self,
        reward: np.ndarray,
        done: np.ndarray,
        game_over: np.ndarray,
        frames: np.ndarray | None = None,
    ) -> list[EpisodeResult]:
        """Counts a step.

        Args:
          reward: [E] float32.
          done: [E] bool, the learner's episode ended with this step.
          game_over: [E] bool, and so did the game; a subset of ``done``.
          frames: [E] int, of this step, where it may have ended before all its repeats; None where
            it has all of them.

        Returns:
          Results of the episodes that ended, by environment.
        """
        self._returns += reward
        self._frames += self._frames_per_step if frames is None else frames
        if not done.any():
            return []
        results = []
        for env in np.flatnonzero(done):
            (episode_return, raw_return) = self._returns[:, env].tolist()
            episode_frames, raw_frames = self._frames[:, env].tolist()
            over = bool(game_over[env])
            results.append(
                EpisodeResult(
                    episode_return,
                    episode_frames,
                    raw_return if over else None,
                    raw_frames if over else None,
                )
            )
        self._returns[0, done] = self._frames[0, done] = 0
        self._returns[1, game_over] = self._frames[1, game_over] = 0
        return results
