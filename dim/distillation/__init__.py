"""The two distillation stages and what is chosen after them."""
