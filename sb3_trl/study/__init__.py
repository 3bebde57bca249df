"""Many runs at once."""

from sb3_trl.study.seed_batch import SeedBatch

__all__ = ["SeedBatch"]
