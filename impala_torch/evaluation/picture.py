"""Pictures of a game as people see them: enlarged, with score and value in a margin if wanted."""

import cv2
import numpy as np

_WIDTH = 480  # that small pictures are enlarged to, about, in pixels
_MARGIN = 40  # height
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def enlarge(picture: np.ndarray) -> np.ndarray:
    """A whole number of times as large, with sharp pixels, if small.

    Args:
      picture: [H, W, 3] uint8.

    Returns:
      [h, w, 3] uint8 with h and w even, as H.264 wants it: an odd edge gets a black line.
    """
    height, width = picture.shape[:2]
    times = max(1, _WIDTH // width)
    height, width = times * height, times * width
    large = picture
    if times > 1:
        large = cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST)
    if height % 2 or width % 2:
        large = np.pad(large, ((0, height % 2), (0, width % 2), (0, 0)))
    return large


def with_margin(picture: np.ndarray, score: float, value: float) -> np.ndarray:
    """Adds a black margin of 40 pixels under a picture, with the score and the agent's value."""
    height, width = picture.shape[:2]
    framed = np.zeros((height + _MARGIN, width, 3), np.uint8)
    framed[:height] = picture
    size = min(0.7, width / 600)
    for text, x in ((f"score {score:g}", 0.03), (f"value {value:.2f}", 0.53)):
        place = (int(width * x), height + int(0.68 * _MARGIN))
        cv2.putText(framed, text, place, _FONT, size, (255, 255, 255), 1, cv2.LINE_AA)
    return framed


def compose(picture: np.ndarray, score: float, value: float, margin: bool) -> np.ndarray:
    """``enlarge``, and ``with_margin`` if wanted; [h, w, 3] uint8, h and w even."""
    large = enlarge(picture)
    return with_margin(large, score, value) if margin else large
