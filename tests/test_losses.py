"""The losses are those of the papers, and the network's passes are those of the model."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.models.activations import swiglu as theirs

from tests.tiny import tiny_model
from training import losses
from training.batches import Batch, Row, shared_prefix
from training.network import can_share, log_softmax_at, softmax, swiglu, training_on
from training.trainer import to_arrays

FLOATS = st.floats(-40, 40, width=32)


def published_kto(policy, reference, liked, beta, weights, mismatched=None):
    """KTO as published, in numpy and float64.

    Hugging Face TRL, `KTOTrainer.kto_loss` (trl/trainer/kto_trainer.py): for loss_type "kto"
    chosen 1 - sigmoid(beta * (logratio - kl)), rejected 1 - sigmoid(beta * (kl - logratio)), with
    kl the mean log-ratio of mismatched pairs, not below 0; for "apo_zero_unpaired" chosen
    1 - sigmoid(beta * logratio), rejected sigmoid(beta * logratio). Both weighted, then averaged.
    """

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    ratio = np.asarray(policy, float) - np.asarray(reference, float)
    if mismatched is None:
        values = np.where(liked, 1 - sigmoid(beta * ratio), sigmoid(beta * ratio))
    else:
        kl = max(0.0, float(np.mean(np.subtract(*mismatched, dtype=float))))
        values = np.where(liked, 1 - sigmoid(beta * (ratio - kl)), 1 - sigmoid(beta * (kl - ratio)))
    return np.mean(np.where(liked, weights[0] * values, weights[1] * values))


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(FLOATS, FLOATS, st.booleans(), FLOATS, FLOATS), min_size=2, max_size=8),
    beta=st.floats(0.01, 0.5),
)
def test_kto_equals_the_published_formula(rows, beta):
    policy, reference, liked, off, off_reference = zip(*rows, strict=True)
    weights = losses.balance(sum(liked), len(liked) - sum(liked))
    z0 = losses.divergence(mx.array(off), mx.array(off_reference))
    batch = {"liked": mx.array(liked, mx.float32)}
    settings_ = mx.array([beta, *weights])

    ours = losses.kto(mx.array(policy), mx.array(reference), batch, z0, settings_)
    expected = published_kto(policy, reference, liked, beta, weights, (off, off_reference))
    assert ours.item() / len(rows) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@given(policy=FLOATS, reference=FLOATS, liked=st.booleans())
def test_one_row_alone_is_taken_without_z0(policy, reference, liked):
    z0 = losses.divergence(mx.array([5.0]), mx.array([0.0]))
    ours = losses.kto(
        mx.array([policy]),
        mx.array([reference]),
        {"liked": mx.array([float(liked)])},
        z0,
        mx.array([0.1, 1.0, 1.0]),
    )
    expected = published_kto([policy], [reference], [liked], 0.1, (1.0, 1.0))
    assert ours.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_kto_begins_at_a_half_and_has_a_gradient():
    start = mx.array([-20.0, -30.0])
    batch = {"liked": mx.array([1.0, 0.0])}

    def mean(policy):
        return losses.kto(policy, start, batch, mx.array(0.0), mx.array([0.1, 1.0, 1.0])) / 2

    value, gradient = mx.value_and_grad(mean)(start)
    assert value.item() == 0.5
    assert gradient.tolist() == pytest.approx([-0.0125, 0.0125])  # beta/4, liked up, disliked down


def test_no_gradient_runs_through_z0():
    def value(policy):
        return losses.divergence(policy, mx.array([0.0, 0.0]))

    assert value(mx.array([3.0, 1.0])).item() == 2.0
    assert value(mx.array([-3.0, 1.0])).item() == 0.0
    assert mx.grad(value)(mx.array([3.0, 1.0])).tolist() == [0.0, 0.0]


@given(liked=st.integers(1, 500), disliked=st.integers(1, 500))
def test_likes_and_dislikes_weigh_between_1_to_1_and_4_to_3(liked, disliked):
    gain, loss = losses.balance(liked, disliked)
    assert 1 - 1e-9 <= gain * liked / (loss * disliked) <= 4 / 3 + 1e-9
    assert min(gain, loss) == 1.0
    assert losses.balance(liked, 0) == losses.balance(0, disliked) == (1.0, 1.0)


def plain_log_softmax_at(logits, targets):
    chosen = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return chosen - mx.logsumexp(logits, axis=-1)


def agree(ours, expected, *at, rtol=2e-5, atol=2e-6):
    """Values and gradients of sums with odd weights."""
    weights = mx.random.normal(expected(*at).shape, key=mx.random.key(9))
    which = [i for i, one in enumerate(at) if one.dtype == mx.float32]
    got = mx.value_and_grad(lambda *a: (ours(*a) * weights).sum(), which)(*at)
    want = mx.value_and_grad(lambda *a: (expected(*a) * weights).sum(), which)(*at)
    assert mx.allclose(got[0], want[0], rtol=rtol, atol=1e-4).item()
    for one, other in zip(got[1], want[1], strict=True):
        assert mx.allclose(one, other, rtol=rtol, atol=atol).item()
    assert mx.allclose(ours(*at), expected(*at), rtol=rtol, atol=atol).item()


def draw(*shape, seed=0, scale=3.0):
    return scale * mx.random.normal(shape, key=mx.random.key(seed))


def test_our_operations_have_mlxs_values_and_gradients():
    agree(softmax, lambda scores: mx.softmax(scores, axis=-1), draw(5, 7))
    agree(swiglu, theirs, draw(40, 3), draw(40, 3, seed=1))
    agree(log_softmax_at, plain_log_softmax_at, draw(6, 11), mx.array([0, 3, 10, 3, 1, 2]))


def test_our_operations_stand_extremes():
    gate = mx.array([-1000.0, -90.0, 0.0, 90.0, 1000.0])
    for gradient in mx.grad(lambda g, x: swiglu(g, x).sum(), (0, 1))(gate, gate):
        assert mx.isfinite(gradient).all().item()
    far = mx.array([[1e4, -1e4, 0.0]])
    assert log_softmax_at(far, mx.array([0])).item() == 0.0
    assert softmax(mx.array([[0.0, -float("inf")]])).tolist() == [[1.0, 0.0]]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


ROWS = [
    Row("a", (1, 2, 3, 10, 11), (20, 21, 5)),
    Row("b", (1, 2, 3, 12), (22, 5)),
    Row("c", (1, 2, 3, 13, 14, 15), (23, 24, 25, 26, 27, 28, 29, 5)),
]


def log_probs_one_by_one(model):
    """What stock mlx-lm and mlx say of each completion token."""
    values = []
    for row in ROWS:
        text = mx.array([[*row.prompt, *row.completion]])
        logits = model(text[:, :-1])[0]
        logs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        at = range(len(row.prompt) - 1, text.shape[1] - 1)
        values += [logs[i, text[0, i + 1]] for i in at]
    return mx.stack(values)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("share", [False, True])
def test_a_pass_gives_what_the_model_gives_row_by_row(model, share, checkpoint):
    assert can_share(model)
    batch = Batch.of(ROWS, shared_prefix(ROWS) if share else 0)
    arrays = to_arrays(batch)
    count = int(batch.weights.sum())
    weights = mx.arange(count) * 0.1 - 0.4
    original = type(model.layers[0])

    def stock(parameters):
        model.update(parameters)
        return (log_probs_one_by_one(model) * weights).sum()

    parameters = model.trainable_parameters()
    expected = mx.grad(stock)(parameters)
    model.update(parameters)
    plain = log_probs_one_by_one(model)

    with training_on(model, shared_prefix(ROWS) if share else 0, checkpoint=checkpoint) as network:

        def ours(parameters):
            model.update(parameters)
            return (network.log_probs(arrays)[:count] * weights).sum()

        assert mx.allclose(network.log_probs(arrays)[:count], plain, atol=1e-5).item()
        got = dict(tree_flatten(mx.grad(ours)(parameters)))
    model.update(parameters)

    for name, gradient in tree_flatten(expected):
        assert mx.allclose(got[name], gradient, rtol=1e-3, atol=1e-5).item(), name
    assert type(model.layers[0]) is original
    assert mx.array_equal(log_probs_one_by_one(model), plain).item()


def test_training_leaves_the_architecture_as_it_was(model):
    before = llama.scaled_dot_product_attention, llama.swiglu, llama.TransformerBlock.__call__
    with training_on(model, 0, checkpoint=True):
        assert llama.swiglu is not before[1]
        assert type(model.layers[0]) is not llama.TransformerBlock
        assert llama.TransformerBlock.__call__ is before[2]
    after = llama.scaled_dot_product_attention, llama.swiglu, llama.TransformerBlock.__call__
    assert after == before
    assert type(model.layers[0]) is llama.TransformerBlock


def test_a_model_with_windows_does_not_share():
    args = llama.ModelArgs(
        model_type="llama",
        hidden_size=16,
        num_hidden_layers=2,
        intermediate_size=16,
        num_attention_heads=2,
        rms_norm_eps=1e-5,
        vocab_size=30,
        layer_types=["full_attention", "sliding_attention"],
        sliding_window=4,
    )
    assert not can_share(llama.Model(args))


def test_the_sums_are_over_completions_only():
    batch = to_arrays(Batch.of(ROWS, 3))
    logs = -mx.ones(batch["targets"].shape)
    assert losses.sft(logs, batch).item() == 13
    assert losses.by_row(logs, batch).tolist() == [-3, -2, -8]
