"""Training a head on a frozen backbone: ResNet50 and EfficientNet-B0, and the ViT without LoRA (``rank=0``)."""

import time
from dataclasses import replace

from common.data.dataset import DatasetSplits
from common.data.images import LabelledImages
from common.models.backbones import Backbone
from common.models.fuse_batchnorm import for_inference
from common.models.heads import Head, head_file
from common.training.feature_cache import prune
from common.training.features import Extractor, Features, extract
from common.training.loaders import AugmentedFeatureLoader, FeatureLoader, ImageLoader
from common.training.loop import fit
from common.training.predict import predict
from common.training.run import MethodResult, RunContext, describe_model


def fit_head(experiment: RunContext, dataset: DatasetSplits, backbone: Backbone, head: Head) -> MethodResult:
    """Train ``head`` on features that each image produced once; with ``augment=light`` they are made every epoch.

    The backbone stays in eval mode and takes no gradient: its weights and its BatchNorm statistics do not change.
    The test images go through it after the training has ended.

    Raises:
        UserError: an image cannot be read, the loss is not finite, or disk or memory are too small.
    """
    extractor = _extractor(experiment, dataset, backbone)
    head = head.to(experiment.device)
    made: dict[str, Features] = {}

    def once(images: LabelledImages, split: str) -> FeatureLoader:
        made[split] = extract(extractor, images, split, folder=experiment.feature_folder)
        return FeatureLoader(made[split].values.to(experiment.device), images.labels)

    if experiment.config.augment == "none":
        train = once(dataset.train, "train")
    else:
        train = _augmented(experiment, dataset.train, backbone)
    val = once(dataset.val, "val")
    fitted = fit(head, train, val, experiment.loop, experiment.checkpoint(dataset, backbone))
    feature_seconds = sum(features.seconds for features in made.values())
    val_logits = predict(head, val, batch_size=experiment.config.batch_size, desc="validation")

    test = once(dataset.test, "test")
    if experiment.config.feature_cache:
        prune(experiment.feature_folder)
    started = time.perf_counter()
    test_logits = predict(head, test, batch_size=experiment.config.batch_size, desc="test")
    return MethodResult(
        fit=fitted,
        val_logits=val_logits,
        test_logits=test_logits,
        eval_seconds=made["test"].seconds + time.perf_counter() - started,
        feature_seconds=feature_seconds,
        feature_cache_hit=all(features.cache_hit for features in made.values()),
        model_record=describe_model(
            backbone, frozen=backbone.module, head=head, counted=(backbone.module, head), lora=None
        ),
        files=head_file(head.state_dict()),
    )


def _extractor(experiment: RunContext, dataset: DatasetSplits, backbone: Backbone) -> Extractor:
    return Extractor(
        backbone=backbone,
        transform=backbone.transform(experiment.config.resize),
        device=experiment.device,
        precision=experiment.precision,
        compile=experiment.config.compile,
        workers=experiment.config.workers,
        fingerprint=dataset.fingerprint,
    )


def _augmented(experiment: RunContext, images: LabelledImages, backbone: Backbone) -> AugmentedFeatureLoader:
    config = experiment.config
    transform = replace(backbone.transform(config.resize), augment=config.augment)
    source = ImageLoader(images, transform, experiment.device, config.workers, seed=config.seed)
    return AugmentedFeatureLoader(source, for_inference(backbone).to(experiment.device), experiment.precision)
