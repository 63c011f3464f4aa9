"""Our KTO is TRL's: its trainer's own loss, on the same log-probabilities."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from tests.servers.need import need_module
from training import losses

pytestmark = pytest.mark.torch

WORDS = 5  # of a completion


@pytest.fixture(scope="module", autouse=True)
def parts():
    for name in ("torch", "trl"):
        need_module(name, "`make torch` installs it, `make test` shows it to these tests")


class Numbers:
    """Stands where TRL has its model: the log-probabilities are given."""

    training = True

    def __init__(self, policy, mismatched):
        self.policy, self.mismatched = policy, mismatched

    def __call__(self, *, input_ids, labels, **_):
        import torch

        whole = self.mismatched if input_ids[0, 0] else self.policy
        empty = torch.zeros(len(whole), WORDS)
        return SimpleNamespace(log_probs=whole, entropy=empty, mean_logits=empty)


def trl_loss(case, beta, weights, loss_type):
    """What `KTOTrainer` makes of a batch, and its gradient by the policy's log-probabilities."""
    import torch
    from trl.trainer.kto_trainer import KTOTrainer

    trainer = KTOTrainer.__new__(KTOTrainer)
    policy = torch.tensor(case["words"], requires_grad=True)
    numbers = Numbers(policy, torch.tensor(case["off_words"]))
    trainer.__dict__.update(
        model=numbers,
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda value: value),
        beta=beta, desirable_weight=weights[0], undesirable_weight=weights[1],
        loss_type=loss_type, calculate_KL=loss_type == "kto", precompute_ref_logps=True,
        aux_loss_enabled=False, _metrics={"train": defaultdict(list)}, _total_train_tokens=0,
        _tp_size=1,
    )  # fmt: skip
    rows = len(policy)
    ids, ones = torch.zeros(rows, WORDS + 1, dtype=torch.long), torch.ones(rows, WORDS + 1)
    loss = trainer._compute_loss(
        numbers,
        {
            "label": torch.tensor(case["liked"]),
            "input_ids": ids, "attention_mask": ones, "completion_mask": ones,
            "KL_input_ids": ids + 1, "KL_attention_mask": ones, "KL_completion_mask": ones,
            "ref_logps": torch.tensor(case["reference"]),
            "ref_KL_logps": torch.tensor(case["off_reference"]),
        },
        False,
    )  # fmt: skip
    loss.backward()
    return loss.item(), policy.grad.numpy()


def our_loss(case, beta, weights):
    """What the trainer here adds up, divided by the rows, and the same gradient."""
    reference, off = mx.array(case["reference"]), mx.array(case["off_words"]).sum(axis=-1)
    batch = {"liked": mx.array(case["liked"], mx.float32)}
    z0 = losses.divergence(off, mx.array(case["off_reference"]))

    def mean(words):
        policy = words.sum(axis=-1)
        total = losses.kto(policy, reference, batch, z0, mx.array([beta, *weights]))
        return total / len(case["liked"])

    value, gradient = mx.value_and_grad(mean)(mx.array(case["words"]))
    return value.item(), np.array(gradient)


def draw(seed, rows, liked, drift, shift=0.0):
    """Log-probabilities of completions; the policy is off the reference by about `drift`."""
    random = np.random.default_rng(seed)
    words = random.uniform(-4, 0, (rows, WORDS))
    off_words = random.uniform(-6, -1, (rows, WORDS))
    marks = np.arange(rows) < liked
    return {
        "words": words.astype(np.float32),
        "reference": (words.sum(-1) + random.normal(0, drift, rows)).astype(np.float32),
        "off_words": off_words.astype(np.float32),
        "off_reference": (off_words.sum(-1) - shift).astype(np.float32),
        "liked": random.permutation(marks),
    }


@pytest.mark.parametrize(
    ("rows", "liked", "drift", "shift", "beta"),
    [
        (8, 4, 2.0, 1.5, 0.1),
        (8, 6, 10.0, 3.0, 0.1),
        (8, 2, 2.0, -5.0, 0.1),  # z0 would be negative: it is held at 0
        (5, 5, 2.0, 1.0, 0.3),
        (5, 0, 2.0, 1.0, 0.3),
        (2, 1, 60.0, 20.0, 0.5),  # far out, where the sigmoids are flat
        (16, 9, 0.0, 0.0, 0.1),  # the start: all at a half
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_kto_is_trls(seed, rows, liked, drift, shift, beta):
    case = draw(seed, rows, liked, drift, shift)
    for weights in (losses.balance(liked, rows - liked), (1.0, 1.0), (1.3, 0.7)):
        ours, theirs = our_loss(case, beta, weights), trl_loss(case, beta, weights, "kto")
        assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
        assert np.allclose(ours[1], theirs[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("liked", [0, 1])
@pytest.mark.parametrize("seed", range(3))
def test_one_row_alone_is_trls_form_without_z0(seed, liked):
    case = draw(seed, 1, liked, 3.0, shift=4.0)
    ours = our_loss(case, 0.1, (1.0, 1.0))
    theirs = trl_loss(case, 0.1, (1.0, 1.0), "apo_zero_unpaired")
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    assert np.allclose(ours[1], theirs[1], rtol=1e-4, atol=1e-6)
    with_z0 = trl_loss(case, 0.1, (1.0, 1.0), "kto")
    assert abs(ours[0] - with_z0[0]) > 1e-3
