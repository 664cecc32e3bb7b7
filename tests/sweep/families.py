"""The families of the sweep: the smallest classification network of each, chosen by its number of parameters.

`tests/sweep/test_sweep.py` checks that no module of timm, family of torchvision or classifier of transformers is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Module of timm.models -> its smallest network that has a classifier.
TIMM: Final = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "mobileone_s1",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "convnext_zepto_rms",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "mobilenetv2_035",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "hieradet_small",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "mambaout_femto",
    "maxxvit": "maxvit_pico_rw_256",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_300m",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_so150m2_patch16_reg1_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "nf_regnet_b0",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "resnet10t",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "vit_tiny_patch16_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "vit_srelpos_small_patch16_224",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}

# Module of torchvision.models -> its smallest network.
TORCHVISION: Final = {
    "alexnet": "alexnet",
    "convnext": "convnext_tiny",
    "densenet": "densenet121",
    "efficientnet": "efficientnet_b0",
    "googlenet": "googlenet",
    "inception": "inception_v3",
    "maxvit": "maxvit_t",
    "mnasnet": "mnasnet0_5",
    "mobilenetv2": "mobilenet_v2",
    "mobilenetv3": "mobilenet_v3_small",
    "regnet": "regnet_y_400mf",
    "resnet": "resnet18",
    "shufflenetv2": "shufflenet_v2_x0_5",
    "squeezenet": "squeezenet1_1",
    "swin_transformer": "swin_t",
    "vgg": "vgg11",
    "vision_transformer": "vit_b_32",
}

# Towers of billions of parameters in their released sizes: two blocks of them are the same network.
SHALLOW: Final = {"deepseek_vit", "gemma4_vit", "naflexvit", "qwen3_vit"}

_VIT = "hidden_size = 64, num_hidden_layers = 2, num_attention_heads = 4, intermediate_size = 128"
_DINO = "hidden_size = 64, num_hidden_layers = 2, num_attention_heads = 4, image_size = 224, patch_size = 16"
# Family of transformers -> further arguments of its configuration; "" where the library's default is small.
TRANSFORMERS: Final = {
    "beit": _VIT,
    "bit": "",
    "clip": "",
    "convnext": "",
    "convnextv2": "",
    "cvt": "",
    "data2vec-vision": _VIT,
    "deit": _VIT,
    "dinov2": _DINO,
    "dinov2_with_registers": _DINO,
    "donut-swin": "",
    "efficientnet": "width_coefficient = 1.0, depth_coefficient = 1.0, image_size = 224, hidden_dim = 1280",
    "focalnet": "",
    "hgnet_v2": "",
    "hiera": "",
    "ijepa": _VIT,
    "levit": "",
    "metaclip_2": "",
    "mobilenet_v1": "",
    "mobilenet_v2": "",
    "mobilevit": "",
    "mobilevitv2": "",
    "poolformer": "",
    "pp_lcnet": "",
    "pvt": "",
    "pvt_v2": "",
    "regnet": "",
    "resnet": "",
    "segformer": "",
    "siglip": "",
    "siglip2": "",
    "swiftformer": "",
    "swin": "",
    "swinv2": "",
    "textnet": "",
    "timm_wrapper": 'architecture = "resnet18"',
    "vit": _VIT,
    "vit_msn": _VIT,
}

# Classifiers of transformers that do not take a photograph, or need what is not installed.
NOT_PHOTOGRAPHS: Final = {
    "dinat": "needs the library natten",
    "imagegpt": "takes a sequence of colour clusters",
    "perceiver": "takes a sequence; its classifier for images is one of three of the same configuration",
    "shieldgemma2": "takes text and an image",
}

SOURCES: Final = ("timm", "torchvision", "transformers")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row of the sweep.

    Attributes:
        source: the library.
        family: a module of timm.models or torchvision.models, a family of transformers.
        network: the name in a card's architecture.
        args: further arguments of its builder, as TOML.
    """

    source: str
    family: str
    network: str
    args: str = "num_classes = 10"

    @property
    def key(self) -> str:
        """Unique among all families."""
        return f"{self.source}:{self.family}"

    @property
    def title(self) -> str:
        """The network, with its family where that has another name."""
        return self.network if self.network == self.family else f"{self.network} ({self.family})"


def _families() -> list[Family]:
    timm = [
        Family(source="timm", family=family, network=network, args=f"num_classes = 10{', depth = 2' * (family in SHALLOW)}")
        for family, network in TIMM.items()
    ]
    torchvision = [Family(source="torchvision", family=family, network=network) for family, network in TORCHVISION.items()]
    transformers = [
        Family(source="transformers", family=family, network=family, args=", ".join(filter(None, ["num_labels = 10", args])))
        for family, args in TRANSFORMERS.items()
    ]
    return [*timm, *torchvision, *transformers]


FAMILIES: Final = {family.key: family for family in _families()}
