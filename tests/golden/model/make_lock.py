"""Writes `lock.json`: which parameters of a vision tower open_clip's `lock` leaves trainable, by the number of unlocked groups.

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 open_clip_torch==3.3.0 timm==1.0.31
    venv/bin/python tests/golden/model/make_lock.py

`clip` is open_clip's own ViT; `eva02` and `siglip` are timm's towers of the sizes of `eva02/` and `siglip-timm/`, locked as
open_clip locks a timm tower.
"""

import json

import open_clip
import timm
from common import HERE
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

assert open_clip.__version__ == "3.3.0", open_clip.__version__
assert timm.__version__ == "1.0.31", timm.__version__


class Trunk(TimmModel):
    """A TimmModel around a trunk of any size; it is built by name otherwise."""

    def __init__(self, trunk):
        nn.Module.__init__(self)
        self.trunk = trunk


def clip():
    return VisionTransformer(image_size=24, patch_size=8, width=32, layers=2, heads=2, mlp_ratio=2.0, output_dim=20)


def eva02():
    return Trunk(Eva(
        img_size=24, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=20, qkv_fused=False, mlp_ratio=8 / 3,
        swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True, use_rot_pos_emb=True, ref_feat_shape=(16, 16),
        global_pool="token",
    ))


def siglip():
    return Trunk(TimmViT(
        img_size=24, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=1.75, class_token=False, global_pool="map",
        num_classes=0,
    ))


def unlocked(build, groups):
    tower = build()
    tower.lock(unlocked_groups=groups)
    return sorted("visual." + name for name, parameter in tower.named_parameters() if parameter.requires_grad)


# Two blocks: four groups.
lists = {build.__name__: {groups: unlocked(build, groups) for groups in range(5)} for build in (clip, eva02, siglip)}
(HERE / "lock.json").write_text(json.dumps(lists, indent=1) + "\n")
