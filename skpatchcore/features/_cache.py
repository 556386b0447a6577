"""LayerCache: keeps the layer maps of each image on disk, so that searches run the network once per image.

The key of a file is a hash of everything that determines a layer map: the content of the image, the network and its
weights, the layer, the sizes, the normalisation and the precision. Parameters that only affect how features are made
from the maps (patch size, stride, channels) are not part of the key. The device and the batch are not part of the key
either. The tiles are part of the key only if an image is cut into tiles.

An entry has one file per layer. Extractors share the files of a layer if the last of their layers is the same: the
network is identified by its weights up to the last layer. Each file is written atomically. Therefore, several processes
may share a folder. An entry with a missing or damaged file is treated as missing.

Patch features that are computed from the layer maps are kept, too (see :mod:`skpatchcore.features._grid_cache`).
"""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skpatchcore._utils.bytes import parse_bytes
from skpatchcore._utils.files import cache_folder, read_arrays, write_arrays
from skpatchcore._utils.folders import prune, touch
from skpatchcore.features._backbones import Network
from skpatchcore.features._grid_cache import GridCache, as_numbers, as_view, prune_grids
from skpatchcore.images.files import read_content
from skpatchcore.images.reading import DEFAULT_FORMAT, PixelFormat, content_of, from_tensor, load_image, path_of
from skpatchcore.images.views import View

_FORMAT = 4  # version of the content of entries
# Files of an entry, one per layer.
Entry = tuple[Path, ...]
# Fraction of the limit that may be written before the limit is enforced again.
_SLACK = 1 / 32


def hash_content(
    image: Any,
    index: int,
    content: bytes | None = None,
    max_pixels: int | None = None,
    pixel_format: PixelFormat = DEFAULT_FORMAT,
) -> str:
    """Return a hash of the content of an image: of the bytes of a file, or of the pixels of an array or PIL image.

    Parameters
    ----------
    image : path, PIL image or array
        Image in any form that :func:`~skpatchcore.images.reading.load_image` accepts.
    index : int
        Position of the image in `X`, for error messages.
    content : bytes or None, default=None
        Content of the file if it has been read already. None reads the file.
    max_pixels : int or None, default=None
        Maximum number of pixels of a PIL image. None leaves the limit to PIL.
    pixel_format : PixelFormat
        Meaning of the stored values, as for :func:`~skpatchcore.images.reading.load_image`.

    Returns
    -------
    str
        The kind of the content (``file``, ``image`` or ``array``) and a BLAKE2b hash in hexadecimal.

    Raises
    ------
    ImageError
        If the image cannot be read.
    """
    path = path_of(image)
    if content is None:
        content = content_of(image, index) if path is None else read_content(path, index)
    if content is not None:
        return "file-" + hashlib.blake2b(content, digest_size=20).hexdigest()
    is_decoded = not isinstance(image, torch.Tensor | np.ndarray)
    if isinstance(image, torch.Tensor):
        image = from_tensor(image)
    elif not isinstance(image, np.ndarray):
        image = load_image(image, index, max_pixels, pixel_format=pixel_format)
    elif isinstance(image, np.ma.MaskedArray):
        load_image(image, index)  # raises if values are masked: the hash does not cover the mask
    pixels = np.ascontiguousarray(image)
    if pixels.dtype == object:
        load_image(image, index)  # raises: the bytes of an object array are addresses
    sha = hashlib.blake2b(f"{pixels.dtype} {pixels.shape}".encode(), digest_size=20)
    sha.update(pixels.view(np.uint8).data if pixels.size else b"")
    # A PIL image has been decoded with pixel_format. An array of the same values may mean another image.
    return f"{'image' if is_decoded else 'array'}-{sha.hexdigest()}"


