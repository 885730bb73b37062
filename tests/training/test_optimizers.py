"""Optimisers of timm: each resumes to the bit, gets the loop's learning rates, and is refused where it cannot work."""

import inspect
from dataclasses import replace

import pytest
import torch
from timm.optim import list_optimizers
from timm.optim.muon import Muon
from torch import nn
from toy_stage import ToyStage, optim_config, toy_context

from vitwarm.assembly import assemble
from vitwarm.config import OptimConfig
from vitwarm.errors import UserError
from vitwarm.recipe import load_recipe
from vitwarm.training.checkpoint import optimizer_tensors, optimizer_values, read_state, read_tensors
from vitwarm.training.elementwise import ELEMENTWISE, is_elementwise
from vitwarm.training.loop import Training
from vitwarm.training.optimizers import check_optimizer, make_optimizer, state_bytes
from vitwarm.training.schedule import learning_rate


def refusal(optim: OptimConfig) -> str | None:
    try:
        check_optimizer("train", optim)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        return str(error)
    return None


def named(name: str, **changes) -> OptimConfig:
    """Muon and its kin get every matrix, as the toy model has no blocks."""
    arguments = {"fallback_list": []} if name.endswith("muon") else {}
    return optim_config(optimizer=name, optimizer_args=arguments, **changes)


ALL = [*list_optimizers(), "lookahead_adam", "lookahead_lamb", "lookahead_muon"]
USABLE = [name for name in ALL if refusal(named(name)) is None]


# Older versions of timm build Muon's AdamW, and keep RAdamLegacy's step, with a rate that is not the group's.
DEAF = [] if "fallback_lr_scale" in inspect.signature(Muon).parameters else [
    name for name in ALL if name.endswith(("muon", "radamlegacy"))
]  # fmt: skip


def test_only_those_of_other_packages_second_order_and_random_ones_are_refused():
    refused = {name: refusal(named(name)) for name in ALL if name not in USABLE}
    for name in DEAF:
        assert "does not obey the learning rate of each group; pip install -U timm" in refused.pop(name)
    packages = {name for name in ALL if name.startswith(("bnb", "fused"))}
    assert set(refused) - packages == {"adahessian", "kron", "kronc", "kronw"} & set(ALL)
    assert all("package" in refused[name] for name in packages)
    assert "second derivatives" in refused["adahessian"] and "rng_state" in refused["kron"]


class Grouped(ToyStage):
    """A toy whose second layer learns at half the rate and does not decay."""

    def parameter_groups(self):
        first, *_, last = self.model
        return [
            {"params": list(first.parameters()), "weight_decay": self.optim.weight_decay},
            {"params": list(last.parameters()), "weight_decay": 0.0, "lr_scale": 0.5},
        ]


@pytest.mark.parametrize("name", USABLE)
def test_a_run_resumes_to_the_bits_of_one_that_nothing_disturbed(tmp_path, name):
    optim = named(name)
    context = toy_context(tmp_path / "whole", checkpoint_every=3)
    whole = Training(Grouped(optim, eval_every=6), context, None)
    whole.run()
    at = context.checkpoints.path(3)
    stage = Grouped(optim, eval_every=6)
    again = Training(stage, toy_context(tmp_path / "again", checkpoint_every=3), (read_state(at), at))
    again.run()
    assert stage.served == [3, 4, 5]
    begun = Grouped(optim).model.state_dict()
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[key]) and not torch.equal(tensor, begun[key])
    paths = [c.checkpoints.path(6) for c in (context, again.context)]
    ours, theirs = (read_tensors(path, "optimizer") for path in paths)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(t, theirs[n]) and t.dtype == theirs[n].dtype for n, t in ours.items())
    assert read_state(paths[0]).optimizer == read_state(paths[1]).optimizer
    for group, scale in zip(again.optimizer.param_groups, (1.0, 0.5), strict=True):
        assert group["lr"] == learning_rate(5, 6, optim, 2, 2) * scale


def test_one_that_keeps_the_rate_that_it_was_made_with_is_refused(monkeypatch):
    step = torch.optim.SGD.step

    def stubborn(self):
        for group in self.param_groups:
            group["lr"] = self.defaults["lr"]
        step(self)

    monkeypatch.setattr(torch.optim.SGD, "step", stubborn)
    assert "train.optimizer=sgd of timm" in (refusal(named("sgd")) or "")


