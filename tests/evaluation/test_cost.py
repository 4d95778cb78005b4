import torch

import crossdistill as cd
from crossdistill.evaluation.cost import count_macs, count_parameters, images_per_second


def test_a_linear_layer_and_a_convolution():
    backbone = cd.create_backbone("tests.evaluation.test_cost:Small", 5, 8)
    assert count_parameters(backbone) == 3 * 4 * 9 + 4 + 4 * 5 + 5
    # 8 x 8 positions of 3 x 3 x 3 products for 4 channels, and 4 x 5 products.
    assert count_macs(backbone) == 64 * 27 * 4 + 20


def test_counting_changes_nothing_and_speed_is_positive():
    backbone = cd.create_backbone("test_resnet", 5, 32).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert count_macs(backbone) > 0
    assert images_per_second(backbone, batch_size=2, repeats=1) > 0
    assert backbone.training
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


class Small(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.head = torch.nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(self.conv(x).mean(dim=(2, 3)))
