"""The run folder: the evidence that an evaluation leaves. Nothing here needs torch."""
