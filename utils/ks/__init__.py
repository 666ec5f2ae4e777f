"""The two-sample Kolmogorov-Smirnov test of images: the test, what is read off an image, the report."""
