"""The last batch of an epoch, whatever the number of images: trained with batch norm, every image once."""

from itertools import chain
from pathlib import Path

import pytest

from hemafast.config import PrepareConfig
from hemafast.engine import learner
from hemafast.engine.lr_find import find_rate
from hemafast.engine.step import TrainStep
from hemafast.engine.trainer import train
from hemafast.errors import HemafastError
from hemafast.preparation.build import prepare

MODELS = ("test_resnet", "test_efficientnet", "test_vit")


@pytest.fixture(scope="session")
def with_training_images(tmp_path_factory, make_archive):
    """`with_training_images(number)`: a prepared data set with so many training images, and two for validation."""
    made: dict[int, Path] = {}

    def make(number: int) -> Path:
        if number not in made:
            source = tmp_path_factory.mktemp("few")
            make_archive(source / "A", {"basophil": number, "monocyte": 2})
            rows = [f"BAS_{image:03d}.png,train" for image in range(number)] + ["MON_000.png,val", "MON_001.png,val"]
            (source / "split.csv").write_text("\n".join(["path,split", *rows]))
            fields = {"source": source, "output": source / "prepared", "split_file": (source / "split.csv",)}
            made[number] = prepare(PrepareConfig(**fields, pack_sizes=(64,))).folder
        return made[number]

    return make


@pytest.fixture
def seen(monkeypatch) -> list[list[int]]:
    """Rows of each training batch."""
    batches, original = [], TrainStep.__call__

    def spy(self, batch, *arguments, **named):
        batches.append(batch.rows.tolist())
        original(self, batch, *arguments, **named)

    monkeypatch.setattr(TrainStep, "__call__", spy)
    return batches


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("batch_size", "images"), [(4, 2), (4, 3), (4, 4), (4, 5), (2, 2), (2, 3), (2, 5), (3, 3), (3, 4)]
)
def test_an_epoch_of_any_size_trains_on_every_image_once(
    settings, with_training_images, seen, model, batch_size, images
):
    train(settings(data=with_training_images(images), model=model, batch_size=batch_size))
    assert sorted(chain(*seen)) == list(range(images))
    assert min(map(len, seen)) >= 2


def test_a_folded_batch_trains_with_growing_images_and_accumulation(settings, with_training_images, seen):
    data = with_training_images(5)
    train(settings(data=data, batch_size=2, epochs=2, image_size=64, growing_from=(32,), accumulate=2))
    assert [len(rows) for rows in seen] == [2, 3, 2, 3]


@pytest.mark.parametrize("model", MODELS)
def test_a_single_image_trains_what_has_no_batch_norm_to_train(settings, with_training_images, seen, model):
    asked = settings(data=with_training_images(1), model=model)
    if model != "test_vit":
        with pytest.raises(HemafastError, match=r"images: 1\. Batch norm needs 2 .* --freeze-norm") as caught:
            train(asked)
        assert not list(asked.output.iterdir())  # nothing was begun
        assert "more training images" in caught.value.remedy
        asked = settings(data=asked.data, model=model, freeze_norm=True)
    train(asked)
    assert seen == [[0]]


@pytest.mark.parametrize(
    ("images", "processes", "remedy"),
    [(1, 2, "Prepare more training images"), (3, 2, "at most 1"), (7, 4, "at most 3")],
)
def test_too_few_images_for_the_processes_are_refused_with_the_number_that_works(images, processes, remedy):
    with pytest.raises(HemafastError, match=f"images: {images}.* here {2 * processes}.*{remedy}"):
        learner._refuse_too_few(images, processes)
    learner._refuse_too_few(2 * processes, processes)


def test_the_search_for_a_rate_takes_what_training_takes(settings, with_training_images):
    find_rate(settings(data=with_training_images(3), batch_size=2), last=1e-3, steps=10)
    with pytest.raises(HemafastError, match="--freeze-norm"):
        find_rate(settings(data=with_training_images(1)))
    find_rate(settings(data=with_training_images(1), freeze_norm=True), last=1e-3, steps=10)
