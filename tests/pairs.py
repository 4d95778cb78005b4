"""One tiny model of each family, and every method with the options that change what it does."""

import crossdistill as cd

FAMILIES = {
    "cnn": ("test_resnet", {}),
    "hierarchical_vit": (
        "swin_tiny_patch4_window7_224",
        {"patch_size": 2, "embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 4},
    ),
    "plain_vit": ("test_vit", {"patch_size": 8}),
    "mlp": ("timm.models.mlp_mixer:MlpMixer", {"patch_size": 8, "embed_dim": 24, "num_blocks": 4}),
    "hybrid": ("mobilevitv2_050", {}),
}
# A CNN whose fourth stage is the map after its convolutional head.
HEADED = {"headed_cnn": ("test_efficientnet", {})}

METHODS = {
    "none": ("none", {}),
    "kd": ("kd", {"temperature": 4.0}),
    "dkd": ("dkd", {"temperature": 4.0}),
    "dist": ("dist", {"standardise": True}),
    "fitnet": ("fitnet", {}),
    "fitnet-3-to-2": ("fitnet", {"stage": 3, "teacher_stage": 2}),
    "cc": ("cc", {}),
    "rkd": ("rkd", {}),
    "crd": ("crd", {"images": 20, "negatives": 16}),
    "ofa": ("ofa", {"eps": 1.2}),
    "rsd": ("rsd", {}),
    "rsd-logits": ("rsd", {"on": "logits"}),
    "rsd-kappa0": ("rsd", {"kappa": 0.0}),
    "rsd-linear": ("rsd", {"decoupler": "linear"}),
    "rsd-logits-none": ("rsd", {"on": "logits", "decoupler": "none"}),
    "rsd-stages": ("rsd", {"on": "stages"}),
    "rsd-exits": ("rsd", {"on": "stages", "own_logits": False}),
    "rsd-spatial": ("rsd", {"spatial": 2}),
    "rsd-dense": ("rsd", {"spatial": 4, "spatial_stages": [2, 4], "spatial_samples": 3}),
    "hcd": ("hcd", {}),
    "hcd-published": ("hcd", {"target_gradient": "published"}),
    "hcd-sublogits": ("hcd", {"orthogonality_on": "sublogits"}),
    "hcd-parts": ("hcd", {"stages": [3, 4], "parts": 2}),
    "fbt": ("fbt", {}),
    "auto": ("auto", {}),
    "rsd+kd": ("rsd+kd", {"kd": {"temperature": 4.0}}),
    "ofa+fitnet+crd": ("ofa+fitnet+crd", {"crd": {"images": 20}}),
}


def build(family, classes=5, **kwargs):
    name, args = (FAMILIES | HEADED)[family]
    return cd.create_backbone(name, classes, 32, **args, **kwargs)
