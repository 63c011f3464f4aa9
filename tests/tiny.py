"""A llama so small that every test may have one of its own."""

from __future__ import annotations


def tiny_model(words=60, *, seed=3, layers=2, width=32, inner=48):
    """Random weights, the same ones for the same seed."""
    import mlx.core as mx
    from mlx_lm.models import llama

    mx.random.seed(seed)
    model = llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=width,
            num_hidden_layers=layers,
            intermediate_size=inner,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=words,
        )
    )
    mx.eval(model.parameters())
    return model
