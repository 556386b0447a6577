"""`match_masks`: find the masks of images by their paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from skpatchcore._utils.warning import warn_user
from skpatchcore.datasets.listing import list_images


def match_masks(images: Sequence[str], folder: Path, truth: Path) -> list[str]:
    """Return the path of the mask of each image of one kind of defect, by matching the paths of images and masks.

    Parameters
    ----------
    images : sequence of str
        Paths of images in `folder` or its subfolders.
    folder : path
        Folder of the images, e.g., ``test/scratch``.
    truth : path
        Folder of the masks, e.g., ``ground_truth/scratch``, with the same subfolders as `folder`.

    Returns
    -------
    list of str
        Path of the mask of each image: ``<stem>_mask.<ending>`` or ``<stem>.<ending>``, compared case-insensitively.

    Raises
    ------
    FileNotFoundError
        If an image has no mask.
    ValueError
        If several masks match one image, if one mask matches several images, or if an image has a folder with several
        mask files.

    Warns
    -----
    UserWarning
        If a mask in `truth` matches no image.
    """
    candidates = _masks_by_place(truth)
    found: dict[str, str] = {}
    for image in images:
        path = Path(image)
        place = tuple(part.casefold() for part in path.relative_to(folder).parent.parts)
        stem = path.stem.casefold()
        masks = [*candidates.get((*place, f"{stem}_mask"), ()), *candidates.get((*place, stem), ())]
        exact = [mask for mask in masks if Path(mask).name == path.name]
        if len(masks) > 1 and len(exact) == 1 and all(Path(mask).stem.casefold() == stem for mask in masks):
            masks = exact  # the images a.png and a.bmp have masks with the same file names
        if not masks and (truth / path.relative_to(folder).with_suffix("")).is_dir():
            raise ValueError(
                f"the masks of {image!r} are several files in a folder, as in MVTec LOCO AD, which is not supported. "
                f"Merge the masks into one file {path.stem}_mask.png."
            )
        if not masks:
            expected = truth / path.relative_to(folder).parent / f"{path.stem}_mask.png"
            raise FileNotFoundError(f"no mask for {image!r}: {str(expected)!r} is missing.")
        if len(masks) > 1:
            raise ValueError(f"several masks for {image!r}: {', '.join(map(repr, masks))}. Keep only one of them.")
        if masks[0] in found:
            raise ValueError(
                f"the mask {masks[0]!r} matches both {found[masks[0]]!r} and {image!r}. Give each image its own mask."
            )
        found[masks[0]] = image
    n_unused = sum(map(len, candidates.values())) - len(found)
    if n_unused:
        first = next(mask for masks in candidates.values() for mask in masks if mask not in found)
        warn_user(f"{n_unused} masks in {str(truth)!r} belong to no image; the first is {first!r}.")
    return list(found)


def _masks_by_place(truth: Path) -> Mapping[tuple[str, ...], list[str]]:
    """Return the mask files in a folder; the keys are the parts of their paths in lower case, without the ending."""
    places: dict[tuple[str, ...], list[str]] = {}
    for mask in list_images(truth, warn_of_masks=False) if truth.is_dir() else ():
        inner = Path(mask).relative_to(truth)
        key = (*(part.casefold() for part in inner.parent.parts), inner.stem.casefold())
        places.setdefault(key, []).append(mask)
    return places
