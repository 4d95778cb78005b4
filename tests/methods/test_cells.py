import pytest
import torch

import crossdistill as cd
from crossdistill.backbones.pooling import pooled
from crossdistill.methods.cells import Cells


@pytest.fixture
def make():
    student, teacher = cd.create_backbone("test_vit", 5, 32, patch_size=4), cd.create_backbone("test_resnet", 5, 64)

    def made(stages=(2, 4), side=4, samples=3):
        return Cells(student.spec, teacher.spec, stages, side, samples).double()

    return made


def maps(seed, sizes=((8, 8, 32), (8, 8, 32), (8, 8, 32), (8, 8, 32)), batch=3):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, c, h, w, generator=generator, dtype=torch.float64) for h, w, c in sizes)


def shapes(module, student, teacher):
    student = tuple(one[:, :1].expand(-1, module.maps[0].in_features, -1, -1) for one in student)
    wide = {stage: m.out_features for stage, m in zip(module.stages, module.maps, strict=True)}
    teacher = tuple(one[:, :1].expand(-1, wide.get(n, 1), -1, -1) for n, one in enumerate(teacher, 1))
    return student, teacher


def test_all_cells_of_the_smaller_grid_are_rows_in_one_order(make):
    cells = make(stages=(2,), side=16, samples=0)
    with torch.no_grad():
        cells.maps[0].weight.zero_()
        cells.maps[0].weight[0, 0] = 1
    student, teacher = shapes(cells, maps(0), maps(1, sizes=((4, 2, 1),) * 4))
    ((ours, theirs),) = cells(student, teacher)
    grid = torch.nn.functional.adaptive_avg_pool2d(student[1], (4, 2))
    for image in range(3):
        for row in range(4):
            for column in range(2):
                place = image * 8 + row * 2 + column
                assert ours[place, 0] == grid[image, 0, row, column]
                assert torch.equal(theirs[place], teacher[1][image, :, row, column])


def test_every_cell_has_its_turn_and_a_step_repeats_none(make):
    cells = make(stages=(2,), side=4, samples=3)
    number = torch.arange(16.0, dtype=torch.float64).view(1, 1, 4, 4).expand(3, -1, -1, -1)
    student, teacher = shapes(cells, (number,) * 4, (number,) * 4)
    seen = []
    for _ in range(16):
        ((_, theirs),) = cells(student, teacher)
        taken = theirs[:3, 0].tolist()
        assert len(set(taken)) == 3
        # The same cells of every image.
        assert theirs[:, 0].tolist() == taken * 3
        seen += taken
    assert {seen.count(cell) for cell in range(16)} == {3}
    state = cells.state_dict()
    again = make(stages=(2,), side=4, samples=3)
    again.load_state_dict(state)
    assert torch.equal(again(student, teacher)[0][1], cells(student, teacher)[0][1])
    cells.eval()
    assert torch.equal(cells(student, teacher)[0][1], cells(student, teacher)[0][1])


def test_a_map_that_was_stored_pooled_gives_the_same_rows(make):
    for side in (3, 4, 8):
        live, stored = make(side=side), make(side=side)
        stored.load_state_dict(live.state_dict())
        student, teacher = shapes(live, maps(0, sizes=((7, 7, 1),) * 4), maps(1, sizes=((14, 14, 1),) * 4))
        kept = tuple(pooled(one, side) for one in teacher)
        for mine, theirs in zip(live(student, teacher), stored(student, kept), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_pooling_keeps_small_maps_and_means(make):
    image = maps(0, sizes=((8, 4, 2),))[0]
    assert pooled(image, None) is image
    assert pooled(image, 8) is image
    assert pooled(image, 4).shape[-2:] == (4, 4)
    assert torch.allclose(pooled(image, 1).flatten(1), image.mean(dim=(2, 3)))


def test_evaluation_takes_the_same_cells_whatever_was_trained(make):
    cells = make(stages=(2,), side=4, samples=3)
    student, teacher = shapes(cells, maps(0), maps(1))
    before = cells.eval()(student, teacher)[0][1]
    cells.train()(student, teacher)
    assert torch.equal(cells.eval()(student, teacher)[0][1], before)
