"""Dictionaries from and for others: SAELens, SAEBench, safetensors, the Hugging Face Hub, the authors of DB-KSVD.

The public names are those of ``__init__.pyi``; each is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
