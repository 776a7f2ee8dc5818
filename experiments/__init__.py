"""
The experiments behind `docs/evidence.md`. They are not part of the installed package: run them from the root of the
repository.

    python -m experiments.ablation     trains and compares small models with and without each part of the method
    python -m experiments.words        measures how well the trained models match words and regions
    python -m experiments.seeds        compares the effects of the seed of the weights and the seed of the data
    python -m experiments.calibration  fits and measures the probabilities of search
    python -m experiments.real_spans   measures the spans that a search finds
    python -m experiments.render       rewrites the tables and figures of docs/evidence.md from the recorded runs

`runs/` contains the recorded runs: one JSON Lines file per setting, one line per run.
"""
