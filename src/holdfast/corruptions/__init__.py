"""Common corruptions of images, and what a model says of them."""
