"""Training: the baseline now, the recipes that make a model robust later."""
