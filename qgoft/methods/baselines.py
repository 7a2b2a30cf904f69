"""Methods that train existing parameters only."""

from qgoft.methods.registry import Method, register

register(Method("full", is_trainable=lambda name: True))
# Trains nothing: the papers' base model. For decoders, which have no new head.
register(Method("base", is_trainable=lambda name: False))
register(Method("linear", is_trainable=lambda name: False))
# All biases of the backbone except pooler and head, including those of layer norms: 102,912 on DeBERTaV3-base (GOFT, table 1).
register(Method("bitfit", is_trainable=lambda name: name.endswith(".bias")))
