"""Checkpoints, which are written atomically: each is complete or absent.

    checkpoints/
      step_0001000/     config.json, model.safetensors (what `from_pretrained` reads),
                        recipe.yaml, dataset.json,
                        training_state.pt, rng_0.pt … one per process, SHA256SUMS
      last, best        links to step folders; a step that was evaluated also holds score.json

A step folder is written under a temporary name, flushed to disk and renamed; links are replaced
atomically. If the file system has no links, `last` and `best` are files that contain the name of
the step folder. Step folders are removed unless a link points to them or they are among the newest
`train.keep`. The folder must be on a file system that all processes share.
"""
