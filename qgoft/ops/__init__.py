"""Operators: tensors in, tensors out. Nothing in here knows about modules, peft or configuration."""
