"""recognised: which of several products an image shows, from the mean patch features of whole images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

# Number of distances between embeddings that are computed at once.
_BLOCK = 1 << 22


def distances_to_nearest(embeddings: np.ndarray, known: np.ndarray, is_same: bool = False) -> np.ndarray:
    """Return the distance of each embedding from the nearest known one.

    Parameters
    ----------
    embeddings : array of shape (n_images, n_columns)
        Embeddings of images.
    known : array of shape (n_known, n_columns)
        Embeddings of the training images of a product.
    is_same : bool, default=False
        Whether both arrays are the same. The distance of an embedding from itself is then left out.

    Returns
    -------
    array of shape (n_images,), float64
        Infinite if there is no other embedding, or if an embedding is not finite.
    """
    found = np.full(len(embeddings), np.inf)
    known = known.astype(np.float64)
    step = max(1, _BLOCK // max(1, known.size))
    for start in range(0, len(embeddings), step):
        some = embeddings[start : start + step].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            distances = np.linalg.norm(some[:, None] - known[None], axis=2)
        if is_same:
            rows = np.arange(len(some))
            distances[rows, start + rows] = np.inf
        if distances.shape[1]:
            found[start : start + step] = np.where(np.isnan(distances), np.inf, distances).min(axis=1)
    return found


def radius_of(embeddings: np.ndarray) -> float:
    """Return the distance within which a new image of a product is expected to have a neighbour in the training images.

    Returns
    -------
    float
        The larger of two distances: the largest distance from a training image to its nearest neighbour, and the root
        mean square distance from the mean. The second one counts if images have near copies among the training images,
        e.g. several photographs of one part. If all embeddings are equal, a tiny number.
    """
    largest = float(distances_to_nearest(embeddings, embeddings, is_same=True).max())
    rows = embeddings.astype(np.float64)
    spread = float(np.sqrt(((rows - rows.mean(axis=0)) ** 2).sum(axis=1).mean()))
    return max(largest, spread, 1e-6 * float(np.abs(rows).max(initial=0.0)), float(np.finfo(np.float32).tiny))


def recognised(
    embeddings: np.ndarray, of_products: Sequence[np.ndarray], radii: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest product of each image, and how far the image is from it.

    Parameters
    ----------
    embeddings : array of shape (n_images, n_columns)
        Embeddings of new images.
    of_products : sequence of arrays of shape (n_known, n_columns)
        Embeddings of the training images of each product.
    radii : array of shape (n_products,)
        Result of :func:`radius_of` for each product.

    Returns
    -------
    codes : array of shape (n_images,), int
        Index of the product with the nearest training image.
    distances : array of shape (n_images,), float64
        Distance to this training image in units of the radius of its product. Images of the product have distances of
        about 1 or less.
    """
    table = np.stack([distances_to_nearest(embeddings, known) for known in of_products], axis=1)
    codes = table.argmin(axis=1)
    return codes, table[np.arange(len(table)), codes] / radii[codes]


def codes_of(names: np.ndarray, known: Sequence[str]) -> np.ndarray:
    """Return the index in `known` of each name; -1 for None.

    Raises
    ------
    ValueError
        If a name is not in `known`.
    """
    places = {name: code for code, name in enumerate(known)}
    for index, name in enumerate(names):
        if name is not None and name not in places:
            raise ValueError(f"products[{index}] is {name!r}, but the detector knows {', '.join(map(repr, known))}.")
    return np.array([-1 if name is None else places[name] for name in names], np.int64)


def by_product(codes: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each code with the positions of the images that have it."""
    for code in np.unique(codes).tolist():
        yield code, np.flatnonzero(codes == code)
