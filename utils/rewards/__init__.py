"""Rewards of masks, the sampling of masks and the credit of their pixels, and scores from outside."""
