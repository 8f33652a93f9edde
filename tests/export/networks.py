"""Export networks of public packages, and save what the packages themselves give: `networks.py FOLDER [NAME ...]`.

The packages lie in a folder of their own (tests/networks.txt), which PYTHONPATH names. Weights are random.
FOLDER gets for each network NAME.onnx and NAME.npz with `pictures`, uint8 RGB [2, SIDE, SIDE, 3], and `maps`, the
probabilities that its package computes from them, float32 [2, SIDE, SIDE].
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polypstream.export.prototypes import MOST

SIDE = 64
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]


@dataclass
class Package:
    """A network of a package.

    Attributes:
        make: the network.
        prepare: pictures, uint8 [2, SIDE, SIDE, 3] -> what its package feeds to it.
        answer: its output -> probabilities, as its package computes them.
        export: arguments of torch.onnx.export.
    """

    make: Callable[[], nn.Module]
    prepare: Callable[[np.ndarray], Tensor]
    answer: Callable[[Any], Tensor]
    export: dict[str, Any]


def as_imagenet(pictures: np.ndarray) -> Tensor:
    """As torchvision's transforms `to_tensor` and `normalize`."""
    return (as_unit(pictures) - IMAGENET[0]) / IMAGENET[1]


def as_unit(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255


def smp(name: str, **options: Any) -> nn.Module:
    import segmentation_models_pytorch

    return getattr(segmentation_models_pytorch, name)(encoder_weights=None, classes=1, **options)


def as_smp(pictures: np.ndarray) -> Tensor:
    """As its `get_preprocessing_fn` does, which would ask a server for the mean and the standard deviation."""
    from segmentation_models_pytorch.encoders._preprocessing import preprocess_input

    mean, std = (values.flatten().tolist() for values in IMAGENET)
    values = preprocess_input(pictures, mean=mean, std=std, input_space="RGB", input_range=[0, 1])
    return torch.from_numpy(values).permute(0, 3, 1, 2).float()


def deeplab() -> nn.Module:
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    return deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2, aux_loss=True)


def monai_unet() -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(spatial_dims=2, in_channels=3, out_channels=1, channels=(8, 16, 32), strides=(2, 2), num_res_units=2)


def segformer() -> nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=32, num_labels=2)
    return SegformerForSemanticSegmentation(config)


def as_segformer(pictures: np.ndarray) -> Tensor:
    from transformers import SegformerImageProcessor

    return SegformerImageProcessor(size=(SIDE, SIDE))(list(pictures), return_tensors="pt").pixel_values


