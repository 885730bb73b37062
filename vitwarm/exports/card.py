"""The model card of an export: what the model is, how it was made, how to load it, whom to cite.

Everything on it comes from the record that stands beside it in `vitwarm.json`.
"""

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from vitwarm.exports.layout import PROVENANCE

LICENSE = "apache-2.0"  # of weights that did not begin with those of others
PLACE = "PATH_TO_THIS_FOLDER"
LOCAL = f"local-dir:{PLACE}"

_OF_THE_HUB = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "gemma", "unknown")  # its own names
_MEASURES = {  # our metric -> type and name of the Hub's
    "top1": ("accuracy", "top-1 accuracy"),
    "top5": ("accuracy", "top-5 accuracy"),
    "accuracy": ("accuracy", "accuracy"),
    "f1": ("f1", "F1"),
    "matthews": ("matthews_correlation", "Matthews correlation"),
    "perplexity": ("perplexity", "perplexity"),
}
_TASKS = {  # architecture in transformers -> task; of timm's models there is one
    "GPT2LMHeadModel": "text-generation",
    "GPT2ForSequenceClassification": "text-classification",
}
_IN_WORDS = {
    "images": "trained on images",
    "text": "trained on text",
    "algorithmic": "trained on an algorithmic task",
}
_SMOKE = "; by a smoke run, a few steps that only try the recipe out"
_PAPERS = {
    "images": """@article{shinnick2025canyoulearn,
  title   = {Can You Learn to See Without Images? Procedural Warm-Up for Vision Transformers},
  author  = {Shinnick, Zachary and Jiang, Liangze and Saratchandran, Hemanth and Teney, Damien and
             {van den Hengel}, Anton},
  journal = {arXiv preprint arXiv:2511.13945},
  year    = {2025}
}""",
    "text": """@article{jiang2026procedural,
  title   = {Procedural Pretraining: Warming Up Language Models with Abstract Data},
  author  = {Jiang, Liangze and Shinnick, Zachary and {van den Hengel}, Anton and Saratchandran, Hemanth and
             Teney, Damien},
  journal = {arXiv preprint arXiv:2601.21725},
  year    = {2026}
}""",
}


def model_card(name: str, record: Mapping[str, Any], architecture: str | None = None) -> str:
    """Markdown with the Hub's metadata header.

    Args:
        name: of the model in timm, or of the decoder.
        record: provenance; `trained` is the stage whose training ended with these weights (`images`, `text`,
            `algorithmic`, `warmup`), `elsewhere` if nobody knows, None if they were put together and not trained since.
        architecture: class of transformers that reads the folder; None is timm.
    """
    trained, metrics = record.get("trained"), record.get("metrics") or {}
    task = _TASKS[architecture] if architecture else "image-classification"
    ready = trained in _IN_WORDS
    title = f"{name} ({record['recipe']})" if record.get("recipe") else name
    library = "transformers" if architecture else "timm"
    known = (licence := record.get("license", LICENSE)) in _OF_THE_HUB
    data = ModelCardData(
        license=licence if known else "other",
        license_name=None if known else licence,
        library_name=library,
        pipeline_tag=task if ready else None,
        tags=[library, "vitwarm", *([task] if ready else []), "procedural-data"],
        base_model=record.get("base_models") or None,
        model_name=title,
        eval_results=(_results(task, record, metrics) if ready else []) or None,
    )
    where = " on the rule's sequences" if trained == "warmup" else ""
    where += f", the middle block run {runs} times" if (runs := record.get("middle_runs")) else ""
    facts = {
        "recipe": f"`{record['recipe']}`" if record.get("recipe") else None,
        "what the recipe is for": record.get("description") or None,
        "recipe hash": f"`{record['recipe_hash']}`" if record.get("recipe_hash") else None,
        "seed": record.get("seed"),
        "start": record.get("start"),
        "tensors from there": f"{len(warmed)} (listed in `{PROVENANCE}`)"
        if (warmed := record.get("warmed_keys"))
        else None,
        **{f"{key}{where}": value for key, value in metrics.items() if key != "count"},
    }
    rows = [(key, f"{v:.4f}" if isinstance(v, float) and v % 1 else v) for key, v in facts.items() if v is not None]
    table = "\n".join(f"| {key} | {value} |" for key, value in [("", ""), ("---", "---"), *rows])
    story = f"{_kind(name, architecture)}, {_story(record)}{_SMOKE if record.get('smoke') else ''}."
    if runs:
        story += (
            f" A compact core to expand, not a model to run: its middle block ran {runs} times in training, and runs "
            f"once as {library} loads this folder."
        )
    return f"""---
{data.to_yaml()}
---

# {title}

{story}

{table.replace("|  |  |", "| | |").replace("| --- | --- |", "|---|---|")}

## Load

```python
{_loading(architecture)}
```

## Citation

Made with vitwarm. The method:

```bibtex
{_PAPERS["text" if architecture else "images"]}
```
"""


def of_the_hub(card: str, repo_id: str) -> str:
    """A card whose lines load the model from the Hub."""
    return card.replace(LOCAL, f"hf-hub:{repo_id}").replace(PLACE, repo_id)


def dataset_name(place: str) -> str:
    """What to call data by the place where they lie: its last folders, without what is private about the rest.

    Only data of the Hub are USER/NAME, which a card links to.
    """
    parts = [part for part in re.split(r"[/\\]+", place) if part and not re.search(r"[*?{}\[\]:]|\.tar\b", part)]
    return ("/" if place.startswith("hf://datasets/") else " ").join(parts[-2:]) or place


def _kind(name: str, architecture: str | None) -> str:
    return f"A decoder of GPT-2's make, `{name}`" if architecture else f"A timm `{name}`"


def _story(record: Mapping[str, Any]) -> str:
    """What was done to the weights, and what was not."""
    trained, start = record.get("trained"), record.get("start", "weights of unknown origin")
    if trained in _IN_WORDS:
        return f"{_IN_WORDS[trained]} ({record['dataset']})" if record.get("dataset") else _IN_WORDS[trained]
    if trained == "elsewhere":
        return f"{start}; what was done to its weights elsewhere, if anything, is not recorded here"
    if trained == "warmup":
        whole = "all of it" if not record.get("fresh_keys") else "the trunk alone; the rest of it is fresh"
        return f"trained on procedural data and nothing else, {whole}"
    return f"{start}; not trained since"


def _results(task: str, record: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[EvalResult]:
    if (name := record.get("dataset")) is None:
        return []
    return [
        EvalResult(task, name.replace(" ", "-"), name, kind, metrics[key], metric_name=said)
        for key, (kind, said) in _MEASURES.items()
        if key in metrics
    ]


def _loading(architecture: str | None) -> str:
    if architecture:
        return f'import transformers\nmodel = transformers.{architecture}.from_pretrained("{PLACE}")'
    return f'import timm\nmodel = timm.create_model("{LOCAL}", pretrained=True)'
