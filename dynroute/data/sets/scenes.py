"""Procedural scenes: a data set that is made on the fly, to try everything without downloading anything.

Shapes lie on a ground. Their radii span a factor of 16, and every image has a difficulty between 0 (one large shape on
flat ground) and 1 (dozens of tiny, noisy, faint ones among textures and stray lines), so that there is something for
routing to learn: easy images need few paths, and large and small shapes need different scales.

A sample is the same bits on every machine: only generators' integers and uniforms, and +, -, *, / and comparisons on
separate arrays, are used; none of the functions whose last bit depends on the math library.
"""

from __future__ import annotations

import numpy as np

CLASS_NAMES = ["ground", "disc", "square", "triangle", "ring", "stripes", "checkers"]
# RGB of each shape. Colour is a hint on easy images; it drifts with difficulty, and then only the shape tells.
_COLOURS = ((200, 70, 60), (70, 120, 200), (90, 180, 80), (220, 180, 60), (170, 90, 180), (80, 180, 190))
# Radii in units of a 160-pixel image: from 4 (hardest) to 64 (easiest).
_SMALLEST, _LARGEST, _UNIT = 4.0, 64.0, 160.0


class ScenesDataset:
    """Procedural scenes, sample `index` a pure function of (seed, index).

    Args:
        length: number of samples.
        size: height and width of an image; at least 32.
        seed: different seeds give unrelated samples, such as for training and validation.

    Raises:
        ValueError: a size below 32 or a length below 1.
    """

    def __init__(self, length: int = 4096, size: int = 160, seed: int = 0) -> None:
        if size < 32:
            raise ValueError(f"size must be at least 32, got {size}")
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        self._length, self.size, self.seed = length, size, seed
        grid = np.arange(size, dtype=np.float32)
        self._ys, self._xs = np.meshgrid(grid, grid, indexing="ij")

    @property
    def class_names(self) -> list[str]:
        """One name for each class, in label order."""
        return list(CLASS_NAMES)

    def __len__(self) -> int:
        return self._length

    def name(self, index: int) -> str:
        """`scene_<index>`."""
        return f"scene_{index:05d}"

    def difficulty(self, index: int) -> float:
        """How hard sample `index` is, in [0, 1)."""
        return float(self._rng(index).random())

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample `index`: image uint8 [size, size, 3] in RGB, labels uint8 [size, size]."""
        if not 0 <= index < self._length:
            raise IndexError(f"sample {index} of {self._length}")
        rng = self._rng(index)
        difficulty = float(rng.random())
        image = self._ground(rng, difficulty)
        mask = np.zeros((self.size, self.size), dtype=np.uint8)
        count = 1 + int(difficulty * difficulty * 40)
        radii = sorted((self._radius(rng, difficulty) for _ in range(count)), reverse=True)
        # Large ones first, so that none is hidden behind a larger one.
        for radius in radii:
            self._draw(image, mask, rng, difficulty, radius)
        # The sum of two uniforms is close enough to a normal and, unlike one, the same everywhere.
        noise = rng.integers(0, 256, (2, *image.shape), dtype=np.uint8).astype(np.float32)
        image += (noise[0] + noise[1] - np.float32(255.0)) * np.float32(0.03 + 0.17 * difficulty)
        return np.clip(image, 0.0, 255.0).astype(np.uint8), mask

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, index))

    def _radius(self, rng: np.random.Generator, difficulty: float) -> float:
        easy, draw = 1.0 - difficulty, float(rng.random())
        low = _SMALLEST + 36.0 * easy * easy
        high = 10.0 + (_LARGEST - 10.0) * easy
        return (low + (high - low) * draw * draw) * self.size / _UNIT

    def _ground(self, rng: np.random.Generator, difficulty: float) -> np.ndarray:
        """float32 [size, size, 3]: a grey, blotched and crossed by lines as difficulty grows."""
        grey = 90.0 + 80.0 * float(rng.random())
        tint = (rng.random(3) * 30.0 - 15.0).astype(np.float32)
        blotches = (rng.random((12, 12)) - 0.5).astype(np.float32) * np.float32(120.0 * difficulty)
        shade = _enlarge(blotches, self.size) + np.float32(grey)
        for _ in range(int(difficulty * 12)):
            cosine, sine = _direction(rng)
            offset = float(rng.random()) * self.size
            distance = self._xs * np.float32(cosine) + self._ys * np.float32(sine) - np.float32(offset)
            width, change = 0.6 + 0.8 * float(rng.random()), 120.0 * float(rng.random()) - 60.0
            shade[np.abs(distance) < np.float32(width)] += np.float32(change)
        return shade[..., None] + tint

    def _draw(
        self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, difficulty: float, radius: float
    ) -> None:
        """Draw one shape of a random class into `image` [H, W, 3] and `mask` [H, W], in its bounding box."""
        label = int(rng.integers(1, len(CLASS_NAMES)))
        centre_y, centre_x = (float(draw) * self.size for draw in rng.random(2))
        cosine, sine = _direction(rng)
        drift = (rng.random(3) * 2.0 - 1.0) * (20.0 + 70.0 * difficulty)
        rows = slice(max(0, int(centre_y - radius)), min(self.size, int(centre_y + radius) + 2))
        columns = slice(max(0, int(centre_x - radius)), min(self.size, int(centre_x + radius) + 2))
        # Coordinates turned and in units of the radius.
        y = (self._ys[rows, columns] - np.float32(centre_y)) * np.float32(1.0 / radius)
        x = (self._xs[rows, columns] - np.float32(centre_x)) * np.float32(1.0 / radius)
        u = x * np.float32(cosine) + y * np.float32(sine)
        v = y * np.float32(cosine) - x * np.float32(sine)
        inside, dark = _shape(label, u, v)
        colour = np.asarray(_COLOURS[label - 1], dtype=np.float32) + drift.astype(np.float32)
        paint = np.where(dark[..., None], colour * np.float32(0.4), colour) if dark is not None else colour[None, None]
        opacity = np.float32(1.0 - 0.35 * difficulty)
        window = image[rows, columns]
        blended = window + (paint - window) * opacity
        image[rows, columns] = np.where(inside[..., None], blended, window)
        mask[rows, columns][inside] = label


def _direction(rng: np.random.Generator) -> tuple[float, float]:
    """Cosine and sine of a random angle, from the half-angle's tangent: no trigonometric function, so exact."""
    t = float(rng.random()) * 2.0 - 1.0
    sign = 1.0 if float(rng.random()) < 0.5 else -1.0
    return sign * (1.0 - t * t) / (1.0 + t * t), sign * 2.0 * t / (1.0 + t * t)


