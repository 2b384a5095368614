"""The model card of a dictionary: front matter for the Hugging Face Hub, figures, and how to load it."""

import json
import re
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

import numpy as np

from dbksvd_dask.dictionary import Dictionary

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

_CARD = Template("""\
---
$front_matter
---

# $title

A sparse dictionary of embeddings at `$hook_name` of `$model_name`, learned by Double-Batch K-SVD
([Valentin et al. 2025](https://arxiv.org/abs/2505.18441)) with `dbksvd_dask`: an embedding is about a sum of at most $k
of its $m atoms, which are unit vectors, each times a $coefficients coefficient.

$figures

## Load it

```python
import dbksvd_dask as dbk
from huggingface_hub import snapshot_download

folder = snapshot_download("USER/NAME")
D = dbk.interop.from_hub(folder)
codes = D.encode(Y)  # Y: embeddings, (samples, $d)
```

With [SAELens](https://github.com/decoderesearch/SAELens), which encodes by $k steps of matching pursuit$signed:

```python
from sae_lens import SAE

sae = SAE.from_pretrained("USER/NAME", "saelens")
sae = SAE.load_from_disk(f"{folder}/saelens", converter=dbk.interop.exact_pursuit)  # or: the same codes as D.encode
```

With nothing but safetensors: `load_file(f"{folder}/dictionary.safetensors")["atoms"]` is ($m, $d).

## How it was made

$provenance
""")


def model_card(
    dictionary: Dictionary,
    model_name: str,
    hook_name: str,
    *,
    license: str | None = None,
    datasets: Sequence[str] = (),
) -> str:
    """The text of a README.md for the Hugging Face Hub; parameters are those of `to_hub`."""
    m, d, k = dictionary.n_atoms, dictionary.n_features, dictionary.n_nonzero_coefs
    front_matter: dict[str, Any] = {"library_name": "dbksvd_dask"}
    if license is not None:
        front_matter["license"] = license
    if _HUB_NAME.fullmatch(model_name):
        front_matter["base_model"] = model_name
    if datasets:
        front_matter["datasets"] = list(datasets)
    front_matter["tags"] = ["dictionary-learning", "interpretability", "k-svd", "saelens", "sparse-autoencoder"]
    return _CARD.substitute(
        front_matter="\n".join(f"{key}: {_yaml(value)}" for key, value in front_matter.items()),
        title=f"{m:,} atoms of {model_name}, {hook_name}",
        model_name=model_name,
        hook_name=hook_name,
        m=m,
        d=d,
        k=k,
        coefficients="positive" if dictionary.nonnegative else "positive or negative",
        signed="" if dictionary.nonnegative else "; as it has positive coefficients only, it gets `[D; −D]`",
        figures=_figures(dictionary),
        provenance=_table({"what": "value"} | _flat(dictionary.provenance)) if dictionary.provenance else "Not known.",
    )


def _yaml(value: object) -> str:
    """JSON, which is YAML, too."""
    return json.dumps(value, ensure_ascii=False)


def _figures(dictionary: Dictionary) -> str:
    """A table of how good it was in the end."""
    rows = {"": "value", "atoms": f"{dictionary.n_atoms:,}", "features": f"{dictionary.n_features:,}"}
    rows["most nonzero coefficients"] = str(dictionary.n_nonzero_coefs)
    if dictionary.group_sizes:
        rows["Matryoshka groups"] = ", ".join(map(str, dictionary.group_sizes))
    history = dictionary.history
    if history.sizes.get("iteration"):
        last = history.isel(iteration=-1)
        for split, name in {"validation": "held out", "train": "last batch of the fit"}.items():
            if np.isfinite(last[f"{split}_relative_error"]):
                rows[f"relative error, {name}"] = f"{float(last[f'{split}_relative_error']):.4f}"
                rows[f"variance explained, {name}"] = f"{float(last[f'{split}_variance_explained']):.4f}"
                rows[f"nonzero coefficients, {name}"] = f"{float(last[f'{split}_l0']):.2f}"
        rows["unused atoms, last batch of the fit"] = f"{int(last.n_unused_atoms):,}"
        rows["iterations"] = f"{history.sizes['iteration']:,}"
        rows["samples seen"] = f"{int(last.n_samples_seen):,}"
        rows["seconds"] = f"{float(history.seconds.sum()):.1f}"
    rows["median coherence"] = f"{float(np.median(dictionary.coherence())):.3f}"
    return _table(rows)


def _table(rows: Mapping[str, str]) -> str:
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join([lines[0], "| --- | --- |", *lines[1:]])


def _cell(text: object) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def _flat(provenance: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values by the names that lead to them."""
    flat: dict[str, str] = {}
    for name, value in provenance.items():
        flat |= _flat(value, f"{prefix}{name}: ") if isinstance(value, Mapping) else {f"{prefix}{name}": str(value)}
    return flat
