"""Distillation from cached teacher logits."""
