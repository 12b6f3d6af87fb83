"""What a run keeps of its training images says how many each class has, and how bright their background is."""

import numpy as np
import pytest
import torch

from hemafast.config import TrainConfig
from hemafast.engine.checkpoint import read_card
from hemafast.engine.home import home_of, white_point
from hemafast.engine.machine import choose_machine


def test_the_white_point_is_that_of_the_background_and_not_of_the_cell():
    pixels = torch.full((2, 3, 32, 32), 200, dtype=torch.uint8)
    pixels[1] = 100
    pixels[:, :, 8:24, 8:24] = 10  # a quarter
    assert white_point(pixels).tolist() == [150, 150, 150]


def test_a_run_keeps_what_its_data_set_says_of_its_training_images(trained, dataset):
    home = read_card(trained / "best_model.safetensors").home
    assert home.counts == tuple(dataset.counts("train"))
    squares = np.stack([dataset.samples("train").packed[row] for row in range(sum(home.counts))])
    seen = torch.from_numpy(squares[:, 4:60, 4:60]).permute(0, 3, 1, 2)  # the window of 56 of 64 px is not scaled
    assert home.white_point == pytest.approx(white_point(seen).tolist(), abs=0.01)


def test_no_white_point_is_measured_for_a_network_that_standardizes_images(dataset):
    machine = choose_machine(device="cpu", amp="off", compiled="off")
    assert home_of(dataset, machine, TrainConfig.image_size, standardize=True).white_point is None
