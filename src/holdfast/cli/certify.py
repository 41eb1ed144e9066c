"""holdfast certify: on which inputs is it proved that no legal change fools the model?"""

from __future__ import annotations

from holdfast.cli import options, properties, texts, writing
from holdfast.cli.evaluate import check_seconds, conclude, echo_estimate


def certify(
    model: options.Model,
    data: options.DataOrNone = None,
    *,
    adversary: options.ThreatOptions,
    threat: options.ThreatOrNone = None,
    vnnlib: properties.Vnnlib = None,
    how: options.ModelOptions,
    rows: options.DataOptions,
    part: options.PartOptions,
    proofs: options.ProofOptions,
    smooth: options.Smooth = None,
    export: properties.Export = None,
    groups: options.Groups = None,
    max_seconds: options.MaxSeconds = None,
    where: options.RunOptions,
    seed: options.Seed = 0,
    gate: options.Gate = None,
    json: options.Json = False,
) -> int:
    """Prove on which inputs no legal change fools a model, and leave the evidence in a folder.
    No attack is run: `evaluate --certify` does both. Or decide a property of VNN-LIB."""
    if vnnlib is not None:
        others = {"data": data, "gate": gate, "groups": groups, "export": export, "smooth": smooth}
        return properties.answer(
            model,
            vnnlib,
            how,
            {**adversary, **rows, **part, **proofs, **others, "resume": where["resume"]},
            out=where["out"],
            seconds=max_seconds,
            prove=True,
            seed=seed,
            as_json=json,
        )
    properties.check_asked(data, threat)
    assert data is not None
    from holdfast.runs import gates

    conditions = [gates.parse(text) for text in gate or ()]
    check_seconds(max_seconds)
    properties.check_export(export, part["shard"])
    folder = options.folder_of(model, f"{adversary['threat']}-certify", part["shard"], **where)
    from holdfast.certification import certify as prove
    from holdfast.evaluation.facts import Names

    asked = options.open_threat(**adversary)
    if smooth is not None:
        options.check_smooth(smooth, asked, export, max_seconds, **proofs)
    if export is not None:
        from holdfast.certification.exchange import check_exported

        check_exported(asked)
    rows |= options.drawn(part, seed)
    target, source = options.open_attacked(model, data, how, rows)
    with writing.resumable(folder) as here:
        with writing.progress_bar() as on_progress:
            run = prove(
                target,
                source,
                asked,
                **{name: value for name, value in proofs.items() if value is not None},
                smooth=smooth,
                samples=options.rows_to_measure(source, **part),
                seed=seed,
                max_seconds=max_seconds,
                out=here,
                resume=where["resume"],
                on_progress=on_progress,
                on_estimate=writing.estimated if writing.listener else echo_estimate,
                groups=groups and texts.lines_of(groups, "--groups"),
                names=Names(model, how["arch"], rows["split"] or "test", writing.command_line()),
            )
        if export is not None:
            properties.write_open(export, run, target, source, asked)
        return conclude(run, conditions, strict=False, json=json)