class LayerCache:
    """Cache on disk for the layer maps of images, for one network with one set of settings.

    Parameters
    ----------
    memory : str, path or joblib.Memory
        Folder in which the cache is kept.
    settings : dict
        All settings that determine the layer maps, apart from the image and the layer. The values must be JSON
        serialisable.
    layers : sequence of str
        Names of the layers whose maps are kept.
    dtype : {"float32", "float16"}
        Type in which the maps are stored.
    limit : int or None
        Maximum size in bytes of all entries in the folder. The least recently used entries are evicted. None sets no
        limit.
    of_features : dict or None
        Settings with which patch features are computed from the layer maps, for the cache of the patch features. None
        keeps no patch features.

    Attributes
    ----------
    grids : GridCache or None
        Cache of the patch features that are computed from the layer maps; None if they are not kept.

    Raises
    ------
    ValueError
        If `memory` is a joblib.Memory without a location.
    """

    def __init__(
        self,
        memory: Any,
        settings: dict[str, Any],
        layers: Sequence[str],
        dtype: str,
        limit: int | None,
        of_features: dict[str, Any] | None,
    ):
        folder = cache_folder(memory, "skpatchcore-layers")
        if folder is None:
            raise ValueError(
                "memory: a joblib.Memory without a location stores nothing. Give it a location, or pass memory=None."
            )
        self.folder, self.layers, self.limit, self.dtype = folder, tuple(layers), limit, np.dtype(dtype)
        text = json.dumps({**settings, "dtype": dtype, "format": _FORMAT}, sort_keys=True)
        self._settings = hashlib.blake2b(text.encode(), digest_size=20)
        self._written = 0
        self._lock = threading.Lock()
        self.grids = None if of_features is None else GridCache(folder, of_features, limit)

    def entries_of(
        self,
        image: Any,
        index: int,
        content: bytes | None = None,
        max_pixels: int | None = None,
        pixel_format: PixelFormat = DEFAULT_FORMAT,
        tile_size: Any = None,
    ) -> list[Entry]:
        """Return the image's cache entries, whose files may not exist.

        The first entry is that of the whole image. The second entry is that of an image that is cut into tiles because
        of `tile_size`.
        """
        content_key = hash_content(image, index, content, max_pixels, pixel_format)
        sides = tile_size if tile_size is None or isinstance(tile_size, str) else np.ravel(tile_size).tolist()
        return [
            tuple(self._file_of(f"{text}, layer {layer}") for layer in self.layers)
            for text in (content_key, f"{content_key}, tiles {sides}")
        ]

    def _file_of(self, text: str) -> Path:
        key = self._settings.copy()
        key.update(text.encode())
        name = key.hexdigest()
        return self.folder / name[:2] / f"{name}.npz"

    def read(self, entry: Entry) -> tuple[list[torch.Tensor], View] | None:
        """Return the layer maps and the view of a cache entry; None if a file is missing or damaged.

        Each map has the shape (height, width, n_channels) and the dtype float32.
        """
        maps, view = [], None
        for path in entry:
            found = read_arrays(path)
            try:
                maps.append(torch.from_numpy(found["map"]).float())  # type: ignore[index]
                view = as_view(found["view"])  # type: ignore[index]
            except (TypeError, KeyError, ValueError):
                return None
        self.mark_used(entry)
        return None if view is None else (maps, view)

    def mark_used(self, entry: Entry) -> None:
        """Record that the files of an entry were used now, so that entries that were not used are deleted first."""
        for path in entry if self.limit is not None else ():
            touch(path)

    def keep(self, entry: Entry, maps: Sequence[torch.Tensor], view: View) -> list[torch.Tensor]:
        """Store layer maps, each of shape (height, width, n_channels), and return them with the stored precision.

        The run that fills the cache therefore returns the same features as the runs that read the cache.
        """
        with np.errstate(over="ignore"):
            arrays = [m.cpu().numpy().astype(self.dtype) for m in maps]
        if not all(np.isfinite(array).all() for array in arrays):  # overflow in float16: store nothing
            return [m.cpu() for m in maps]
        try:
            for path, array in zip(entry, arrays, strict=True):
                write_arrays(path, map=array, view=as_numbers(view))
        except OSError as error:  # the result does not depend on the cache: a full or read-only disk is not fatal
            warnings.warn(
                f"memory: layer maps cannot be stored in {str(self.folder)!r} ({error}). The next run must compute "
                "them again. Free disk space or choose a writable folder.",
                UserWarning,
                stacklevel=2,
            )
        else:
            self._see_to_limit(sum(array.nbytes for array in arrays))
        return [torch.from_numpy(array).float() for array in arrays]

    def _see_to_limit(self, n_bytes: int) -> None:
        """Count `n_bytes` of new entries and prune the folder if it may exceed the limit.

        The folder is pruned on the first write, then whenever a fraction `_SLACK` of the limit has been written.
        """
        if self.limit is None:
            return
        with self._lock:
            first = self._written == 0
            self._written += n_bytes
            if not first and self._written < self.limit * _SLACK:
                return
            self._written = 1
        # Leave room for the entries that are written before the next pruning. Patch features are deleted first.
        limit = int(self.limit * (1 - _SLACK))
        prune_grids(self.folder, limit - prune(self.folder, limit))


def cache_for(
    extractor: Any, network: Network, mean: Any, std: Any, rounded_to: int, with_features: bool
) -> LayerCache | None:
    """Return the cache of layer maps for a network with the settings of an extractor; None if `memory` is None.

    Parameters
    ----------
    extractor : TorchFeatureExtractor
        Extractor with the settings.
    network : Network
        Network that computes the layer maps.
    mean, std : sequences of 3 floats
        Mean and standard deviation of red, green and blue with which the input is normalised.
    rounded_to : int
        As for :func:`~skpatchcore.images.resizing.resize_and_crop`.
    with_features : bool
        Whether patch features are kept, too. They must be determined by the layer maps and the parameters.

    Raises
    ------
    ValueError
        If the network cannot be identified, or `memory` is a joblib.Memory without a location.
    """
    if extractor.memory is None:
        return None
    if network.architecture is None:
        raise ValueError(
            "memory: the backbone has modules with source code that cannot be read. Without it, the cache cannot "
            "distinguish this network from other networks. Define the modules in a file, or pass memory=None."
        )
    sizes, value_range = (extractor.image_size, extractor.crop_size), extractor.value_range
    settings = {
        "network": network.architecture,
        "weights": network.digest,
        "sizes": [None if size is None else np.ravel(size).tolist() for size in sizes],
        "sides rounded to": rounded_to,
        "normalisation": [[float(v) for v in values] for values in (mean, std)],
        "computed in": extractor.dtype,
        "pixel format": [extractor.channel_order, None if value_range is None else [*map(float, value_range)]],
    }
    limit = None if extractor.cache_limit is None else parse_bytes(extractor.cache_limit)
    values = {name: getattr(extractor, name) for name in ("patch_size", "stride", "n_channels")}
    of_features = {name: None if value is None else int(value) for name, value in values.items()}
    return LayerCache(
        extractor.memory,
        settings,
        network.layers,
        extractor.cache_dtype,
        limit,
        of_features if with_features else None,
    )
