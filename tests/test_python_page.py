"""The page docs/python.md: its code runs as it stands, with fewer steps."""

import re
from pathlib import Path

import pytest
import timm
import torch

PAGE = Path(__file__).parents[1] / "docs/python.md"
FEWER = {
    "steps=15_000": 'steps=2, global_batch=2, lr_warmup="1 steps", val_rows=2, progress=False',
    "num_classes=10": "num_classes=10, depth=1, embed_dim=48, num_heads=2",
    '{"epochs": 1}': '{"epochs": 0.05}, warmup={"budget": "2 steps", "lr_warmup": "1 steps", "val_rows": 8}',
    "max_steps=250": "max_steps=2",
    "batch_size=256": "batch_size=4",
    "batch_size=32": "batch_size=2",
}


@pytest.mark.filterwarnings("ignore")  # of the other libraries
def test_the_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    code = "\n".join(blocks)
    for long, short in FEWER.items():
        assert long in code
        code = code.replace(long, short)
    names: dict = {}
    code = code.replace("report = ", "own, report = model, ", 1)
    exec(compile(code, str(PAGE), "exec"), names)
    assert "dyck: 2 steps" in capsys.readouterr().out
    assert names["result"]["stages"]["images"]["steps"] > 0
    assert names["batch"]["labels"].shape == (4, 196)
    ours, theirs = (names[name].model.layers[0].mlp.up_proj.weight for name in ("model", "warmed"))
    assert ours.equal(theirs)
    assert names["trainer"].global_step == 2
    exported = timm.create_model("local-dir:warmed", pretrained=True)
    assert torch.equal(exported.blocks[0].mlp.fc1.weight, names["own"].blocks[0].mlp.fc1.weight)
    given = {"drop_rate": 0.0, "drop_path_rate": 0.1, "drop_block_rate": None, "global_pool": None, "bn_eps": None}
    made = timm.create_model(  # as timm's train.py makes it
        "local-dir:warmed", pretrained=True, in_chans=3, num_classes=10, scriptable=False, checkpoint_path="", **given
    )
    assert torch.equal(made.blocks[0].mlp.fc1.weight, exported.blocks[0].mlp.fc1.weight)
