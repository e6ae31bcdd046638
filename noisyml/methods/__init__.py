"""One module per published method; its `training_step` reads like the algorithm."""
