"""python tools/compose.py target=FOLDER out=FOLDER attention=A mlp=B ["mlp layers=0-3"=C] [control.mlp=shuffle]

Build a trunk from several sources: the attention of A, the MLPs of B, ...; what no source gives is the target's.

  target      RUN, RUN/export, a GPT-2 folder of transformers, or timm:NAME
  fresh=true  the target's architecture with new weights drawn from seed=0, not its own
  out         a timm folder (or one of GPT-2), with vitwarm.json: files, their SHA-256, every tensor's origin
  GROUPS=A    groups (attention, mlp, norm, trunk, stem, head, layers=last:4, heads=0) of a run, export or .safetensors
  control.GROUPS=shuffle, gaussian, noise:0.1 or scale:0.5 is done to the sources first
"""

from pathlib import Path

from vitwarm.cli import guarded
from vitwarm.errors import UserError

OWN = {"target": None, "out": None, "fresh": "false", "seed": "0"}


def main(arguments: list[str]) -> None:
    """Read the command line, compose, print where each tensor comes from."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        return
    own, sources, controls = dict(OWN), {}, {}
    for argument in arguments:
        name, equals, value = argument.rpartition("=")  # a group may hold an = itself
        kind, _, groups = name.partition(".")
        if not equals or not value or argument.startswith("-"):
            raise UserError(f"cannot use {argument!r}; see --help")
        if name in own:
            own[name] = value
        elif kind == "control":
            controls[groups] = value
        elif name in sources:
            raise UserError(f"{name} has two sources; see --help")
        else:
            sources[name] = value
    if missing := [name for name, value in own.items() if value is None]:
        raise UserError(f"no {' and no '.join(missing)}; see --help")
    if not sources:
        raise UserError("no sources; write attention=RUN, mlp=RUN, ...")
    if own["fresh"] not in ("true", "false") or not own["seed"].isdecimal():
        raise UserError("fresh is true or false, seed a whole number")
    out = Path(own["out"]).expanduser()
    if out.exists():
        raise UserError(f"{out} exists; choose another out")
    from vitwarm.export import write_model
    from vitwarm.export.opening import open_model
    from vitwarm.transfer.compose import compose, record_of

    opened = open_model(own["target"], fresh=own["fresh"] == "true", seed=int(own["seed"]))
    report = compose(opened.model, sources, controls, seed=int(own["seed"]))
    facts = {"target": own["target"], "fresh": own["fresh"] == "true", "seed": int(own["seed"]), "controls": controls}
    record = {"recipe_hash": "none", "metrics": {}} | record_of(sources, report, **facts)
    write_model(opened.model, out, opened.config, opened.tokenizer, record)
    print(f"{report}\nwritten: {out}")


if __name__ == "__main__":
    guarded(main)()
