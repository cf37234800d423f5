"""Checkpoints that are complete or absent, never half.

    checkpoints/
      step_0001000/     config.json, model.safetensors (what `from_pretrained` reads),
                        recipe.yaml, dataset.json,
                        training_state.pt, rng_0.pt … one per process, SHA256SUMS
      last, best        links to the step folders; those evaluated also hold score.json

A folder is written under a temporary name, flushed to disk and renamed; links are replaced
atomically. Where the file system has no links, `last` and `best` are files that hold the name of
the step folder. Step folders that no link names are removed, but for the newest `train.keep`. The
folder must be on a file system that all processes share.
"""
