"""Sparse autoencoders by SAELens's own trainer: TopK, BatchTopK, Matryoshka."""

import copy
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clock import Clock, marks
from rows import batches, centred
from sae_lens import SAE
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from scipy.sparse import csr_array


def learn(train: Path, mean: np.ndarray, m: int, k: int, settings: dict[str, Any], clock: Clock) -> None:
    """Train on rows scaled to a mean norm of √d, with warm-up at the beginning and decay to zero at the end."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    n_samples, batch_size, lr = settings["n_samples"], settings["batch_size"], settings["lr"]
    steps = n_samples // batch_size
    sae_class, sae_config = get_sae_training_class(settings["architecture"])
    clock.start()
    rows = centred(train, mean)
    sae = sae_class(
        sae_config(
            d_in=rows.shape[1],
            d_sae=m,
            k=k,
            normalize_activations="expected_average_only_in",
            **settings.get("sae", {}),
        )
    )
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=steps * batch_size,
            train_batch_size_samples=batch_size,
            lr=lr,
            lr_end=lr,
            lr_warm_up_steps=steps // 20,
            lr_decay_steps=steps // 5,
            dead_feature_window=settings["dead_feature_window"],
            n_batches_for_norm_estimate=20,
        ),
        sae,
        map(torch.from_numpy, batches(rows, batch_size)),
        save_checkpoint_fn=lambda checkpoint_path: record(trainer, clock),
    )
    trainer.checkpoint_thresholds = [mark - 1 for mark in marks(steps * batch_size, batch_size)[:-1]]
    trainer.fit()
    record(trainer, clock)


def record(trainer: SAETrainer, clock: Clock) -> None:
    """Show the autoencoder of this moment, which sees scaled rows until its trainer is done."""
    sae, scale = copy.deepcopy(trainer.sae), trainer.activation_scaler.scaling_factor or 1.0
    clock.record(trainer.n_training_samples, sae.W_dec.detach().numpy(), partial(encode, sae, scale))


def encode(sae: TrainingSAE, scale: float, rows: np.ndarray) -> tuple[csr_array, np.ndarray]:
    """Codes of the autoencoder as SAELens saves it for use: BatchTopK with its threshold."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        sae.save_inference_model(folder)
        saved = SAE.load_from_disk(folder)
        codes = saved.encode(torch.from_numpy(rows) * scale)
        return csr_array(codes.numpy()), saved.decode(codes).numpy() / scale
