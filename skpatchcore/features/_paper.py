"""PaperSettings: the one place where the extractor settings of the PatchCore paper are written."""

from __future__ import annotations

from typing import Any, Self


class PaperSettings:
    """Mixin of the extractor with the classmethod `paper`."""

    @classmethod
    def paper(cls, backbone: Any = "wide_resnet50_2", **params: Any) -> Self:
        """Return an extractor with the settings of the experiments in the PatchCore paper.

        The shorter side of an image is resized to 256 pixels, and the network sees only the central 224 × 224 pixels.
        **The area outside this crop is not inspected.** A patch feature has 1024 channels. The weights of a torchvision
        model are ``"IMAGENET1K_V1"``. All other parameters have their default values.

        Parameters
        ----------
        backbone : str or callable, default="wide_resnet50_2"
            Network that computes the features, as for the class. All networks except those of torchvision
            have the weights ``"DEFAULT"``. A network of timm needs `weights` in `params`.
        **params : dict
            Parameters of the class. They replace the settings of the paper.

        Returns
        -------
        TorchFeatureExtractor
            The extractor.

        References
        ----------
        Roth et al., CVPR 2022, section 4.1 (sizes), and the authors' implementation (weights and channels).

        Examples
        --------
        >>> from skpatchcore import TorchFeatureExtractor
        >>> extractor = TorchFeatureExtractor.paper(device="cpu")
        >>> (extractor.backbone, extractor.weights, extractor.n_channels)
        ('wide_resnet50_2', 'IMAGENET1K_V1', 1024)
        >>> (extractor.image_size, extractor.crop_size)
        (256, 224)
        """
        is_torchvision = isinstance(backbone, str) and not backbone.startswith(("efficientnet_lite", "timm/"))
        settings = {
            "weights": "IMAGENET1K_V1" if is_torchvision else "DEFAULT",
            "image_size": 256,
            "crop_size": 224,
            "n_channels": 1024,
        }
        return cls(backbone, **{**settings, **params})  # type: ignore[call-arg]
