"""Distillation from a teacher or from its cached logits."""