def answer_of_segformer(output: Any) -> Tensor:
    """As its model card does: enlarge the logits, which are at a quarter of the size."""
    logits = nn.functional.interpolate(output.logits, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return logits.softmax(1)[:, 1]


def nnunet() -> nn.Module:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet(
        input_channels=3,
        num_classes=2,
        n_stages=3,
        features_per_stage=(8, 16, 32),
        conv_op=nn.Conv2d,
        kernel_sizes=3,
        strides=(1, 2, 2),
        conv_bias=True,
        n_conv_per_stage=2,
        n_conv_per_stage_decoder=2,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
    )


def as_nnunet(pictures: np.ndarray) -> Tensor:
    """As its `ZScoreNormalization` does for each channel."""
    values = pictures.astype(np.float32)
    values -= values.mean((1, 2), keepdims=True)
    return torch.from_numpy(values / values.std((1, 2), keepdims=True)).permute(0, 3, 1, 2)


class Yolo(nn.Module):
    """A network of Ultralytics with the two outputs of its ONNX files."""

    def __init__(self) -> None:
        from ultralytics.nn.tasks import SegmentationModel

        super().__init__()
        self.network = SegmentationModel("yolo11n-seg.yaml", nc=1, verbose=False)
        for branch in self.network.model[-1].cv3:  # before training, all scores are near 0
            nn.init.normal_(branch[-1].weight, std=0.005)
            nn.init.zeros_(branch[-1].bias)

    def forward(self, pictures: Tensor) -> Any:
        output = self.network(pictures)
        return output if self.training else output[0]


def answer_of_yolo(output: Any) -> Tensor:
    """The masks that its `predict` makes of all detections, each with its score; the highest one of each pixel."""
    import torchvision
    from ultralytics.utils import nms, ops

    torchvision.ops.nms = nms.TorchNMS.nms  # Ultralytics' own one, for want of torchvision's compiled one
    detections, prototypes = output
    found = nms.non_max_suppression(detections, conf_thres=0.0, iou_thres=1.0, max_det=MOST, nc=1)
    maps = []
    for each, of_picture in zip(found, prototypes, strict=True):
        masks = ops.process_mask(of_picture, each[:, 6:], each[:, :4], (SIDE, SIDE), upsample=True)
        maps.append((masks * each[:, 4, None, None]).amax(0))
    return torch.stack(maps)


def any_batch(name: str) -> dict[str, Any]:
    return {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "input_names": [name]}


PACKAGES = {
    "smp_unet": Package(
        lambda: smp("Unet", encoder_name="resnet18", decoder_channels=(32, 16, 16, 8, 8)),
        *(as_smp, lambda logits: logits.sigmoid()[:, 0]),
        {"output_names": ["logits"], "dynamo": False, "opset_version": 11},  # with a batch of one
    ),
    "smp_fpn": Package(
        lambda: smp("FPN", encoder_name="resnet18", decoder_pyramid_channels=32, decoder_segmentation_channels=32),
        *(as_smp, lambda logits: logits.sigmoid()[:, 0]),
        any_batch("image"),
    ),
    "smp_segformer": Package(
        lambda: smp("Segformer", encoder_name="mit_b0", decoder_segmentation_channels=32),
        *(as_smp, lambda logits: logits.sigmoid()[:, 0]),
        {"dynamo": False, "opset_version": 17},  # with a batch of one
    ),
    "torchvision_deeplab": Package(
        *(deeplab, as_imagenet, lambda output: output["out"].softmax(1)[:, 1]),
        {"output_names": ["out", "aux"]} | any_batch("picture"),
    ),
    "monai_unet": Package(monai_unet, as_unit, lambda logits: logits.sigmoid()[:, 0], any_batch("image")),
    "transformers_segformer": Package(
        *(segformer, as_segformer, answer_of_segformer), {"output_names": ["logits"]} | any_batch("pixel_values")
    ),
    "nnunet": Package(nnunet, as_nnunet, lambda logits: logits.softmax(1)[:, 1], any_batch("image")),
    "ultralytics_yolo": Package(
        *(Yolo, as_unit, answer_of_yolo),
        {"output_names": ["output0", "output1"], "dynamo": False, "opset_version": 17},  # with a batch of one
    ),
}


def lively(network: nn.Module, pictures: Tensor) -> nn.Module:
    """Random weights that give maps of more than one value: every normalisation has seen these pictures."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    network.train()
    with torch.no_grad():
        network(pictures)
        for layer in [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1:]:
            layer.weight *= 4
    return network.eval()


def write(name: str, folder: Path) -> None:
    """Write NAME.onnx and NAME.npz."""
    torch.manual_seed(1)
    package = PACKAGES[name]
    small = np.random.default_rng(1).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    pictures = np.kron(small, np.ones((1, SIDE // 4, SIDE // 4, 1), np.uint8))
    given = package.prepare(pictures)
    network = lively(package.make(), given)
    with torch.inference_mode():
        maps = package.answer(network(given)).numpy()
    assert maps.std() > 0.01, f"{name}: {maps.min()} to {maps.max()}"
    np.savez(folder / f"{name}.npz", pictures=pictures, maps=maps)
    example = given if "dynamic_shapes" in package.export else given[:1]
    torch.onnx.export(network, (example,), folder / f"{name}.onnx", verbose=False, **package.export)


def main() -> None:
    # PyPI's torchvision is built for CUDA, without which its compiled operators cannot be loaded. No network here uses
    # them, but their names must exist.
    operators = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        operators.define(f"{operator}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
    warnings.simplefilter("ignore")
    # Ultralytics would look for newer versions, install packages, and write its settings into the user's folder.
    os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": sys.argv[1]}
    folder = Path(sys.argv[1])
    for name in sys.argv[2:] or PACKAGES:
        write(name, folder)


if __name__ == "__main__":
    main()
