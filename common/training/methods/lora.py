"""Training a ViT with LoRA: the images go through the whole model in every epoch."""

import time
from dataclasses import replace

from common.data.dataset import DatasetSplits
from common.data.images import LabelledImages
from common.models.backbones import Backbone
from common.models.lora import ADAPTED, LoraViT, adapter_files, merged
from common.training.loaders import ImageLoader, resident
from common.training.loop import fit
from common.training.predict import predict
from common.training.run import MethodResult, RunContext, describe_model


def fit_lora(experiment: RunContext, dataset: DatasetSplits, backbone: Backbone, model: LoraViT) -> MethodResult:
    """Train the adapters and the classifier of ``model``; the test images are first seen after that.

    Raises:
        UserError: an image cannot be read, the loss is not finite, or disk or memory are too small.
    """
    config = experiment.config
    plain = backbone.transform(config.resize)

    def examples(images: LabelledImages, augment: str = "none") -> ImageLoader:
        transform = replace(plain, augment=augment)
        return ImageLoader(images, transform, experiment.device, config.workers, seed=config.seed)

    train, val = resident(examples(dataset.train, config.augment)), resident(examples(dataset.val))
    fitted = fit(model, train, val, experiment.loop, experiment.checkpoint(dataset, backbone))
    val_logits = predict(model, val, batch_size=config.batch_size, desc="validation")

    started = time.perf_counter()
    test_logits = predict(model, examples(dataset.test), batch_size=config.batch_size, desc="test")
    eval_seconds = time.perf_counter() - started
    plain_vit = merged(model)
    settings = {"rank": config.rank, "alpha": config.alpha, "dropout": config.dropout, "target_modules": list(ADAPTED)}
    return MethodResult(
        fit=fitted,
        val_logits=val_logits,
        test_logits=test_logits,
        eval_seconds=eval_seconds,
        feature_seconds=None,
        feature_cache_hit=False,
        model_record=describe_model(backbone, frozen=plain_vit, head=plain_vit.head, counted=(model,), lora=settings),
        files=adapter_files(model),
    )
