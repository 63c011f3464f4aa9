"""Revisions for other programs, and back: PEFT, mlx-lm, GGUF, and fused models."""
