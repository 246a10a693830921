"""The two distillation stages and the choices after them."""
