"""Registration of tuner types with peft. The only module that changes peft's enum; written for peft >= 0.21, < 0.22.

`PeftType` is a closed enum and `register_peft_method` rejects names that are not in it, so the member is added first.
"""

from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType, register_peft_method


def register_tuner(name: str, config_class: type, model_class: Any) -> None:
    """Add the member and register the classes. A repeated call has no effect.

    Raises:
        RuntimeError: another package has registered a type of this name with another class.
    """
    if name not in PeftType.__members__:
        member: Any = str.__new__(PeftType, name)
        member._name_, member._value_ = name, name
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
        PeftType._member_names_.append(name)
        type.__setattr__(PeftType, name, member)
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(PeftType[name])
    if known is None:
        register_peft_method(name=name.lower(), config_cls=config_class, model_cls=model_class, prefix=model_class.prefix)
    elif known is not config_class:
        raise RuntimeError(
            f"peft already knows the type {name} as {known.__module__}.{known.__qualname__}; import either that package or qgoft in one process"
        )
