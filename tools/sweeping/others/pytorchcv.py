"""pytorchcv: of every architecture one or two networks, small ones: images, poses, faces, flow, video and speech.

Images are as small as a network takes them. Those that end in a choice of boxes or of points return their heatmaps.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

_NAMES = """
airnet50_1x64d_r2 airnext50_32x4d_r2 alexnet alexnetb alphapose_fastseresnet101b_coco bagnet9 bagnet17 bam_resnet18
bam_resnet50 bisenet_resnet18_celebamaskhq bn_vgg11 bn_vgg11b bninception cbam_resnet18 cbam_resnet50
centernet_resnet18_voc centernet_resnet50b_voc cgnet_cityscapes channelnet condensenet74_c4_g4 condensenet74_c8_g8
ctxnet_cityscapes dabnet_cityscapes danet_resnetd50b_cityscapes darknet19 darknet53 darknet_ref darknet_tiny darts
deeplabv3_resnetd50b_voc densenet100_k12_cifar10 densenet121 densenet40_k12_bc_cifar10 densenet40_k12_cifar10
diapreresnet14 diapreresnet164bn_cifar10 diapreresnet20_cifar10 diapreresnet26 diapreresnetbc14b diaresnet14
diaresnet164bn_cifar10 diaresnet20_cifar10 diaresnetbc14b dicenet_wd5 dicenet_w1 diracnet18v2 dla34 dla46c dla46xc
dla60x dpn68 dpn68b drnc26 drnd22 drnd54 edanet_cityscapes efficientnet_b0 efficientnet_b0b efficientnet_b0c
efficientnet_edge_small_b enet_cityscapes erfnet_cityscapes esnet_cityscapes espcnet_cityscapes espnetv2_wd2
fastscnn_cityscapes fastseresnet101b fbnet_cb fcn8sd_resnetd50b_voc fdmobilenet_wd2 fdmobilenet_wd4_cub fishnet99
fpenet_cityscapes fractalnet_cifar10 ghostnet hardnet39ds hardnet68 hrnet_w18_small_v1 hrnetv2_w18 ibn_densenet121
ibn_resnet50 ibn_resnext50_32x4d ibnb_resnet50 ibppose_coco icnet_resnetd50b_cityscapes igcv3_wd2 inceptionresnetv1
inceptionresnetv2 inceptionv3 inceptionv4 irevnet301 isqrtcovresnet18 isqrtcovresnet50 jasper5x3 jasperdr10x5_en
lednet_cityscapes lffd20x5s320v2_widerface lffd25x8s560v1_widerface linknet_cityscapes
lwopenpose2d_mobilenet_cmupan_coco lwopenpose3d_mobilenet_cmupan_coco menet108_8x1_g3 menet160_8x1_g8 mixnet_s mixnet_l
mnasnet_a1 mnasnet_b1 mobilenet_wd2 mobilenet_wd4_cub mobilenetb_wd2 mobilenetv2_wd2 mobilenetv2b_wd2
mobilenetv3_large_w7d20 mobilenetv3_small_w7d20 msdnet22 msdnet22_cifar10 nasnet_4a1056 nin_cifar10 ntsnet_cub
nvpattexp116bazel76 octresnet10_ad2 octresnet50b_ad2 peleenet pfpcnet pnasnet5large polynet preresnet10
preresnet164bn_cifar10 preresnet20_cifar10 preresnetbc14b prnet propainter propainter_rfc
proxylessnas_cpu proxylessnas_mobile_cub pspnet_resnetd50b_voc pyramidnet101_a360 pyramidnet110_a48_cifar10
pyramidnet164_a270_bn_cifar10 quartznet5x5_en_ls quartznet15x5_en raft_small raft_things regnetx002 regnety002
resattnet56 resdropresnet20_cifar10 resnesta18 resnestabc14 resnet10 resnet10_cub resnet164bn_cifar10 resnet20_cifar10
resneta10 resnetabc14b resnetbc14b resnetd50b resnext14_16x4d resnext20_16x4d_cifar10 revnet38 rir_cifar10
ror3_56_cifar10 scnet50 scneta50 segnet_cityscapes selecsls42 selecsls42b selecsls60 senet16 sepreresnet10
sepreresnet164bn_cifar10 sepreresnet20_cifar10 sepreresnetbc26b seresnet10 seresnet10_cub seresnet164bn_cifar10
seresnet20_cifar10 seresnetbc26b seresnext50_32x4d shakedropresnet20_cifar10 shakeshakeresnet20_2x16d_cifar10
sharesnet18 sharesnet50 shufflenet_g1_wd4 shufflenet_g3_wd4 shufflenet_g8_w1 shufflenetv2_wd2 shufflenetv2b_wd2
simplepose_mobile_mobilenet_w1_coco simplepose_mobile_mobilenetv3_small_w1_coco simplepose_mobile_resnet18_coco
simplepose_resnet18_coco simplepose_resneta50b_coco sinet_cityscapes sknet50 sparsenet121 spnasnet sqnet_cityscapes
sqnxt23_w1 sqnxt23v5_w1 squeezenet_v1_0 squeezenet_v1_1 squeezeresnet_v1_0 superpointnet tresnet_m unet_cityscapes vgg11
visemenet20 voca8flame vovnet27s wrn16_10_cifar10 wrn20_10_1bit_cifar10 wrn20_10_32bit_cifar10 wrn50_2 xception
xdensenet121_2 xdensenet40_2_k24_bc_cifar10 zfnet zfnetb
"""

_SIDES = (64, 128, 224, 256, 299, 448)  # Tried in this order, and after those the size that the network names.


def names() -> list[str]:
    return _NAMES.split()


def create(name: str) -> Any:
    import torch
    from pytorchcv.model_provider import _models

    taken = inspect.signature(_models[name]).parameters
    options: dict[str, Any] = {"pretrained": False}
    if name.endswith(("_cityscapes", "_voc", "_celebamaskhq", "_coco")) and "in_size" in taken:
        options["in_size"] = (256, 256) if name.startswith(("icnet", "ibppose")) else (128, 128)
    if name.startswith(("jasper", "quartznet")):
        options["from_audio"] = False
    if name.startswith(("centernet", "alphapose", "simplepose")):
        options["return_heatmap"] = True
    model = _models[name](**options)
    if name.startswith("condensenet"):
        # Which channels a layer reads is learnt; until then it is the first one everywhere.
        for index in model.buffers():
            if index.dtype == torch.int64 and index.dim():
                index.copy_(torch.randperm(len(index)))
    return model


def inputs(name: str, model: Any) -> Any:
    import torch

    if name.startswith("raft"):
        return torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128)
    if name.startswith(("jasper", "quartznet")):
        return torch.randn(1, 64, 64), torch.tensor([64])
    if name == "propainter":
        masks = (torch.rand(1, 3, 1, 64, 64) > 0.5).float()
        return torch.rand(1, 3, 3, 64, 64), masks, masks, torch.randn(1, 1, 4, 64, 64), 2
    if name == "propainter_rfc":
        return torch.randn(1, 3, 2, 64, 64), torch.rand(1, 3, 1, 64, 64)
    if name == "voca8flame":
        return torch.randn(2, 1, 16, 29), torch.full((2,), 3)
    if name == "nvpattexp116bazel76":
        return torch.randn(2, 8, 16, 29), torch.full((2,), 3)
    if name == "visemenet20":
        return torch.randn(34, 8, 195), torch.full((34, 76), 3)
    if name == "pfpcnet":
        return torch.rand(1, 1, 320, 240)
    size = tuple(model.in_size) if hasattr(model, "in_size") else (224, 224)
    sizes = [*((n, n) for n in _SIDES if n <= min(size)), size]
    channels = 1 if name == "superpointnet" else getattr(model, "in_channels", 3)
    images = (torch.randn(1, channels, *s) for s in sizes)
    return next((x for x in images if _runs(model, x)), torch.randn(1, channels, *size))


def _runs(model: Any, image: Any) -> bool:
    """Whether a model takes an image; a copy runs, so that the model has not run yet when it is traced."""
    import torch

    try:
        with torch.no_grad():
            copy.deepcopy(model).eval()(image)
    except Exception:
        return False
    return True
