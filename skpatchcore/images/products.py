"""with_products: images together with the name of the product that each image shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from skpatchcore._utils.missing import is_missing
from skpatchcore.images.containers import ImagesWithRegions, item_of, listed, n_images_of


class ImagesOfProducts(Sequence[Any]):
    """Sequence of images with the name of the product that each image shows.

    Parameters
    ----------
    images : sequence of images or array
        The images, or their patch features.
    products : array of shape (n_images,), object
        Name of the product of each image; None if it is unknown.
    """

    def __init__(self, images: Any, products: np.ndarray):
        self.images, self.products = images, products

    def __len__(self) -> int:
        return len(self.products)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ImagesOfProducts(item_of(self.images, index), self.products[index])
        return item_of(self.images, index)

    def taken(self, indices: Any) -> ImagesOfProducts:
        """Return the images at `indices`, without reading them."""
        from skpatchcore._utils.sklearn import safe_indexing

        indices = np.arange(len(self))[np.asarray(indices)]
        return ImagesOfProducts(safe_indexing(self.images, indices), self.products[indices])


def with_products(X: Any, products: Any) -> Any:
    """Return `X` with the name of the product of each image; `X` itself if `products` is None.

    Parameters
    ----------
    X : collection of images
        The images.
    products : str, sequence of shape (n_images,), or None
        Name of the product of each image. A text is the product of all images. In a sequence, None and NaN stand for
        an unknown product.

    Raises
    ------
    ValueError
        If `X` and `products` differ in length, or if one of them has no length.
    """
    if products is None:
        return X
    X = listed(X)
    if not hasattr(X, "__len__"):
        raise ValueError("products: pass the images as a list, with one product per image.")
    n_images = n_images_of(X)
    if isinstance(products, str):
        return ImagesOfProducts(X, np.full(n_images, products, object))
    names = product_names(products)
    if len(names) != n_images:
        raise ValueError(f"products has {len(names)} names for {n_images} images: pass one product per image.")
    return ImagesOfProducts(X, names)


def product_names(products: Any) -> np.ndarray:
    """Return names of products as an array of texts, with None for missing ones.

    Raises
    ------
    ValueError
        If `products` is not a sequence of names.
    """
    if isinstance(products, str) or not hasattr(products, "__len__"):
        raise ValueError(f"products={products!r}: expected a sequence with one product per image.")
    names = np.empty(len(products), object)
    for i, name in enumerate(listed(iter(products))):
        names[i] = None if is_missing(name) else str(name)
    return names


def divided(X: Any) -> tuple[Any, np.ndarray | None]:
    """Return the images of :func:`with_products`, with their regions if any, and the products; None without products.

    Parameters
    ----------
    X : collection of images
        With or without products, and with or without a region for each image.
    """
    if isinstance(X, ImagesWithRegions) and isinstance(X.images, ImagesOfProducts):
        return X.with_images(X.images.images), X.images.products
    if isinstance(X, ImagesOfProducts):
        return X.images, X.products
    return X, None
