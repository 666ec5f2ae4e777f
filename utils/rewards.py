"""What a predicted mask is worth, one number per image, by the functions that score a data set."""

from utils import metrics

REWARDS = {"f1": metrics.mean_f1, "miou": metrics.miou, "accuracy": metrics.pixel_accuracy}


def reward(name, preds, labels, num_classes):
    """preds, labels (B, H, W) -> (B,) float64 in [0, 1], each image by itself.

    Ignored pixels never count; a class that neither mask has is not scored (utils/metrics.py); an
    image without a scored class is worth 0, whatever was predicted.
    """
    return REWARDS[name](metrics.confusion(preds, labels, num_classes)).nan_to_num(0.0)
