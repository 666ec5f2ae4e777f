"""A small network for digits: two convolutions and, as a classifier, a hidden layer of 128."""

from torch import nn


class Grey(nn.Module):
    """(B, C, H, W) -> (B, 1, H, W), the mean of the channels."""

    def forward(self, images):
        return images.mean(1, keepdim=True)


class CNN(nn.Module):
    """(B, 3, H, W) in 0 to 1 -> (B, num_classes) logits; made for 28 x 28, H and W at least 16.

    norm: with BatchNorm after each activation. `features` ends at (B, 64, 4, 4) for 28 x 28; other sizes are
    averaged to that.
    """

    def __init__(self, num_classes=10, norm=True):
        super().__init__()
        blocks = []
        for head, outputs, activation in (
            ([Grey(), nn.Conv2d(1, 32, 5)], 32, nn.LeakyReLU()),
            ([nn.Conv2d(32, 64, 5)], 64, nn.ReLU()),
        ):
            after = [nn.BatchNorm2d(outputs)] if norm else []
            blocks.append(nn.Sequential(*head, activation, *after, nn.MaxPool2d(2)))
        self.features = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.fc = nn.Linear(64 * 4 * 4, num_classes)

    def forward(self, images):
        return self.fc(self.pool(self.features(images)).flatten(1))
