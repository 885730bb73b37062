"""Sequences of a rule as a dataset: those of the stream, once each, whoever reads them."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info

from vitwarm import RuleDataset, make_rule
from vitwarm.errors import UserError
from vitwarm.procedural import RuleStream

SAMPLES = 700  # neither whole chunks nor the same for each reader


def read(dataset) -> list[tuple[int, ...]]:
    return [tuple(item["input_ids"].tolist()) for item in dataset]


def test_masked_sequences_are_those_of_the_stream():
    dataset = RuleDataset({"name": "dyck", "k": 4}, 32, mask_prob=0.3, seed=5, samples=SAMPLES)
    rows = RuleStream(make_rule("dyck", k=4), 5, "train", 32).masked_rows(0, SAMPLES, 0.3)
    items = list(dataset)
    assert dataset.vocab_size == 10 and len(items) == SAMPLES
    for i in (0, 255, 256, 699):
        assert items[i]["input_ids"].tolist() == rows.inputs[i].tolist()
        asked = items[i]["labels"] != -100
        assert asked.tolist() == rows.masked[i].tolist()
        assert items[i]["labels"][asked].tolist() == rows.targets[i][rows.masked[i]].tolist()


@pytest.mark.parametrize("loss_on", ["outputs", "all"])
def test_the_next_token_is_asked_where_the_loss_is(loss_on):
    rule = make_rule("sort", symbols=5)
    item = next(iter(RuleDataset(rule, 20, objective="next_token", loss_on=loss_on)))
    tokens = item["input_ids"].tolist()
    sep = tokens.index(rule.vocab.sep)
    asked = [i for i, label in enumerate(item["labels"].tolist()) if label != -100]
    if loss_on == "all":
        assert asked == [i for i, token in enumerate(tokens) if token != rule.vocab.pad]
    else:
        output = [tokens[i] for i in asked if tokens[i] != rule.vocab.end]
        assert min(asked) == sep + 1 and output == sorted(tokens[:sep])
    assert all(item["labels"][i] == tokens[i] for i in asked)


def test_workers_and_ranks_read_each_sequence_once():
    whole = read(RuleDataset("set", 24, samples=SAMPLES))
    ranks = [RuleDataset("set", 24, samples=SAMPLES, rank=r, world=2) for r in range(2)]
    parts = [[tuple(b[0].tolist()) for b in _batches(dataset, workers=2)] for dataset in ranks]
    assert sorted(parts[0] + parts[1]) == sorted(whole)
    assert all(parts)


def _batches(dataset, workers):
    return [batch["input_ids"] for batch in DataLoader(dataset, batch_size=1, num_workers=workers)]


def test_a_reader_resumes_where_its_state_was_taken():
    dataset = RuleDataset("set", 24, samples=SAMPLES, rank=1, world=2)
    whole = read(dataset)
    reader = iter(dataset)
    begun = [next(reader) for _ in range(100)]
    other = RuleDataset("set", 24, samples=SAMPLES, rank=1, world=2)
    other.load_state_dict(dataset.state_dict())
    assert [tuple(i["input_ids"].tolist()) for i in begun] + read(other) == whole
    assert read(other) == whole, "the next epoch is whole again"
    other.load_state_dict(other.state_dict())
    assert read(other) == whole, "also from a state that was taken between the two"
    with pytest.raises(UserError, match="2 readers, now there are 1"):
        RuleDataset("set", 24).load_state_dict(dataset.state_dict())


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_refuse_a_state_that_was_loaded_outside_of_them(workers):
    """Several would leave out too much; one would start there in each epoch."""
    dataset = RuleDataset("set", 24, samples=SAMPLES)
    reader = iter(dataset)
    begun = [tuple(next(reader)["input_ids"].tolist()) for _ in range(300)]
    other = RuleDataset("set", 24, samples=SAMPLES)
    other.load_state_dict(dataset.state_dict())
    with pytest.raises(UserError, match="the state was loaded outside of the loader's workers"):
        _batches(other, workers)
    assert begun + read(other) == read(dataset), "a reader alone still goes on from it"


def _resume_at_200(worker):
    get_worker_info().dataset.load_state_dict({"read": 200, "readers": 2})


def test_workers_resume_from_a_state_that_they_load_themselves():
    """As torchdata's StatefulDataLoader has them do."""
    dataset = RuleDataset("set", 24, samples=SAMPLES)
    readers = [read(RuleDataset("set", 24, samples=SAMPLES, rank=rank, world=2)) for rank in (0, 1)]
    resumed = DataLoader(dataset, batch_size=None, num_workers=2, worker_init_fn=_resume_at_200)
    found = {tuple(sequence["input_ids"].tolist()) for sequence in resumed}
    assert found == {sequence for reader in readers for sequence in reader[200:]}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("dyk", 8), "did you mean 'dyck'"),
        (({"name": "dyck", "k": 0}, 8), "k"),
        (("dyck", 0), "length"),
        (({"name": "dyck", "balanced": False}, 1), "nothing to predict in its sequences of 1"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        RuleDataset(*arguments)
    RuleDataset("dyck", 16, mask_prob=np.float32(0.5))  # any real number
    for wrong in (
        {"mask_prob": 2},
        {"mask_prob": True},
        {"mask_prob": 0.3, "objective": "next_token"},
        {"loss_on": "all"},
        {"mask_prob": "half"},
        {"seed": -1},
        {"samples": 0},
        {"length": "16"},
        {"length": None},
    ):
        with pytest.raises(UserError, match=next(iter(wrong))):
            RuleDataset(**{"rule": "dyck", "length": 16} | wrong)
    for rank, world in ((2, 2), (-1, 2), (0, 0), (0.0, 1), ("0", "1")):
        with pytest.raises(UserError, match="ranks count from 0 to world - 1"):
            RuleDataset("dyck", 16, rank=rank, world=world)
    for state in (None, {}, {"read": -1, "readers": 1}, {"read": 1.5, "readers": 1}):
        with pytest.raises(UserError, match="is not what state_dict gives"):
            RuleDataset("dyck", 16).load_state_dict(state)
    with pytest.raises(UserError, match="rank and world"):
        RuleDataset("dyck", 8, rank=0)


def test_two_iterators_read_side_by_side():
    data, expected = RuleDataset("dyck", 16), iter(RuleDataset("dyck", 16))
    first = iter(data)
    for turn in range(600):
        if turn in (0, 100, 300):
            other = iter(data)
            next(other)
        assert torch.equal(next(first)["input_ids"], next(expected)["input_ids"])
    assert data.state_dict()["read"] == 600


def test_labels_are_torch_tensors_of_whole_numbers():
    item = next(iter(RuleDataset("dyck", 16)))
    assert item["labels"].dtype == item["input_ids"].dtype == torch.int64
