"""How people fine-tune a CLIP without furnclip; `tests/bench/quality.py` compares."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch.nn.functional import cross_entropy

from furnclip.train.data import random_stream
from furnclip.train.prepared import Prepared
from furnclip.train.scenarios import learning_rate

RATES = (0.25, 0.5, 1.0)  # times furnclip's own; a rival keeps the best by validation
BATCH = 128


def plain_loop(ready: Prepared, rate: float) -> None:
    """What a good tutorial does, with the epochs of `ready`."""
    module, clip = ready.encoder.clip.module.train(), ready.encoder.clip
    train = ready.config.train.model_copy(update={"lr": rate})
    captions = ready.train.fixed_captions()
    size = min(BATCH, len(captions))
    steps = len(captions) // size
    matrices = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in module.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-6)
    for step in range(steps * train.epochs):
        epoch, start = divmod(step, steps)
        rows = random_stream(train.seed, epoch).permutation(len(captions))[start * size :][:size]
        squares = ready.train.squares(rows, epoch=epoch)  # mirrored half of the time
        pixels = clip.preprocessing.normalize(squares).to(ready.encoder.device)
        tokens = clip.tokenize([captions[row] for row in rows]).to(ready.encoder.device)
        logits = module(input_ids=tokens, pixel_values=pixels).logits_per_text
        right = torch.arange(len(rows), device=logits.device)
        loss = (cross_entropy(logits, right) + cross_entropy(logits.t(), right)) / 2
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps * train.epochs, train)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(module.parameters(), train.max_gradient_norm)
        optimizer.step()
        module.logit_scale.data.clamp_(max=math.log(train.max_logit_scale))
    module.eval()


def sentence_transformers(ready: Prepared, rate: float) -> None:
    """As its documentation trains a CLIP, in both directions, on the same schedule, images mirrored too."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.sentence_transformer import losses

    clip, train, data = ready.encoder.clip, ready.config.train, ready.train
    random = random_stream(train.seed)

    def mirrored(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        images = columns.get("image", [])
        changed = [ImageOps.mirror(image) if random.random() < 0.5 else image for image in images]
        return columns | ({"image": changed} if images else {})

    with tempfile.TemporaryDirectory() as folder:
        clip.save(Path(folder))
        model = SentenceTransformer(folder, device="cpu")
        images = [Image.fromarray(data.squares([row], epoch=None)[0]) for row in range(len(data))]
        arguments = Arguments(
            output_dir=folder,
            num_train_epochs=train.epochs,
            per_device_train_batch_size=BATCH,
            dataloader_drop_last=True,
            learning_rate=rate,
            warmup_steps=train.warmup_fraction,  # a share of all, where below 1
            lr_scheduler_type="cosine",
            weight_decay=train.weight_decay,
            seed=train.seed,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        pairs = Dataset.from_dict({"caption": data.fixed_captions(), "image": images})
        pairs.set_transform(mirrored)
        trainer = SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=pairs,
            loss=losses.CachedMultipleNegativesSymmetricRankingLoss(model),
        )
        trainer.train()
        transformer: Any = model[0]
        clip.module.load_state_dict(transformer.auto_model.state_dict())
    clip.module.eval()


RIVALS = {"plain loop": plain_loop, "sentence-transformers": sentence_transformers}