def test_lookahead_resumes_after_it_has_looked_back(tmp_path):
    """It does at steps 6 and 12; the checkpoint lies between them."""
    optim = named("lookahead_adam")
    context = toy_context(tmp_path / "whole", checkpoint_every=7)
    whole, again = Grouped(optim, steps=14), Grouped(optim, steps=14)
    Training(whole, context, None).run()
    at = context.checkpoints.path(7)
    assert any(name.endswith("/lookahead_slow_buff") for name in read_tensors(at, "optimizer"))
    Training(again, toy_context(tmp_path / "again", checkpoint_every=7), (read_state(at), at)).run()
    assert again.served == list(range(7, 14))
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[key])


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("adamw", {}),
        ("nadamlegacy", {"0.weight": ["m_schedule", "step"]}),
        ("muon", {"0.weight": ["use_muon"]}),
        ("lamb", [["step"], ["step"]]),
        ("adan", [["step"], ["step"]]),
        ("lookahead_adam", [["lookahead_step"], ["lookahead_step"]]),
    ],
)
def test_what_is_no_tensor_goes_to_the_state_as_plain_values(tmp_path, name, kept):
    context = toy_context(tmp_path)
    Training(Grouped(named(name)), context, None).run()
    found = read_state(context.checkpoints.path(6)).optimizer
    if isinstance(kept, list):
        assert list(found) == ["groups"] and [sorted(group) for group in found["groups"]] == kept
    else:
        assert {n: sorted(own) for n, own in found.get("parameters", {}).items() if n in kept} == kept
        assert "groups" not in found


def test_state_that_json_does_not_give_back_is_refused():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for value in ((1, 2), {"a": 1}, [torch.zeros(2)], {3}):
        optimizer.state[model.weight]["odd"] = value
        with pytest.raises(UserError, match="as odd, which a checkpoint does not hold"):
            optimizer_values(model, optimizer)


def test_the_default_is_torchs_fused_adamw():
    found = []
    for build in (
        lambda optim, groups, model: make_optimizer(optim, groups, model),
        lambda optim, groups, model: torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.9), eps=1e-5, fused=True),
    ):
        stage = Grouped(optim_config(betas=[0.8, 0.9], eps=1e-5))
        optimizer = build(stage.optim, stage.parameter_groups(), stage.model)
        for step in range(3):
            stage.model(stage.rows(step)[0]).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append((type(optimizer), optimizer.defaults, stage.model.state_dict()))
    (kind, defaults, ours), (other_kind, other_defaults, theirs) = found
    assert (kind, defaults) == (other_kind, other_defaults)
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


