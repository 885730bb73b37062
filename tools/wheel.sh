#!/usr/bin/env bash
# What the page "In Python" begins with, from a wheel: builds it, installs it into a new environment, and runs the lines in an
# empty folder, with fewer steps. Usage: bash tools/wheel.sh [PYTHON]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${1:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH

"$python" -m pip wheel --quiet --no-deps --wheel-dir "$work" "$root"
"$python" -m venv "$work/venv"
. "$work/venv/bin/activate"
python -m pip install --quiet --disable-pip-version-check "$(echo "$work"/*.whl)[digits]"

mkdir "$work/empty" && cd "$work/empty"
python - <<'EOF'
import timm
import torch

import vitwarm

print("vitwarm", vitwarm.__version__, "of", vitwarm.__file__)
model = timm.create_model("vit_small_patch16_dinov3", num_classes=10, img_size=64, embed_dim=192, depth=3, num_heads=3)
report = vitwarm.warm_up(model, rule="dyck", steps=20, global_batch=16, lr_warmup="2 steps", eval_every=10, val_rows=64)
print(report)
print("curve", [(entry["step"], round(entry["accuracy"], 3)) for entry in report.curve])
vitwarm.export(model, "warmed")
again, images = timm.create_model("local-dir:warmed", pretrained=True).eval(), torch.randn(2, 3, 64, 64)
assert torch.equal(again(images), model.eval()(images))
print("timm gives equal logits")

vitwarm.initialise(model, "mimetic")
print(vitwarm.warm_start(model).source)
dataset = vitwarm.RuleDataset("dyck", length=16)
first = next(iter(dataset))
dataset.load_state_dict({"read": 0, "readers": 1})
assert torch.equal(next(iter(dataset))["input_ids"], first["input_ids"]) and dataset.state_dict()["read"] == 1
short = {"budget": "5 steps", "lr_warmup": "1 steps", "val_rows": 16, "global_batch": 16}
result = vitwarm.train("digits_proc", seed=1, warmup=short, images={"epochs": 0.1})
print({name: round(value, 3) for name, value in result["metrics"].items()})
EOF
ls
