"""Training a ViT with LoRA: the images go through the whole model in every epoch."""

import time
from dataclasses import replace

from common.backbones import Backbone
from common.data import Dataset, Images
from common.examples import ImageExamples, resident
from common.experiment import Experiment, Outcome, describe_model
from common.lora import ADAPTED, LoraViT, adapter_files, merged
from common.prediction import predict
from common.training import fit


def fit_lora(experiment: Experiment, dataset: Dataset, backbone: Backbone, model: LoraViT) -> Outcome:
    """Train the adapters and the classifier of ``model``; the test images are first seen after that.

    Raises:
        UserError: an image cannot be read, the loss is not finite, or disk or memory are too small.
    """
    config = experiment.config
    plain = backbone.transform(config.resize)

    def examples(images: Images, augment: str = "none") -> ImageExamples:
        transform = replace(plain, augment=augment)
        return ImageExamples(images, transform, experiment.device, config.workers, seed=config.seed)

    train, val = resident(examples(dataset.train, config.augment)), resident(examples(dataset.val))
    fitted = fit(model, train, val, experiment.loop, experiment.checkpoint(dataset, backbone))
    val_logits = predict(model, val, batch_size=config.batch_size, desc="validation")

    started = time.perf_counter()
    test_logits = predict(model, examples(dataset.test), batch_size=config.batch_size, desc="test")
    eval_seconds = time.perf_counter() - started
    plain_vit = merged(model)
    settings = {"rank": config.rank, "alpha": config.alpha, "dropout": config.dropout, "target_modules": list(ADAPTED)}
    return Outcome(
        fit=fitted,
        val_logits=val_logits,
        test_logits=test_logits,
        eval_seconds=eval_seconds,
        feature_seconds=None,
        feature_cache_hit=False,
        model_record=describe_model(backbone, frozen=plain_vit, head=plain_vit.head, counted=(model,), lora=settings),
        files=adapter_files(model),
    )