class Piece(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.weight = nn.Parameter(values.clone())


def moved(optim: OptimConfig, values: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    model = Piece(values)
    optimizer = make_optimizer(optim, [{"params": [model.weight], "weight_decay": 0.1}], model)
    for gradient in gradients:
        model.weight.grad = gradient.clone()
        optimizer.step()
    return model.weight.detach()


def apart(optim: OptimConfig) -> float:
    """How far shards, and members of a stack, end from where the whole takes them, over the way that it goes."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.1, 3.0]).view(2, 1, 1)  # shards whose norms differ
    start = torch.randn(2, 6, 8, generator=generator) * scale
    gradients = [torch.randn(2, 6, 8, generator=generator) * scale for _ in range(5)]
    alone = torch.stack([moved(optim, start[i], [g[i] for g in gradients]) for i in range(2)])
    stacked = moved(optim, start, gradients)
    sharded = moved(optim, start.flatten(0, 1), [g.flatten(0, 1) for g in gradients]).view_as(start)
    way = (alone - start).abs().max()
    return max(float((whole - alone).abs().max() / way) for whole in (stacked, sharded))


def test_elementwise_optimisers_make_the_same_of_shards_and_stacks():
    known = ELEMENTWISE & set(ALL) - set(DEAF)  # an older timm knows fewer
    assert known <= set(USABLE)
    assert {name for name in known if apart(named(name)) > 1e-5} == set()
    for name in ("lamb", "lars", "muon", "adafactor", "novograd", "mars", "cadamw"):
        assert name not in ELEMENTWISE and apart(named(name)) > 1e-3


@pytest.mark.parametrize("arguments", [{"caution": True}, {"clipping_threshold": 0.5}], ids=str)
def test_arguments_that_look_at_a_whole_tensor_end_that(arguments):
    optim = replace(named("nadamw"), optimizer_args=arguments)
    if refusal(optim):
        pytest.skip("this timm does not know the argument")
    assert is_elementwise(named("nadamw")) and not is_elementwise(optim) and apart(optim) > 1e-3


def test_hybrids_leave_all_but_the_matrices_of_blocks_to_adamw():
    model = nn.ModuleDict({"token_embed": nn.Embedding(9, 8), "blocks": nn.ModuleList([nn.Linear(8, 8)])})
    model["head"] = nn.Linear(8, 9)
    groups = [{"params": list(model.parameters()), "weight_decay": 0.1}]

    def of_muon(**arguments) -> set[str]:
        optimizer = make_optimizer(OptimConfig(optimizer="muon", optimizer_args=arguments), groups, model)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        names = {p: n for n, p in model.named_parameters()}
        return {names[p] for p, state in optimizer.state.items() if "momentum_buffer" in state}

    assert of_muon() == {"blocks.0.weight"}
    assert of_muon(fallback_list=["head.*"]) == {"token_embed.weight", "blocks.0.weight"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optimizer": "adamv"}, "timm has no optimiser 'adamv'; did you mean adam"),
        ({"optimizer": "lion", "eps": 1e-3}, "train.eps is not for lion"),
        ({"optimizer": "sgd", "betas": [0.8, 0.9]}, "train.betas is not for sgd"),
        ({"optimizer": "adan", "betas": [0.8, 0.9]}, "its own are optimizer_args.betas"),
        ({"optimizer": "sgd", "optimizer_args": {"momentm": 0.8}}, "no argument 'momentm'; did you mean momentum"),
        ({"optimizer": "sgd", "optimizer_args": {"momentum": "x"}}, "train.optimizer=sgd: "),
        ({"optimizer": "lamb", "optimizer_args": {"lr": 0.1}}, "optimizer_args.lr: write train.lr"),
        ({"optimizer": "lamb", "optimizer_args": {"eps": 0.1}}, "optimizer_args.eps: write train.eps"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line(settings, said):
    assert said in (refusal(OptimConfig(**settings)) or "")


def test_betas_and_epsilon_are_the_recipes_unless_they_are_null():
    model = nn.Linear(2, 2)
    groups = [{"params": list(model.parameters()), "weight_decay": 0.0}]
    for optim, betas, eps in (
        (OptimConfig(optimizer="lamb"), (0.9, 0.999), 1e-8),
        (OptimConfig(optimizer="lamb", eps=None), (0.9, 0.999), 1e-6),
        (OptimConfig(optimizer="novograd", betas=None), (0.95, 0.98), 1e-8),
        (OptimConfig(optimizer="adan", optimizer_args={"betas": [0.9, 0.8, 0.7]}), [0.9, 0.8, 0.7], 1e-8),
    ):
        group = make_optimizer(optim, groups, model).param_groups[0]
        assert (group["betas"], group["eps"]) == (betas, eps)


@pytest.mark.parametrize("section", ["warmup", "train"])
def test_both_stages_are_checked_before_anything_else(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_recipe(["recipe=digits_proc", f"{section}.optimizer=lamp", "images.train=nowhere"])
    with pytest.raises(UserError, match=f"^{section}.optimizer: timm has no optimiser 'lamp'; did you mean lamb"):
        assemble(config, 1)
    assert not list(tmp_path.iterdir())


def test_bytes_of_state_are_those_of_the_moments_kept():
    """fp32 moments by the papers: two of Adam, one of Lion, three and a gradient of Adan; Adafactor keeps rows."""
    kept = {"adamw": 8, "lion": 4, "adan": 16, "sgd": 4, "muon": 4, "lamb": 8, "lookahead_adam": 12}
    assert {name: state_bytes(OptimConfig(optimizer=name)) for name in kept} == kept
    assert state_bytes(OptimConfig(optimizer="adafactor")) < 0.1
    assert state_bytes(OptimConfig(optimizer="adamw", optimizer_args={"amsgrad": True})) == 12


def test_tensors_are_named_by_parameter_within_a_wrapper_too():
    stage = Grouped(named("lookahead_adam"))
    optimizer = make_optimizer(stage.optim, stage.parameter_groups(), stage.model)
    stage.model(stage.rows(0)[0]).sum().backward()
    optimizer.step()
    assert "3.weight/exp_avg_sq" in optimizer_tensors(stage.model, optimizer)
