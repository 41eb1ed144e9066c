"""What a copy of LeNet `cln` is good for, by what the adversary sees of the model's answers.

6,400 queries on MNIST, FGSM within linf(0.3); measured are 1,000 test images that the adversary
does not have. With further seeds other images are measured, and other ones asked about.

    python benchmarks/extraction.py [--queries 6400] [--seeds 3]
"""

from __future__ import annotations

from common import case, mnist, options, save, table

from holdfast.audit.extraction import audit_extraction

KINDS = ("scores", "rounded(2)", "rounded(1)", "labels")
THREAT = "linf(0.3)"


def main() -> None:
    asked = options(__doc__, queries=6400, seeds=3)
    model, (x, y) = case("torch_advertorch_lenet5", "cln"), mnist(10_000)
    lines = list[list[str]]()
    for seed in range(asked.seeds):
        kinds = KINDS if seed == 0 else KINDS[:1]
        audit, _ = audit_extraction(
            model,
            (x.numpy(), y.numpy()),
            THREAT,
            queries=(asked.queries,),
            answers=kinds,
            seed=seed,
        )
        for one in audit.result.substitutes:
            shares = (one.agreement, one.accuracy, one.transfer, audit.result.noise)
            lines.append([str(seed), one.answers, *map(str, shares)])
            print(*lines[-1], flush=True)
    heads = ["seed", "answers", "agreement", "accuracy", "rows turned", "by noise of that size"]
    parts = [
        f"{asked.queries:,} queries, FGSM within {THREAT}, 1,000 rows measured.",
        table(heads, lines),
        "The copy's network was chosen on test images that seed 0 neither asks about nor measures.",
    ]
    save("extraction", "Copies of LeNet `cln` by what the adversary sees", parts)


if __name__ == "__main__":
    main()
