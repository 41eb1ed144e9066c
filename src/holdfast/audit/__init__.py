"""Audits: what else than evasion may be wrong with a model. Each asks one question, answers it by a
credible minimum, and leaves its evidence in a folder."""

# of `holdfast list audits`: the question of each
AUDITS = {
    "backdoor": "Does a small trigger turn rows to one class, far more easily than to the others?",
    "data": "Are rows planted among those that the model was trained on?",
    "membership": "Can rows that the model was trained on be known by its answers?",
    "extraction": "How good a copy do its answers give, and what do attacks gain by it?",
}
