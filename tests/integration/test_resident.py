"""images.resident changes where images are cropped, and nothing that is learnt."""

import pytest
from harness import Command, assert_complete, weights, write_recipe
from PIL import Image


@pytest.mark.parametrize("world", [1, 2])
def test_a_resident_set_trains_to_the_same_weights(tmp_path, world):
    found = []
    for resident in ("false", "true"):
        recipe = write_recipe(tmp_path, images={"crop": "pad", "pad": 1, "hflip": 0.5, "subset": "30%"})
        arguments = [f"recipe={recipe}", f"run.dir={tmp_path / resident}", f"images.resident={resident}"]
        command = Command([*arguments, "images.epochs_of=full"], tmp_path, world=world)
        assert command.wait() == 0, command.err
        assert_complete(tmp_path / resident)
        found.append(weights(tmp_path / resident))
    assert found[0] == found[1]


def test_images_of_several_sizes_are_refused_before_the_warm_up(tmp_path):
    for row, side in enumerate((8, 8, 12)):
        folder = tmp_path / "images" / f"class{row % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, 8)).save(folder / f"{row}.png")
    arguments = [f"recipe={write_recipe(tmp_path)}", f"run.dir={tmp_path / 'run'}", "images.resident=true"]
    arguments += [f"images.train={tmp_path / 'images'}", "images.val=", "images.crop=rrc", "train.lr_warmup=0"]
    command = Command(arguments, tmp_path)
    assert command.wait() == 2 and not (tmp_path / "run").exists()
    assert "all images must be of one size, but one is 12x8 and the first 8x8" in command.err


def test_what_needs_the_cpu_is_refused_with_it(tmp_path):
    arguments = [f"recipe={write_recipe(tmp_path)}", f"run.dir={tmp_path / 'run'}", "images.resident=true"]
    command = Command([*arguments, "images.auto_augment=rand-m9"], tmp_path)
    assert command.wait() == 2 and "leave images.resident off" in command.err and not (tmp_path / "run").exists()
