from .authors import from_npy
from .hub import from_hub, to_hub
from .pursuit import exact_pursuit
from .saebench import saebench_wrapper
from .saelens import to_saelens
from .saelens_decoders import from_saelens
from .safetensors import from_safetensors, to_safetensors

__all__ = [
    "exact_pursuit",
    "from_hub",
    "from_npy",
    "from_saelens",
    "from_safetensors",
    "saebench_wrapper",
    "to_hub",
    "to_saelens",
    "to_safetensors",
]