def _shape(label: int, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Where shape `label` of radius 1 covers the points (u, v), and where its second colour shows (None: nowhere)."""
    squared = u * u + v * v
    box = np.maximum(np.abs(u), np.abs(v)) < np.float32(0.7)
    if label == 1:
        return squared < np.float32(0.81), None
    if label == 2:
        return box, None
    if label == 3:
        return (v > np.float32(-0.5)) & (v + np.abs(u) * np.float32(1.7320508) < np.float32(1.0)), None
    if label == 4:
        return (squared < np.float32(0.9)) & (squared > np.float32(0.3)), None
    # Textured ones come round and square alike: only the texture tells them from the plain ones.
    stripe = np.floor(u * np.float32(2.5) + np.float32(64.0)).astype(np.int32)
    if label == 5:
        return squared < np.float32(0.81), stripe % 2 == 0
    check = np.floor(v * np.float32(2.5) + np.float32(64.0)).astype(np.int32)
    return box, (stripe + check) % 2 == 0


def _enlarge(coarse: np.ndarray, size: int) -> np.ndarray:
    """Bilinear enlargement of [n, n] to [size, size]."""
    cells = coarse.shape[0] - 1
    position = np.arange(size, dtype=np.float32) * np.float32(cells / size)
    low = position.astype(np.int64)
    weight = position - low.astype(np.float32)
    rows = coarse[low] * (np.float32(1.0) - weight)[:, None] + coarse[low + 1] * weight[:, None]
    return rows[:, low] * (np.float32(1.0) - weight) + rows[:, low + 1] * weight
