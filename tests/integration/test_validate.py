"""The command that measures an export: against plain timm, over any number of processes, and what it refuses."""

import io
import json
import shutil
import tarfile

import pytest
import timm
import torch
from harness import Command
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

CUT = {107: lambda data: data[:80]}


def validate(tmp_path, *arguments, world=1):
    command = Command(arguments, tmp_path, world=world, name="validate")
    return command.wait(), command


def figures(command):
    return dict(line.split(maxsplit=1) for line in command.out.splitlines())


def plain_timm(export, tar):
    """top-1, top-5 and loss by timm's own loading and preprocessing, image after image."""
    model = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    top1 = top5 = loss = count = 0
    with tarfile.open(tar) as archive, torch.inference_mode():
        for member in archive.getmembers()[::2]:
            try:
                image = Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGB")
            except OSError:
                continue
            label = int(archive.extractfile(member.name.replace(".jpg", ".cls")).read())
            logits = model(transform(image)[None])[0]
            order = logits.argsort(descending=True).tolist()
            top1, top5, count = top1 + (order[0] == label), top5 + (label in order[:5]), count + 1
            loss -= logits.log_softmax(-1)[label].item()
    return {"top1": top1 / count, "top5": top5 / count, "loss": loss / count}, count


@pytest.mark.parametrize("world", [1, 2])
def test_figures_are_plain_timms_over_any_number_of_processes(tmp_path, undisturbed, tars_of, world):
    tar = tars_of(37, classes=10, first=100, spoil=CUT)
    code, command = validate(
        tmp_path, f"export={undisturbed / 'export'}", f"shards={tar}", "batch=8", "workers=0", world=world
    )
    assert code == 0, command.err
    expected, count = plain_timm(undisturbed / "export", tar)
    found = figures(command)
    assert count == 36 and (found["count"], found["damaged"], found["processes"]) == ("36", "1", str(world))
    assert 0 < expected["top1"] < expected["top5"] < 1
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, abs=1e-4), name
    assert float(found["images_per_s"]) > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["shards=digits"], "no export=RUN/export; see "),
        (["export=EXPORT", "shards=digits", "bacth=8"], "no option bacth=; did you mean batch?"),
        (["export=EXPORT", "shards=digits", "batch=some"], "batch is a whole number"),
        (["export=EXPORT", "shards=digits", "batch=0"], "batch must lie in [1, inf), not be 0"),
        (["export=ODD", "shards=digits"], "holds no timm model (VisionTransformer.__init__() got an unexpected"),
        (["export=/nowhere", "shards=digits"], "/nowhere holds no timm model"),
        (["export=EXPORT", "shards=/nowhere"], "shards: /nowhere: no such file"),
        (["export=EXPORT", "shards=MANY"], "is not below the 10 classes of "),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, undisturbed, tars_of, arguments, says):
    places = {"EXPORT": undisturbed / "export", "MANY": tars_of(12, classes=12), "ODD": tmp_path / "odd"}
    (tmp_path / "odd").mkdir()  # of another version of timm
    described = json.loads((undisturbed / "export/config.json").read_text()) | {"model_args": {"bogus": 1}}
    (tmp_path / "odd/config.json").write_text(json.dumps(described))
    shutil.copy(undisturbed / "export/model.safetensors", tmp_path / "odd")
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    code, command = validate(tmp_path, *arguments)
    assert code == 2, command.err
    assert command.err.startswith("vitwarm: error: ") and command.err.count("\n") == 1
    assert says in command.err
