"""Methods that only free parameters that are there already."""

from qgoft.methods.registry import Method, register

register(Method("full", is_trainable=lambda name: True))
# Nothing is trained: what the papers call the base model. For decoders, which need no new head.
register(Method("base", is_trainable=lambda name: False))
register(Method("linear", is_trainable=lambda name: False))
# Every bias of the backbone but pooler and head, those of the layer norms included: 102,912 on DeBERTaV3-base (GOFT, table 1).
register(Method("bitfit", is_trainable=lambda name: name.endswith(".bias")))
