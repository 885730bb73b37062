"""The fast path of tiny decoders against PyTorch's autograd."""

import shutil

import pytest
import torch

import vitwarm.trunk.decoder
from vitwarm.trunk import build_decoder
from vitwarm.trunk.tiny import obstacle, tiny_loss

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")

VOCAB, POSITIONS = 29, 21


def decoder(size="2_4_16", seed=0, **more):
    """One whose every tensor matters, and whose attention is far from even."""
    model = build_decoder(size, VOCAB, POSITIONS, "test", seed=seed, **more)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.4)
    return model


def batch(rows, length, asked, seed=0):
    """Predictions at `asked` random places of each sequence, some of weight 0; at all, in order, under None."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (rows, length), generator=generator)
    positions = None
    if asked is not None:
        positions = torch.rand(rows, length, generator=generator).argsort(1)[:, :asked]
    shape = tokens.shape if positions is None else positions.shape
    targets = torch.randint(VOCAB, shape, generator=generator)
    weights = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.6)
    weights[0] = 0  # a sequence without predictions
    return tokens, targets, weights, positions


def in_pytorch(model, tokens, targets, weights, positions):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vitwarm.trunk.decoder, "tiny_loss", lambda *_: None)
        return model.loss(tokens, targets, weights, positions=positions)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("size", "tied", "rows", "length", "asked"),
    [
        ("2_4_16", False, 37, 21, 2),
        ("2_4_16", True, 16, 13, None),
        ("1_4_16", True, 1, 1, None),
        ("3_4_16", False, 20, 9, 4),
        ("2_2_10", False, 19, 11, 3),  # tiles that do not divide the width
        ("1_2_10", True, 33, 6, None),
    ],
)
def test_loss_and_gradients_are_pytorchs(size, tied, rows, length, asked):
    model, data = decoder(size, tied=tied), batch(rows, length, asked)
    found, expected = tiny_loss(model, *data), in_pytorch(model, *data)
    torch.testing.assert_close(found, expected)
    grads = gradients(model, 0.3 * expected.loss)
    for name, grad in gradients(model, 0.3 * found.loss).items():
        torch.testing.assert_close(grad, grads[name], atol=2e-6 * float(grads[name].abs().max()) + 1e-7, rtol=1e-4)
    with torch.no_grad():
        assert torch.equal(tiny_loss(model, *data).loss, found.loss)


def test_it_is_what_the_decoder_takes():
    assert obstacle(decoder()) is None
    model, data = decoder(), batch(5, 8, 2)
    assert torch.equal(model.loss(*data[:3], positions=data[3]).loss, tiny_loss(model, *data).loss)
